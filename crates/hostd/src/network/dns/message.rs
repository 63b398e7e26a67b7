//! What may be asked, and what of an answer may be told. Pure, but for messages on a TCP stream.

use super::super::driver::Resolved;
use super::super::egress::{Egress, is_private};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Addresses that are told of one answer, and what they let through at most, with a list's ports.
const ADDRESSES_MAX: usize = 64;
const FOUND_MAX: usize = 1024;

/// A question that can be understood.
#[derive(Debug)]
pub(super) struct Question<'a> {
    bytes: &'a [u8],
    message: Message,
    /// As rules have it: in lower case, without the last dot.
    name: String,
    kind: RecordType,
}

#[derive(Debug)]
pub(super) enum Verdict {
    Ask,
    Answer(Vec<u8>),
}

/// An answer, less what must not be told.
#[derive(Debug)]
pub(super) struct Filtered {
    pub(super) answer: Vec<u8>,
    pub(super) found: Vec<Resolved>,
    pub(super) ttl: Duration,
}

impl<'a> Question<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Question<'a>> {
        let message = Message::from_vec(bytes).ok()?;
        let is_query =
            message.metadata.message_type == MessageType::Query && message.metadata.op_code == OpCode::Query;
        let [query] = message.queries.as_slice() else { return None };
        if !is_query {
            return None;
        }
        let (name, kind) = (plain(&query.name), query.query_type);
        Some(Question { bytes, message, name, kind })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Sandboxes have no IPv6, and are told so at once. With a list they are told addresses by A records alone:
    /// others could name some that have not been let through.
    pub(super) fn verdict(&self, egress: &Egress) -> Verdict {
        if egress.ports_of(&self.name).is_empty() {
            return Verdict::Answer(self.reply(ResponseCode::Refused));
        }
        let has_list = matches!(egress, Egress::Allow(_));
        match self.kind {
            RecordType::AAAA => Verdict::Answer(self.reply(ResponseCode::NoError)),
            RecordType::HTTPS | RecordType::SVCB | RecordType::ANY if has_list => {
                Verdict::Answer(self.reply(ResponseCode::NoError))
            }
            _ => Verdict::Ask,
        }
    }

    /// The host's resolvers have not answered.
    pub(super) fn failure(&self) -> Vec<u8> {
        self.reply(ResponseCode::ServFail)
    }

    /// What a list lets through of an answer.
    pub(super) fn filter(&self, answer: &[u8], egress: &Egress) -> Filtered {
        let nothing = || Filtered { answer: self.failure(), found: Vec::new(), ttl: Duration::ZERO };
        let Ok(mut message) = Message::from_vec(answer) else { return nothing() };
        let ports = egress.ports_of(&self.name);
        message
            .answers
            .retain(|record| address_of(record).is_none_or(|address| egress.takes_from_dns(address)));
        // Addresses of name servers and the like, which nobody has asked for.
        message.additionals.retain(|record| !matches!(record.data, RData::A(_) | RData::AAAA(_)));
        keep_first_addresses(&mut message.answers);
        // What is somebody's own is reached by the rule that has its addresses, and by no name.
        let addresses = message.answers.iter().filter_map(address_of).filter(|address| !is_private(*address));
        let found = addresses
            .flat_map(|address| ports.iter().map(move |port| Resolved { address, port: *port }))
            .take(FOUND_MAX)
            .collect();
        let ttl = message.answers.iter().map(|record| record.ttl).max().unwrap_or_default();
        match message.to_vec() {
            Ok(answer) => Filtered { answer, found, ttl: Duration::from_secs(ttl.into()) },
            Err(_) => nothing(),
        }
    }

    fn reply(&self, code: ResponseCode) -> Vec<u8> {
        let asked = &self.message.metadata;
        let mut reply = Message::error_msg(asked.id, asked.op_code, code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_queries(self.message.queries.iter().cloned());
        reply.to_vec().unwrap_or_default()
    }
}

fn keep_first_addresses(answers: &mut Vec<Record>) {
    let mut addresses = 0;
    answers.retain(|record| {
        addresses += usize::from(address_of(record).is_some());
        address_of(record).is_none() || addresses <= ADDRESSES_MAX
    });
}

fn plain(name: &Name) -> String {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

fn address_of(record: &Record) -> Option<std::net::Ipv4Addr> {
    match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

/// The next message of a stream.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::{A, CNAME};
    use podflare_api::network::{AllowList, Egress as Wanted};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn allow(rules: &[&str]) -> Egress {
        let allow = rules.iter().map(|rule| (*rule).to_owned()).collect();
        Egress::parse(&Wanted::List(AllowList { allow })).unwrap()
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question(text: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name(text), kind));
        message.to_vec().unwrap()
    }

    fn answer(records: Vec<Record>) -> Vec<u8> {
        let mut message = Message::response(7, OpCode::Query);
        message.add_answers(records);
        message.to_vec().unwrap()
    }

    fn code(verdict: Verdict) -> Option<ResponseCode> {
        match verdict {
            Verdict::Ask => None,
            Verdict::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
        }
    }

    #[test]
    fn only_names_on_the_list_are_asked_for() {
        let egress = allow(&["example.org:443", "*.example.org"]);
        let verdict = |text: &str, kind| {
            let bytes = question(text, kind);
            code(Question::parse(&bytes).unwrap().verdict(&egress))
        };
        assert_eq!(verdict("Example.ORG.", RecordType::A), None);
        assert_eq!(verdict("www.example.org.", RecordType::MX), None);
        assert_eq!(verdict("example.com.", RecordType::A), Some(ResponseCode::Refused));
        assert_eq!(verdict("example.com.", RecordType::AAAA), Some(ResponseCode::Refused));
        assert_eq!(verdict("example.org.", RecordType::AAAA), Some(ResponseCode::NoError));
        assert_eq!(verdict("example.org.", RecordType::HTTPS), Some(ResponseCode::NoError));
    }

    #[test]
    fn a_sandbox_with_an_open_network_asks_for_every_name_but_gets_no_ipv6() {
        let bytes = question("example.com.", RecordType::HTTPS);
        assert_eq!(code(Question::parse(&bytes).unwrap().verdict(&Egress::On)), None);
        let bytes = question("example.com.", RecordType::AAAA);
        assert_eq!(code(Question::parse(&bytes).unwrap().verdict(&Egress::On)), Some(ResponseCode::NoError));
    }

    #[test]
    fn an_answer_is_told_without_private_addresses_and_lets_the_others_through() {
        let egress = allow(&["example.org:443", "example.org:80", "10.1.0.0/16"]);
        let asked = question("example.org.", RecordType::A);
        let a = |address: [u8; 4]| {
            Record::from_rdata(name("cdn.example."), 60, RData::A(A(Ipv4Addr::from(address))))
        };
        let cname = Record::from_rdata(name("example.org."), 900, RData::CNAME(CNAME(name("cdn.example."))));
        let records =
            vec![cname, a([203, 0, 113, 1]), a([192, 168, 0, 1]), a([10, 1, 2, 3]), a([127, 0, 0, 1])];
        let filtered = Question::parse(&asked).unwrap().filter(&answer(records), &egress);
        let told = Message::from_vec(&filtered.answer).unwrap();
        let told: Vec<_> = told.answers.iter().filter_map(address_of).collect();
        let [public, private] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(10, 1, 2, 3)];
        assert_eq!(told, [public, private]);
        let through = |address, port| Resolved { address, port: Some(port) };
        // The private one is reached as the rule about it says, and not at the name's ports.
        assert_eq!(filtered.found, [through(public, 443), through(public, 80)]);
        assert_eq!(filtered.ttl, Duration::from_secs(900));
    }

    #[test]
    fn a_name_with_very_many_addresses_and_ports_lets_some_of_them_through() {
        let rules: Vec<String> = (1..=200).map(|port| format!("example.org:{port}")).collect();
        let egress = allow(&rules.iter().map(String::as_str).collect::<Vec<_>>());
        let asked = question("example.org.", RecordType::A);
        let records = (0..500_u32)
            .map(|n| {
                let address = Ipv4Addr::from_bits(0xcb00_7100 + n);
                Record::from_rdata(name("example.org."), 60, RData::A(A(address)))
            })
            .collect();
        let filtered = Question::parse(&asked).unwrap().filter(&answer(records), &egress);
        let told = Message::from_vec(&filtered.answer).unwrap();
        assert_eq!(told.answers.len(), ADDRESSES_MAX);
        assert_eq!(filtered.found.len(), FOUND_MAX);
    }

    #[test]
    fn an_answer_that_is_none_tells_nothing() {
        let asked = question("example.org.", RecordType::A);
        let filtered = Question::parse(&asked).unwrap().filter(&[1, 2, 3], &allow(&["example.org"]));
        assert_eq!(filtered.found, []);
        let told = Message::from_vec(&filtered.answer).unwrap();
        assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(told.metadata.id, 7);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_question_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let egress = allow(&["example.org"]);
            if let Some(question) = Question::parse(&bytes) {
                drop(question.verdict(&egress));
            }
            let asked = question("example.org.", RecordType::A);
            let filtered = Question::parse(&asked).unwrap().filter(&bytes, &egress);
            prop_assert!(!filtered.answer.is_empty());
        }
    }
}

//! Whatever sandboxes could reach: servers in a network namespace of their own, one link away from this machine's
//! network. It goes with the thread that is in it.

use futures_util::TryStreamExt;
use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// Two servers with public addresses, and one with a private one.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// A public one that the host's operator has forbidden.
pub const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
/// Where names are asked for.
pub const RESOLVER: &str = "203.0.113.53:53";

/// This machine's own ends of the link.
pub const OURS: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(10, 1, 0, 1)];

/// Greets, and then says back what it hears.
pub const ECHO_PORTS: [u16; 2] = [80, 443];
pub const GREETING: &str = "hello";

/// Takes note of datagrams.
pub const NOTE_PORT: u16 = 9999;

const NAMES: [(&str, Ipv4Addr); 4] = [
    ("web.example.", PUBLIC),
    ("sub.web.example.", PUBLIC),
    ("private.example.", PRIVATE),
    ("metadata.example.", Ipv4Addr::new(169, 254, 169, 254)),
];

const NEAR: &str = "world0";
const FAR: &str = "world1";

/// Its servers. Dropping it ends nothing: servers end with the test program.
#[derive(Debug)]
pub struct World {
    notes: Receiver<(SocketAddr, Vec<u8>)>,
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl World {
    /// One for a test program: a second one would have the same addresses.
    pub fn new() -> World {
        let (opened, open) = mpsc::channel();
        let (note, notes) = mpsc::channel();
        let (linked, link) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            opened.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            link.recv().unwrap();
            live(note);
            opened.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            // Keeps the namespace.
            thread::park();
        });
        let namespace = open.recv().unwrap();
        runtime().block_on(connect(&namespace));
        linked.send(()).unwrap();
        open.recv().unwrap();
        World { notes }
    }

    /// What has been sent to [`NOTE_PORT`] since the last look, up to a datagram with this content.
    pub fn notes_until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        loop {
            let (_, content) = self.notes.recv_timeout(Duration::from_secs(20)).unwrap();
            if content == last {
                return seen;
            }
            seen.push(content);
        }
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
async fn connect(namespace: &File) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    handle.link().add(LinkVeth::new(NEAR, FAR).build()).execute().await.unwrap();
    let far = index(&handle, FAR).await;
    let enter = LinkUnspec::new_with_index(far).setns_by_fd(namespace.as_raw_fd()).build();
    handle.link().set(enter).execute().await.unwrap();
    let near = index(&handle, NEAR).await;
    for address in OURS {
        handle.address().add(near, address.into(), 24).execute().await.unwrap();
    }
    handle.link().set(LinkUnspec::new_with_index(near).up().build()).execute().await.unwrap();
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
async fn settle() {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let far = index(&handle, FAR).await;
    let resolver: SocketAddr = RESOLVER.parse().unwrap();
    for address in [PUBLIC.into(), OTHER.into(), FORBIDDEN.into(), PRIVATE.into(), resolver.ip()] {
        handle.address().add(far, address, 24).execute().await.unwrap();
    }
    handle.link().set(LinkUnspec::new_with_index(far).up().build()).execute().await.unwrap();
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(OURS[0]).build();
    handle.route().add(route).execute().await.unwrap();
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
async fn index(handle: &Handle, name: &str) -> u32 {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    found.try_next().await.unwrap().unwrap().header.index
}

/// In the namespace: addresses, then servers, each in a thread that is in it, too.
#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
fn live(note: Sender<(SocketAddr, Vec<u8>)>) {
    runtime().block_on(settle());
    for port in ECHO_PORTS {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || echo(stream));
            }
        });
    }
    let resolver = UdpSocket::bind(RESOLVER).unwrap();
    thread::spawn(move || resolve(&resolver));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, NOTE_PORT)).unwrap();
    thread::spawn(move || {
        let mut content = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut content) {
            note.send((from, content[..len].to_vec())).ok();
        }
    });
}

/// A client that goes away ends it.
fn echo(mut stream: TcpStream) {
    if stream.write_all(GREETING.as_bytes()).is_err() {
        return;
    }
    let mut heard = [0; 1024];
    while let Ok(len @ 1..) = stream.read(&mut heard) {
        if stream.write_all(&heard[..len]).is_err() {
            return;
        }
    }
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
fn resolve(socket: &UdpSocket) {
    let mut question = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut question) {
        let Ok(question) = Message::from_vec(&question[..len]) else { continue };
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.add_queries(question.queries.iter().cloned());
        for query in &question.queries {
            let name = query.name.to_ascii().to_ascii_lowercase();
            let known = NAMES.iter().find(|(known, _)| *known == name);
            if let (Some((_, address)), RecordType::A) = (known, query.query_type) {
                answer.add_answer(Record::from_rdata(query.name.clone(), 60, RData::A(A(*address))));
            }
        }
        socket.send_to(&answer.to_vec().unwrap(), from).ok();
    }
}

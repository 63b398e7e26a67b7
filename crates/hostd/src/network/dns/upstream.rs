//! The host's own resolvers.

use super::message;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Resolvers that are asked, one after the other, each for as long.
const SERVERS_MAX: usize = 3;
const PATIENCE: Duration = Duration::from_secs(3);

const PORT: u16 = 53;

/// The longest answer over UDP: the most that a question can ask for.
const ANSWER_LEN_MAX: usize = 65_535;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Which resolvers the host's names come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// Those that the file names, as they are when a question comes.
    File(PathBuf),
    These(Vec<SocketAddr>),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("Could not read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} names no resolver", path.display())]
    NoServer { path: PathBuf },
    #[error("The host's resolvers have not answered")]
    NoAnswer,
}

impl Default for Upstreams {
    fn default() -> Upstreams {
        Upstreams::File(RESOLV_CONF.into())
    }
}

impl Upstreams {
    /// Passes a question on, and gives the first answer.
    pub(super) async fn ask(&self, question: &[u8], transport: Transport) -> Result<Vec<u8>, AskError> {
        for server in self.servers().await?.into_iter().take(SERVERS_MAX) {
            let asked = async {
                match transport {
                    Transport::Udp => ask_by_udp(server, question).await,
                    Transport::Tcp => ask_by_tcp(server, question).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "A resolver cannot be asked"),
                Err(_) => tracing::debug!(%server, "A resolver does not answer"),
            }
        }
        Err(AskError::NoAnswer)
    }

    async fn servers(&self) -> Result<Vec<SocketAddr>, AskError> {
        let path = match self {
            Upstreams::These(servers) => return Ok(servers.clone()),
            Upstreams::File(path) => path,
        };
        let text =
            std::fs::read_to_string(path).map_err(|source| AskError::File { path: path.clone(), source })?;
        let servers = servers_in(&text);
        if servers.is_empty() {
            return Err(AskError::NoServer { path: path.clone() });
        }
        Ok(servers)
    }
}

fn servers_in(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A link-local address may have a zone behind it, which leads nowhere here.
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    });
    servers.collect()
}

/// From a port of its own and with a number of its own, so that nobody answers in the resolver's place.
async fn ask_by_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let own =
        if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    let mut number = [0; 2];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    let Some((asked, rest)) = question.split_first_chunk::<2>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    socket.send(&[&number, rest].concat()).await?;
    let mut answer = vec![0; ANSWER_LEN_MAX];
    loop {
        let len = socket.recv(&mut answer).await?;
        if answer[..len].starts_with(&number) {
            answer.truncate(len);
            answer[..2].copy_from_slice(asked);
            return Ok(answer);
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    message::write(&mut stream, question).await?;
    message::read(&mut stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_those_that_the_file_names() {
        let text = "# nameserver 192.0.2.1\nsearch example\nnameserver 192.0.2.53\n nameserver ::1 x\nnameserver no\n";
        let servers: Vec<String> = servers_in(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["192.0.2.53:53", "[::1]:53"]);
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_not_taken_and_the_next_resolver_is_asked() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let these = [&silent, &resolver].map(|socket| socket.local_addr().unwrap());
        let answers = tokio::spawn(async move {
            let mut question = [0; 64];
            let (len, from) = resolver.recv_from(&mut question).await.unwrap();
            let wrong = [question[0] ^ 1, question[1], 9];
            resolver.send_to(&wrong, from).await.unwrap();
            resolver.send_to(&question[..len], from).await.unwrap();
        });
        let answer = Upstreams::These(these.to_vec()).ask(&[1, 2, 3, 4], Transport::Udp).await.unwrap();
        assert_eq!(answer, [1, 2, 3, 4]);
        answers.await.unwrap();
    }
}

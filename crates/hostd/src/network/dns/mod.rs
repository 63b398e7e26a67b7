//! Names for sandboxes: each question is answered by the host's own resolvers, if the sandbox may ask it.
//!
//! Where a sandbox has a list, an address is let through because an allowed name stands for it, before the sandbox
//! learns it: what the packet filter lets out has been seen here.

mod message;
mod upstream;

use super::egress::Egress;
use super::interface::Member;
use super::linux::DnsSockets;
use super::{Network, Shared};
use crate::chain::chain;
use message::{Question, Verdict};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use upstream::Transport;
pub use upstream::Upstreams;

/// The longest message over UDP that is read or sent.
const UDP_LEN_MAX: usize = 4096;

/// Questions that are looked up at once, and connections that may ask, in all and of each sandbox; further ones are not
/// heard.
const QUESTIONS_MAX: usize = 4096;
pub(super) const QUESTIONS_EACH_MAX: usize = 64;
const CONNECTIONS_MAX: usize = 1024;
pub(super) const CONNECTIONS_EACH_MAX: usize = 16;

/// How long a connection may say nothing.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);

/// A pause after the kernel has refused to hand over a question.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// One of the sandbox's own, and one of all sandboxes'.
type Turns = [OwnedSemaphorePermit; 2];

fn turns(own: &Arc<Semaphore>, all: &Arc<Semaphore>) -> Option<Turns> {
    Some([own.clone().try_acquire_owned().ok()?, all.clone().try_acquire_owned().ok()?])
}

#[derive(Debug)]
struct Server {
    network: Arc<Shared>,
    upstreams: Upstreams,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// Answers questions for as long as it is polled.
pub async fn serve(network: Network, sockets: DnsSockets, upstreams: Upstreams) -> io::Result<()> {
    let Some(shared) = network.0 else { return Ok(()) };
    let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let server = Arc::new(Server {
        network: shared,
        upstreams,
        questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    });
    let mut buffer = vec![0; UDP_LEN_MAX];
    loop {
        tokio::select! {
            received = udp.recv_from(&mut buffer) => match received {
                Ok((len, from)) => server.clone().hear(buffer[..len].to_vec(), from, udp.clone()),
                Err(error) => pause_after(&error).await,
            },
            accepted = tcp.accept() => match accepted {
                Ok((stream, from)) => server.clone().accept(stream, from),
                Err(error) => pause_after(&error).await,
            },
        }
    }
}

async fn pause_after(error: &io::Error) {
    tracing::debug!(%error, "A sandbox's DNS question was not heard");
    tokio::time::sleep(FAILURE_PAUSE).await;
}

impl Server {
    fn hear(self: Arc<Server>, question: Vec<u8>, from: SocketAddr, socket: Arc<UdpSocket>) {
        let Some((member, turns)) = self.admit(from) else { return };
        tokio::spawn(async move {
            let answer = self.answer(&member, &question, Transport::Udp).await;
            drop(turns);
            if let Some(answer) = answer {
                // Who is gone needs no answer.
                socket.send_to(&answer, from).await.ok();
            }
        });
    }

    fn accept(self: Arc<Server>, stream: TcpStream, from: SocketAddr) {
        let Some(member) = self.member(from) else { return };
        let Some(turns) = turns(&member.connections, &self.connections) else { return };
        tokio::spawn(async move {
            // One that breaks off has only itself to blame.
            self.converse(stream, from).await.ok();
            drop(turns);
        });
    }

    async fn converse(&self, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        loop {
            let question = timeout(CONNECTION_IDLE, message::read(&mut stream)).await??;
            let Some((member, turns)) = self.admit(from) else { return Ok(()) };
            let Some(answer) = self.answer(&member, &question, Transport::Tcp).await else { return Ok(()) };
            drop(turns);
            timeout(CONNECTION_IDLE, message::write(&mut stream, &answer)).await??;
        }
    }

    /// The sandbox that asks, which its address tells: the packet filter lets no other through from its interface.
    fn member(&self, from: SocketAddr) -> Option<Arc<Member>> {
        let IpAddr::V4(address) = from.ip() else { return None };
        self.network.member(address)
    }

    fn admit(&self, from: SocketAddr) -> Option<(Arc<Member>, Turns)> {
        let member = self.member(from)?;
        let turns = turns(&member.questions, &self.questions)?;
        Some((member, turns))
    }

    /// Nothing for what is no question.
    async fn answer(&self, member: &Member, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = Question::parse(question)?;
        let egress = member.policy().egress.clone();
        match question.verdict(&egress) {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Ask => {
                let answer = match self.upstreams.ask(question.bytes(), transport).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "Could not look a name up");
                        return Some(question.failure());
                    }
                };
                if !matches!(egress, Egress::Allow(_)) {
                    return Some(answer);
                }
                let filtered = question.filter(&answer, &egress);
                match member.let_through(&self.network, &egress, filtered.found, filtered.ttl).await {
                    Ok(()) => Some(filtered.answer),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "Could not let a sandbox through to a name's address");
                        Some(question.failure())
                    }
                }
            }
        }
    }
}

//! hostd's end of the stream to a guest's agent.

use crate::vmm::GuestStream;
use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use podflare_wire::codec::{DecodeError, FrameReader, encode_frame};
use podflare_wire::guest::{ENTROPY_LEN, Event, PROTOCOL, Renewal, ReplRenewal, Request};
use podflare_wire::limits::EVENT_FRAME_LEN_MAX;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// Bytes read from the stream at a time.
const READ_LEN: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the guest's agent closed its stream")]
    Closed,
    #[error("the stream to the guest's agent broke")]
    Io(#[from] std::io::Error),
    #[error("the guest's agent does not keep to the protocol")]
    Decode(#[from] DecodeError),
    #[error("the guest's agent speaks protocol {theirs}, this host {PROTOCOL}; rebuild the image")]
    Protocol { theirs: u32 },
    #[error("the guest's agent does not keep to the protocol: {0}")]
    Unexpected(&'static str),
    #[error("the guest's agent failed: {message}")]
    Failed { message: String },
    #[error("no entropy for the guest")]
    Entropy(#[from] getrandom::Error),
}

/// A stream whose guest has confirmed that it is its own.
pub struct AgentConnection {
    read: ReadHalf<Box<dyn GuestStream>>,
    write: WriteHalf<Box<dyn GuestStream>>,
    frames: FrameReader,
    buffer: BytesMut,
    /// Requests, or the rest of one, that the stream has not taken yet.
    outgoing: BytesMut,
}

impl AgentConnection {
    /// Makes the guest at the other end its own machine, and fails unless it says that it is.
    ///
    /// The renewal is sent at once: the agent's greeting is on its way meanwhile.
    pub async fn renew(stream: Box<dyn GuestStream>, hostname: &str) -> Result<AgentConnection, AgentError> {
        let (read, write) = tokio::io::split(stream);
        let mut agent = AgentConnection {
            read,
            write,
            frames: FrameReader::new(EVENT_FRAME_LEN_MAX),
            buffer: BytesMut::with_capacity(READ_LEN),
            outgoing: BytesMut::new(),
        };
        agent.send(&Request::Renew(renewal(hostname)?));
        match agent.next_event().await? {
            Event::Hello { protocol: PROTOCOL } => {}
            Event::Hello { protocol } => return Err(AgentError::Protocol { theirs: protocol }),
            Event::Failed { message } => return Err(AgentError::Failed { message }),
            _ => return Err(AgentError::Unexpected("it did not say hello")),
        }
        match agent.next_event().await? {
            // A pending REPL is busy with code from before the fork. It renews before anything new runs.
            Event::Renewed { repl: ReplRenewal::Done | ReplRenewal::Pending } => Ok(agent),
            Event::Failed { message } => Err(AgentError::Failed { message }),
            _ => Err(AgentError::Unexpected("it did not confirm its renewal")),
        }
    }

    /// Sends a request as far as the stream takes it now; `next_event` sends the rest.
    pub fn send(&mut self, request: &Request) {
        let frame = encode_frame(request);
        let mut taken = 0;
        if self.outgoing.is_empty()
            && let Some(Ok(len)) = self.write.write(&frame).now_or_never()
        {
            taken = len;
        }
        self.outgoing.extend_from_slice(&frame[taken..]);
    }

    /// The next event. May be dropped and called again.
    pub async fn next_event(&mut self) -> Result<Event, AgentError> {
        loop {
            if let Some(event) = self.frames.next_message()? {
                return Ok(event);
            }
            tokio::select! {
                read = self.read.read_buf(&mut self.buffer) => {
                    if read? == 0 {
                        return Err(AgentError::Closed);
                    }
                    self.frames.push(&self.buffer);
                    self.buffer.clear();
                }
                written = self.write.write(&self.outgoing), if !self.outgoing.is_empty() => {
                    self.outgoing.advance(written?);
                    if self.outgoing.is_empty() {
                        // Gives back the memory of a long request.
                        self.outgoing = BytesMut::new();
                    }
                }
            }
        }
    }
}

fn renewal(hostname: &str) -> Result<Renewal, AgentError> {
    let mut entropy = vec![0; ENTROPY_LEN];
    getrandom::fill(&mut entropy)?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_time_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    Ok(Renewal { entropy, unix_time_ns, hostname: hostname.to_owned() })
}

impl fmt::Debug for AgentConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConnection").field("outgoing_len", &self.outgoing.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_wire::guest::ExecId;

    /// An agent that says these things and takes nothing.
    async fn renew_with(says: &[Event]) -> Result<AgentConnection, AgentError> {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        for event in says {
            theirs.write_all(&encode_frame(event)).await.unwrap();
        }
        theirs.shutdown().await.unwrap();
        AgentConnection::renew(Box::new(ours), "sbx-1").await
    }

    #[tokio::test]
    async fn only_a_confirmed_renewal_is_a_connection() {
        let hello = Event::Hello { protocol: PROTOCOL };
        let renewed = Event::Renewed { repl: ReplRenewal::Done };
        assert!(renew_with(&[hello.clone(), renewed.clone()]).await.is_ok());
        assert!(matches!(renew_with(std::slice::from_ref(&hello)).await, Err(AgentError::Closed)));
        assert!(matches!(
            renew_with(&[hello.clone(), Event::Pong { token: 1 }]).await,
            Err(AgentError::Unexpected(_))
        ));
        assert!(matches!(
            renew_with(&[hello, Event::Failed { message: "no pool".into() }]).await,
            Err(AgentError::Failed { .. })
        ));
        let other = Event::Hello { protocol: PROTOCOL + 1 };
        assert!(matches!(renew_with(&[other, renewed]).await, Err(AgentError::Protocol { .. })));
    }

    #[tokio::test]
    async fn a_request_longer_than_the_stream_takes_is_sent_while_events_are_read() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (mut read, mut write) = tokio::io::split(theirs);
        write.write_all(&encode_frame(&Event::Hello { protocol: PROTOCOL })).await.unwrap();
        write.write_all(&encode_frame(&Event::Renewed { repl: ReplRenewal::Done })).await.unwrap();
        let received = tokio::spawn(async move {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        let mut agent = AgentConnection::renew(Box::new(ours), "sbx-1").await.unwrap();
        let code = "x".repeat(10_000);
        let request =
            Request::Exec { exec: ExecId(1), language: podflare_wire::guest::Language::Python, code };
        agent.send(&request);
        let pong = tokio::spawn(async move {
            tokio::task::yield_now().await;
            write.write_all(&encode_frame(&Event::Pong { token: 9 })).await.unwrap();
        });
        assert_eq!(agent.next_event().await.unwrap(), Event::Pong { token: 9 });
        pong.await.unwrap();
        while !agent.outgoing.is_empty() {
            drop(tokio::time::timeout(std::time::Duration::from_millis(1), agent.next_event()).await);
        }
        drop(agent);
        let bytes = received.await.unwrap();
        assert!(bytes.ends_with(&encode_frame(&request)));
    }
}

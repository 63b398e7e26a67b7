//! hostd's end of the stream to a guest's agent.

use super::CODE_QUEUED_LEN_MAX;
use crate::printable::printable;
use crate::vmm::{GuestStream, VmmError};
use bytes::{Buf, BytesMut};
use futures_util::FutureExt;
use podflare_wire::codec::{DecodeError, FrameReader, encode_frame};
use podflare_wire::guest::{
    ENTROPY_LEN, Event, ExecId, Inherited, NetworkIdentity, PROTOCOL, Renewal, ReplRenewal, Request,
};
use podflare_wire::limits::EVENT_FRAME_LEN_MAX;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// Bytes of requests that may wait for the agent to read them: all code that may wait in a sandbox, and its
/// grants. An agent that ends executions without reading more makes it more.
const OUTGOING_LEN_MAX: usize = CODE_QUEUED_LEN_MAX + 1024 * 1024;

/// Bytes read from the stream at a time.
const READ_LEN: usize = 64 * 1024;

/// How late a copy's wall clock may be: the time that it was told was on its way no longer.
const CLOCK_LATE_MAX: Duration = Duration::from_millis(80);

/// How often it is told again, on a host that is too busy for that.
const CLOCK_ATTEMPTS_MAX: u32 = 3;

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
    #[error("the guest cannot be reached")]
    Connect(#[from] VmmError),
    #[error("the guest's agent was not started again")]
    NotRestarted,
    #[error("the guest's agent does not read what it is asked")]
    NotReading,
}

/// What a guest is to be from now on.
#[derive(Debug, Clone)]
pub struct GuestIdentity {
    pub hostname: String,
    pub network: Option<NetworkIdentity>,
}

/// A stream whose guest has confirmed that it is its own.
pub struct AgentConnection {
    read: ReadHalf<Box<dyn GuestStream>>,
    write: WriteHalf<Box<dyn GuestStream>>,
    frames: FrameReader,
    buffer: BytesMut,
    /// Requests, or the rest of one, that the stream has not taken yet.
    outgoing: BytesMut,
    repl: ReplRenewal,
    inherited: Option<Inherited>,
    /// The most that the guest's wall clock is late.
    clock_late: Duration,
}

impl AgentConnection {
    /// Makes the guest at the other end its own machine, and fails unless it says that it is.
    ///
    /// The agent greets with its answer. On a busy host the time in the renewal may be old by then;
    /// [`AgentConnection::settle_clock`] comes next.
    pub async fn renew(
        stream: Box<dyn GuestStream>,
        identity: &GuestIdentity,
    ) -> Result<AgentConnection, AgentError> {
        let (read, write) = tokio::io::split(stream);
        let mut agent = AgentConnection {
            read,
            write,
            frames: FrameReader::new(EVENT_FRAME_LEN_MAX),
            buffer: BytesMut::with_capacity(READ_LEN),
            outgoing: BytesMut::new(),
            repl: ReplRenewal::Pending,
            inherited: None,
            clock_late: Duration::ZERO,
        };
        let told = Instant::now();
        agent.send(&Request::Renew(renewal(identity)?));
        match agent.next_event().await? {
            Event::Hello { protocol: PROTOCOL } => {}
            Event::Hello { protocol } => return Err(AgentError::Protocol { theirs: protocol }),
            _ => return Err(AgentError::Unexpected("it did not say hello")),
        }
        match agent.next_event().await? {
            // A pending REPL is busy with code from before the fork. It renews before anything new runs.
            Event::Renewed { repl, inherited } => {
                Ok(AgentConnection { repl, inherited, clock_late: told.elapsed(), ..agent })
            }
            _ => Err(AgentError::Unexpected("it did not confirm its renewal")),
        }
    }

    /// Tells the guest the time until it has come fast enough. Before anything else is asked of it.
    pub async fn settle_clock(&mut self) -> Result<(), AgentError> {
        for _ in 0..CLOCK_ATTEMPTS_MAX {
            if self.clock_late <= CLOCK_LATE_MAX {
                break;
            }
            let told = Instant::now();
            self.send(&Request::SetClock { unix_time_ns: unix_time_ns() });
            self.expect_clock_set().await?;
            self.clock_late = told.elapsed();
        }
        Ok(())
    }

    /// What the guest has inherited may end at any moment, so also before the answer.
    async fn expect_clock_set(&mut self) -> Result<(), AgentError> {
        loop {
            match self.next_event().await? {
                Event::ClockSet => return Ok(()),
                Event::Exited { exec: ExecId::INHERITED, .. } if self.inherited.take().is_some() => {}
                _ => return Err(AgentError::Unexpected("it did not set its clock")),
            }
        }
    }

    /// The REPL was renewed with everything else.
    pub fn is_renewed(&self) -> bool {
        self.repl == ReplRenewal::Done
    }

    /// What runs in the guest since before it was copied, told once.
    pub fn take_inherited(&mut self) -> Option<Inherited> {
        self.inherited.take()
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

    /// The next event, unless it says that the agent failed. May be dropped and called again.
    pub async fn next_event(&mut self) -> Result<Event, AgentError> {
        loop {
            if self.outgoing.len() > OUTGOING_LEN_MAX {
                return Err(AgentError::NotReading);
            }
            match self.frames.next_message()? {
                Some(Event::Failed { message }) => {
                    return Err(AgentError::Failed { message: printable(&message) });
                }
                Some(event) => return Ok(event),
                None => {}
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

fn renewal(identity: &GuestIdentity) -> Result<Renewal, AgentError> {
    let mut entropy = vec![0; ENTROPY_LEN];
    getrandom::fill(&mut entropy)?;
    let GuestIdentity { hostname, network } = identity.clone();
    Ok(Renewal { entropy, unix_time_ns: unix_time_ns(), hostname, network })
}

fn unix_time_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for AgentConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentConnection").field("outgoing_len", &self.outgoing.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_wire::guest::{ExecContext, ExecEnd, Language};

    fn identity() -> GuestIdentity {
        GuestIdentity { hostname: "sbx-1".to_owned(), network: None }
    }

    /// An agent that says these things and takes nothing.
    async fn renew_with(says: &[Event]) -> Result<AgentConnection, AgentError> {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        for event in says {
            theirs.write_all(&encode_frame(event)).await.unwrap();
        }
        theirs.shutdown().await.unwrap();
        AgentConnection::renew(Box::new(ours), &identity()).await
    }

    #[tokio::test]
    async fn only_a_confirmed_renewal_is_a_connection() {
        let hello = Event::Hello { protocol: PROTOCOL };
        let renewed = Event::Renewed { repl: ReplRenewal::Done, inherited: None };
        assert!(renew_with(&[hello.clone(), renewed.clone()]).await.is_ok());
        assert!(matches!(renew_with(std::slice::from_ref(&hello)).await, Err(AgentError::Closed)));
        assert!(matches!(
            renew_with(&[hello.clone(), Event::Pong { token: 1 }]).await,
            Err(AgentError::Unexpected(_))
        ));
        assert!(matches!(
            renew_with(&[hello, Event::Failed { message: "no pool\nat all".into() }]).await,
            Err(AgentError::Failed { message }) if message == "no poolat all"
        ));
        let other = Event::Hello { protocol: PROTOCOL + 1 };
        assert!(matches!(renew_with(&[other, renewed]).await, Err(AgentError::Protocol { .. })));
    }

    #[tokio::test]
    async fn inherited_code_may_end_before_the_clock_is_set_but_only_once() {
        let inherited =
            Inherited { language: Language::Python, excerpt: String::new(), ran_ms: 0, timeout_ms: None };
        let greeting = [
            Event::Hello { protocol: PROTOCOL },
            Event::Renewed { repl: ReplRenewal::Done, inherited: Some(inherited) },
        ];
        let exited = Event::Exited { exec: ExecId::INHERITED, exit_code: 0, end: ExecEnd::Finished };
        for (ends, is_well) in [(0, true), (1, true), (2, false)] {
            let says = greeting.iter().cloned().chain(vec![exited.clone(); ends]).chain([Event::ClockSet]);
            let mut agent = renew_with(&says.collect::<Vec<_>>()).await.unwrap();
            agent.clock_late = Duration::MAX;
            assert_eq!(agent.settle_clock().await.is_ok(), is_well, "{ends}");
            assert_eq!(agent.take_inherited().is_some(), ends == 0, "{ends}");
        }
    }

    #[tokio::test]
    async fn an_agent_that_reads_nothing_is_given_up() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(&encode_frame(&Event::Hello { protocol: PROTOCOL })).await.unwrap();
        theirs
            .write_all(&encode_frame(&Event::Renewed { repl: ReplRenewal::Done, inherited: None }))
            .await
            .unwrap();
        let mut agent = AgentConnection::renew(Box::new(ours), &identity()).await.unwrap();
        let code = "x".repeat(CODE_QUEUED_LEN_MAX / 2);
        let language = Language::Python;
        for exec in 0..3 {
            assert!(agent.next_event().now_or_never().is_none(), "it may take its time");
            let context = ExecContext::default();
            agent.send(&Request::Exec {
                exec: ExecId(exec),
                language,
                code: code.clone(),
                context,
                announce: false,
            });
        }
        assert!(matches!(agent.next_event().await, Err(AgentError::NotReading)));
    }

    #[tokio::test]
    async fn a_request_longer_than_the_stream_takes_is_sent_while_events_are_read() {
        let (ours, theirs) = tokio::io::duplex(64);
        let (mut read, mut write) = tokio::io::split(theirs);
        write.write_all(&encode_frame(&Event::Hello { protocol: PROTOCOL })).await.unwrap();
        write
            .write_all(&encode_frame(&Event::Renewed { repl: ReplRenewal::Done, inherited: None }))
            .await
            .unwrap();
        let received = tokio::spawn(async move {
            let mut bytes = Vec::new();
            read.read_to_end(&mut bytes).await.unwrap();
            bytes
        });
        let mut agent = AgentConnection::renew(Box::new(ours), &identity()).await.unwrap();
        let code = "x".repeat(10_000);
        let request = Request::Exec {
            exec: ExecId(1),
            language: Language::Python,
            code,
            context: ExecContext::default(),
            announce: false,
        };
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

//! The agent of a sandbox, whichever it is: when one dies, the guest's process 1 starts another, and hostd
//! connects to that. Each is renewed anew; what does not confirm it is not used.

use super::agent::{AgentConnection, AgentError, GuestIdentity};
use crate::vmm::Machine;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use podflare_wire::guest::{AGENT_PORT, Event, Request};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long the next agent may take to answer, and the pause between two attempts to reach it.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Agents that may die within so long. More of them are no accident.
const DEATHS_MAX: usize = 3;
const DEATHS_WITHIN: Duration = Duration::from_secs(60);

/// What an agent has sent, or what became of it.
#[derive(Debug)]
pub enum Said {
    Event(Event),
    /// There is a new one, which knows of nothing that was asked of the one before.
    Restarted {
        renewed: bool,
    },
}

pub struct Agent {
    machine: Arc<dyn Machine>,
    identity: GuestIdentity,
    stream: Stream,
    /// When the last agents have died.
    deaths: VecDeque<Instant>,
    incarnation: u32,
}

enum Stream {
    Open(AgentConnection),
    /// The requests are for the agent to come.
    Opening(BoxFuture<'static, Result<AgentConnection, AgentError>>, Vec<Request>),
}

impl Agent {
    pub fn new(machine: Arc<dyn Machine>, identity: GuestIdentity, connection: AgentConnection) -> Agent {
        let (stream, deaths) = (Stream::Open(connection), VecDeque::new());
        Agent { machine, identity, stream, deaths, incarnation: 0 }
    }

    /// Which agent gets what is sent now.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    pub fn send(&mut self, request: Request) {
        match &mut self.stream {
            Stream::Open(connection) => connection.send(&request),
            Stream::Opening(_, requests) => requests.push(request),
        }
    }

    /// What happens next. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Said, AgentError> {
        loop {
            match &mut self.stream {
                Stream::Open(connection) => match connection.next_event().await {
                    Ok(event) => return Ok(Said::Event(event)),
                    Err(error @ (AgentError::Closed | AgentError::Io(_))) => self.await_next(error)?,
                    Err(error) => return Err(error),
                },
                Stream::Opening(connection, requests) => {
                    let mut connection = connection.await?;
                    for request in requests.drain(..) {
                        connection.send(&request);
                    }
                    let renewed = connection.is_renewed();
                    self.stream = Stream::Open(connection);
                    return Ok(Said::Restarted { renewed });
                }
            }
        }
    }

    /// Waits for another agent after this death, unless there were too many.
    fn await_next(&mut self, death: AgentError) -> Result<(), AgentError> {
        let now = Instant::now();
        self.deaths.retain(|at| now.duration_since(*at) < DEATHS_WITHIN);
        if self.deaths.len() == DEATHS_MAX {
            return Err(death);
        }
        self.deaths.push_back(now);
        self.incarnation += 1;
        let coming = connect_in_time(self.machine.clone(), self.identity.clone());
        self.stream = Stream::Opening(coming.boxed(), Vec::new());
        Ok(())
    }
}

async fn connect_in_time(
    machine: Arc<dyn Machine>,
    identity: GuestIdentity,
) -> Result<AgentConnection, AgentError> {
    timeout(RESTART_TIMEOUT, connect(&*machine, &identity)).await.unwrap_or(Err(AgentError::NotRestarted))
}

async fn connect(machine: &dyn Machine, identity: &GuestIdentity) -> Result<AgentConnection, AgentError> {
    loop {
        match AgentConnection::renew(machine.connect(AGENT_PORT)?, identity).await {
            // It does not listen yet.
            Err(AgentError::Closed | AgentError::Io(_)) => sleep(ATTEMPT_PAUSE).await,
            Err(error) => return Err(error),
            Ok(mut connection) => {
                connection.settle_clock().await?;
                return Ok(connection);
            }
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

//! Copies of a machine, each made its own before anyone gets it.
//!
//! The source is forked once, whatever the count: the frozen twin makes the other copies and becomes
//! the last one itself. All commands are on their way before the first answer is waited for.

use super::agent::{AgentConnection, AgentError};
use crate::chain::chain;
use crate::phases::Phases;
use crate::vmm::{Fork, ForkTimes, GuestStream, Machine, Pending, ThawTimes, VmmError};
use futures_util::future::{BoxFuture, try_join_all};
use futures_util::{FutureExt, TryFutureExt};
use podflare_api::id::SandboxId;
use podflare_wire::guest::AGENT_PORT;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long copies may take, at the first attempt and at the second. Clients wait for their turn before
/// that; the published SDK waits 30 s for a create and 60 s for a fork.
pub type Limits = [Duration; 2];
pub const CREATE_LIMITS: Limits = [Duration::from_secs(8), Duration::from_secs(10)];
pub const FORK_LIMITS: Limits = [Duration::from_secs(15), Duration::from_secs(30)];
/// Nobody waits.
pub const POOL_LIMITS: Limits = FORK_LIMITS;

/// Digits of a sandbox's id in its guest's hostname.
const HOSTNAME_DIGITS: usize = 12;

/// A running copy whose guest has confirmed that it is its own.
#[derive(Debug)]
pub struct OwnCopy {
    pub id: SandboxId,
    pub machine: Arc<dyn Machine>,
    pub agent: AgentConnection,
}

/// What the slowest copy took in each phase; the pause is all that the source has stood still.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyTimes {
    fork: ForkTimes,
    thaw: ThawTimes,
    renew: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("The machine ended before it was copied")]
    SourceEnded,
    #[error("Could not copy the machine")]
    Vmm(#[from] VmmError),
    #[error("A copy was not made its own, so it was ended")]
    Renew(#[from] AgentError),
    #[error("A copy did not answer within {} s, so it was ended", limit.as_secs())]
    Timeout { limit: Duration },
}

impl CopyError {
    /// The copy died or stood still, and nobody has refused anything.
    fn is_of_first_moments(&self) -> bool {
        match self {
            CopyError::Timeout { .. } => true,
            CopyError::Renew(error) => matches!(error, AgentError::Closed | AgentError::Io(_)),
            CopyError::Vmm(error) => matches!(error, VmmError::Ended),
            CopyError::SourceEnded => false,
        }
    }

    fn of_source(error: VmmError) -> CopyError {
        match error {
            VmmError::Ended => CopyError::SourceEnded,
            error => CopyError::Vmm(error),
        }
    }
}

/// Makes `count` copies, or none. Copies that are not returned end.
///
/// A copy's guest can die or stand still in its first moments, as any machine can. Nobody has it yet, so
/// all copies are made once more, of a later moment. What the source or the agent refuses is final.
pub async fn copy(
    source: &dyn Machine,
    count: u32,
    limits: Limits,
) -> Result<(Vec<OwnCopy>, CopyTimes), CopyError> {
    let [first, second] = limits;
    let mut pause = Duration::ZERO;
    let (copies, mut times) = match attempt(source, count, first, &mut pause).await {
        Err(error) if error.is_of_first_moments() => {
            tracing::warn!(error = %chain(&error), "Making the copies once more");
            attempt(source, count, second, &mut pause).await?
        }
        result => result?,
    };
    times.fork.pause = pause;
    Ok((copies, times))
}

async fn attempt(
    source: &dyn Machine,
    count: u32,
    limit: Duration,
    pause: &mut Duration,
) -> Result<(Vec<OwnCopy>, CopyTimes), CopyError> {
    let starting = start(source, count, pause)?;
    let settled = async {
        let mut settled = try_join_all(starting.into_iter().map(Starting::settle)).await?;
        // One by one: the others stand by, and so the time is on its way no longer than it must.
        for (copy, _) in &mut settled {
            copy.agent.settle_clock().await?;
        }
        Ok::<_, CopyError>(settled)
    };
    let settled = tokio::time::timeout(limit, settled).await.map_err(|_| CopyError::Timeout { limit })??;
    let mut slowest = CopyTimes::default();
    let mut copies = Vec::with_capacity(settled.len());
    for (copy, times) in settled {
        slowest = slowest.max(times);
        copies.push(copy);
    }
    Ok((copies, slowest))
}

/// Sends all commands. The source's pause is added to `pause` as soon as it is known.
fn start<'a>(
    source: &dyn Machine,
    count: u32,
    pause: &'a mut Duration,
) -> Result<Vec<Starting<'a>>, CopyError> {
    let twin = source.fork().map_err(CopyError::of_source)?;
    let forked = async {
        let times = twin.done.await.map_err(CopyError::of_source)?;
        *pause += times.pause;
        Ok(times)
    };
    // A machine serves its commands in order: the twin must be told to thaw after it has been copied.
    let mut starting = (1..count)
        .map(|_| {
            let Fork { copy, done } = twin.copy.fork()?;
            Starting::new(copy, done.map_err(CopyError::from).boxed())
        })
        .collect::<Result<Vec<_>, VmmError>>()?;
    starting.push(Starting::new(twin.copy, forked.boxed())?);
    Ok(starting)
}

struct Starting<'a> {
    machine: Arc<dyn Machine>,
    stream: Box<dyn GuestStream>,
    forked: BoxFuture<'a, Result<ForkTimes, CopyError>>,
    thawed: Pending<ThawTimes>,
}

impl<'a> Starting<'a> {
    fn new(
        machine: Arc<dyn Machine>,
        forked: BoxFuture<'a, Result<ForkTimes, CopyError>>,
    ) -> Result<Starting<'a>, VmmError> {
        let stream = machine.connect(AGENT_PORT)?;
        let thawed = machine.thaw();
        Ok(Starting { machine, stream, forked, thawed })
    }

    async fn settle(self) -> Result<(OwnCopy, CopyTimes), CopyError> {
        let fork = self.forked.await?;
        let thaw = self.thawed.await?;
        let runs = Instant::now();
        let id = SandboxId::random();
        // The clock that the renewal carries is read now: any sooner, and the guest's would be late by
        // what its thaw has taken.
        let agent = AgentConnection::renew(self.stream, &hostname(&id)).await?;
        let copy = OwnCopy { id, machine: self.machine, agent };
        Ok((copy, CopyTimes { fork, thaw, renew: runs.elapsed() }))
    }
}

pub(super) fn hostname(id: &SandboxId) -> String {
    let digits = id.as_str().rsplit('_').next().unwrap_or_default();
    format!("sbx-{}", digits.get(..HOSTNAME_DIGITS).unwrap_or(digits))
}

impl CopyTimes {
    fn max(self, other: CopyTimes) -> CopyTimes {
        CopyTimes {
            fork: ForkTimes {
                pause: self.fork.pause.max(other.fork.pause),
                save: self.fork.save.max(other.fork.save),
                fork: self.fork.fork.max(other.fork.fork),
            },
            thaw: ThawTimes {
                build: self.thaw.build.max(other.thaw.build),
                restore: self.thaw.restore.max(other.thaw.restore),
                prefault: self.thaw.prefault.max(other.thaw.prefault),
            },
            renew: self.renew.max(other.renew),
        }
    }

    /// Adds the phases; a frozen source stands still anyway and has no pause.
    pub fn record(&self, phases: Phases) -> Phases {
        phases
            .with("pause", self.fork.pause)
            .with("save", self.fork.save)
            .with("fork", self.fork.fork)
            .with("build", self.thaw.build)
            .with("restore", self.thaw.restore)
            .with("prefault", self.thaw.prefault)
            .with("renew", self.renew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostname_is_a_name_that_a_host_may_have() {
        let id: SandboxId = "sbx_0f8fad5bd9cb469fa16570867728950e".parse().unwrap();
        assert_eq!(hostname(&id), "sbx-0f8fad5bd9cb");
    }
}

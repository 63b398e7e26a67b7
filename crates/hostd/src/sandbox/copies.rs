//! Copies of a machine, each made its own before anyone gets it.
//!
//! The source is forked once, whatever the count: the frozen twin makes the other copies and becomes
//! the last one itself. All forks are on their way before the first answer is waited for; the copies come to
//! life in turn, as many at once as the host has processors.

use super::admission::Admission;
use super::agent::{AgentConnection, AgentError, GuestIdentity};
use super::events::unix_time_ms;
use crate::chain::chain;
use crate::network::egress::Egress;
use crate::network::{Interface, Network, NetworkError};
use crate::phases::Phases;
use crate::vmm::{Fork, ForkTimes, GuestStream, Machine, Pending, ThawTimes, VmmError};
use futures_util::FutureExt;
use futures_util::future::{join_all, ready};
use podflare_api::id::SandboxId;
use podflare_wire::guest::AGENT_PORT;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

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
    pub interface: Option<Interface>,
    /// Milliseconds since 1970-01-01 UTC.
    pub forked_at_ms: u64,
}

/// What copies are made with: turns, and places in the network that let out so much.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    pub admission: &'a Admission,
    pub network: &'a Network,
    pub egress: &'a Egress,
}

/// What became of each copy.
pub type Outcomes = Vec<Result<OwnCopy, CopyError>>;

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
    #[error("A copy got no place in the network, so it was ended")]
    Network(#[from] NetworkError),
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
            CopyError::SourceEnded | CopyError::Network(_) => false,
        }
    }

    pub(crate) fn of_source(error: VmmError) -> CopyError {
        match error {
            VmmError::Ended => CopyError::SourceEnded,
            error => CopyError::Vmm(error),
        }
    }
}

/// Makes one copy.
pub async fn copy_one(
    source: &dyn Machine,
    limits: Limits,
    means: Means<'_>,
) -> Result<(OwnCopy, CopyTimes), CopyError> {
    let (mut outcomes, times) = copy(source, 1, limits, means).await?;
    let copy = outcomes.pop().unwrap_or(Err(CopyError::SourceEnded))?;
    Ok((copy, times))
}

/// Makes `count` copies, as far as that is possible. Copies that are dropped end.
///
/// A copy's guest can die or stand still in its first moments, as any machine can. Nobody has it yet, so
/// another is made in its place, of a later moment. What the source or the agent refuses is final.
pub async fn copy(
    source: &dyn Machine,
    count: u32,
    limits: Limits,
    means: Means<'_>,
) -> Result<(Outcomes, CopyTimes), CopyError> {
    let [first, second] = limits;
    let mut times = CopyTimes::default();
    let mut outcomes = match attempt(source, count, first, means, &mut times).await {
        Err(error) if error.is_of_first_moments() => {
            tracing::warn!(error = %chain(&error), "Making the copies once more");
            return Ok((attempt(source, count, second, means, &mut times).await?, times));
        }
        result => result?,
    };
    let is_lost = |(index, outcome): (usize, &Result<_, CopyError>)| {
        let error = outcome.as_ref().err().filter(|error| error.is_of_first_moments())?;
        tracing::warn!(error = %chain(error), "Making a copy once more");
        Some(index)
    };
    let lost: Vec<usize> = outcomes.iter().enumerate().filter_map(is_lost).collect();
    let (Some(&first_lost), Ok(count)) = (lost.first(), u32::try_from(lost.len())) else {
        return Ok((outcomes, times));
    };
    match attempt(source, count, second, means, &mut times).await {
        Ok(replacements) => {
            for (index, replacement) in lost.into_iter().zip(replacements) {
                outcomes[index] = replacement;
            }
        }
        // It stands for them all: the others keep the errors that they had.
        Err(error) => outcomes[first_lost] = Err(error),
    }
    Ok((outcomes, times))
}

/// Fails as a whole if the source cannot be forked. Only the pause of `times` adds up.
async fn attempt(
    source: &dyn Machine,
    count: u32,
    limit: Duration,
    means: Means<'_>,
    times: &mut CopyTimes,
) -> Result<Outcomes, CopyError> {
    let deadline = tokio::time::Instant::now() + limit;
    let Started { forked, copies } = start(source, count)?;
    let too_late = |_| CopyError::Timeout { limit };
    let forked = async {
        let fork = timeout_at(deadline, forked).await.map_err(too_late)?.map_err(CopyError::of_source)?;
        Ok::<_, CopyError>((fork, unix_time_ms()))
    };
    let settled = copies.into_iter().map(async |starting| {
        let settled = async { means.admission.bring_to_life(starting?.settle(means)).await };
        timeout_at(deadline, settled).await.map_err(too_late)?
    });
    let settled = async { Ok(join_all(settled).await) };
    let ((fork, forked_at_ms), settled) = tokio::try_join!(forked, settled)?;
    times.add_fork(fork);
    let mut outcomes = Vec::with_capacity(settled.len());
    for outcome in settled {
        outcomes.push(match outcome {
            Ok((mut settled, taken)) => {
                times.raise_to(taken);
                // One by one: the others stand by, and so the time is on its way no longer than it must.
                let clock = timeout_at(deadline, settled.agent.settle_clock()).await.map_err(too_late);
                clock.and_then(|set| set.map_err(CopyError::from)).map(|()| settled.own(forked_at_ms))
            }
            Err(error) => Err(error),
        });
    }
    Ok(outcomes)
}

/// Sends all forks.
fn start(source: &dyn Machine, count: u32) -> Result<Started, CopyError> {
    let twin = source.fork().map_err(CopyError::of_source)?;
    // A machine serves its commands in order: the twin must be told to thaw after it has been copied.
    let copies = (1..count).map(|_| {
        let Fork { copy, done } = twin.copy.fork()?;
        Starting::new(copy, done)
    });
    let mut copies: Vec<_> = copies.collect();
    copies.push(Starting::new(twin.copy, ready(Ok(ForkTimes::default())).boxed()));
    Ok(Started { forked: twin.done, copies })
}

/// The source's fork, and the copies, the twin last.
struct Started {
    forked: Pending<ForkTimes>,
    copies: Vec<Result<Starting, VmmError>>,
}

struct Starting {
    machine: Arc<dyn Machine>,
    stream: Box<dyn GuestStream>,
    forked: Pending<ForkTimes>,
}

/// A copy that has said that it is its own.
struct Settled {
    id: SandboxId,
    machine: Arc<dyn Machine>,
    agent: AgentConnection,
    interface: Option<Interface>,
}

impl Starting {
    fn new(machine: Arc<dyn Machine>, forked: Pending<ForkTimes>) -> Result<Starting, VmmError> {
        let stream = machine.connect(AGENT_PORT)?;
        Ok(Starting { machine, stream, forked })
    }

    async fn settle(self, means: Means<'_>) -> Result<(Settled, CopyTimes), CopyError> {
        let interface = means.network.interface(means.egress).await?;
        // On its way before the fork is answered.
        let thawed = self.machine.thaw(interface.as_ref().and_then(Interface::tap));
        let fork = self.forked.await?;
        let thaw = thawed.await?;
        let runs = Instant::now();
        let id = SandboxId::random();
        // The clock that the renewal carries is read now: any sooner, and the guest's would be late by
        // what its thaw has taken.
        let network = interface.as_ref().map(Interface::identity);
        let identity = GuestIdentity { hostname: hostname(&id), network };
        let agent = AgentConnection::renew(self.stream, &identity).await?;
        let settled = Settled { id, machine: self.machine, agent, interface };
        Ok((settled, CopyTimes { fork, thaw, renew: runs.elapsed() }))
    }
}

impl Settled {
    fn own(self, forked_at_ms: u64) -> OwnCopy {
        let Settled { id, machine, agent, interface } = self;
        OwnCopy { id, machine, agent, interface, forked_at_ms }
    }
}

pub(super) fn hostname(id: &SandboxId) -> String {
    let digits = id.as_str().rsplit('_').next().unwrap_or_default();
    format!("sbx-{}", digits.get(..HOSTNAME_DIGITS).unwrap_or(digits))
}

impl CopyTimes {
    /// What a fork of the source has cost it.
    pub(crate) fn of_fork(fork: ForkTimes) -> CopyTimes {
        CopyTimes { fork, ..CopyTimes::default() }
    }

    fn add_fork(&mut self, fork: ForkTimes) {
        let pause = self.fork.pause + fork.pause;
        self.raise_to(CopyTimes::of_fork(fork));
        self.fork.pause = pause;
    }

    fn raise_to(&mut self, other: CopyTimes) {
        let raise = |time: &mut Duration, other: Duration| *time = (*time).max(other);
        raise(&mut self.fork.pause, other.fork.pause);
        raise(&mut self.fork.stop, other.fork.stop);
        raise(&mut self.fork.save, other.fork.save);
        raise(&mut self.fork.fork, other.fork.fork);
        raise(&mut self.thaw.build, other.thaw.build);
        raise(&mut self.thaw.restore, other.thaw.restore);
        raise(&mut self.thaw.prefault, other.thaw.prefault);
        raise(&mut self.renew, other.renew);
    }

    /// Adds the phases; a frozen source stands still anyway and has no pause.
    pub fn record(&self, phases: Phases) -> Phases {
        phases
            .with("pause", self.fork.pause)
            .with("stop", self.fork.stop)
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

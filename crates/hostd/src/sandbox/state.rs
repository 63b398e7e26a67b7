//! When a sandbox is to end: pure rules over times that are passed in.

use podflare_api::id::{CheckpointId, SandboxId, SpaceId};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a sandbox may live and idle, and what becomes of it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub life: Duration,
    pub idle: Duration,
    /// It is frozen, and not ended.
    pub persistent: bool,
}

/// What is offered: values over the maxima are silently lowered.
#[derive(Debug, Clone, Copy)]
pub struct TermsOffered {
    pub default: Terms,
    pub max: Terms,
}

impl TermsOffered {
    pub fn lowered(&self, asked: Terms) -> Terms {
        Terms { life: asked.life.min(self.max.life), idle: asked.idle.min(self.max.idle), ..asked }
    }

    /// The terms for what was asked, in seconds; nothing is shorter than one.
    pub fn terms(&self, life_seconds: Option<u64>, idle_seconds: Option<u64>) -> Terms {
        let within = |asked: Option<u64>, default: Duration, max: Duration| {
            asked.map_or(default, |seconds| Duration::from_secs(seconds.max(1))).min(max)
        };
        Terms {
            life: within(life_seconds, self.default.life, self.max.life),
            idle: within(idle_seconds, self.default.idle, self.max.idle),
            persistent: self.default.persistent,
        }
    }
}

/// A sandbox's claim to exist: from when, on which terms, and how busy it is.
#[derive(Debug, Clone)]
pub struct Lease {
    pub terms: Terms,
    pub started: Instant,
    active: Instant,
    executions: usize,
    /// Forks and file operations under way.
    uses: usize,
    /// Clients at its terminals.
    attached: usize,
}

impl Lease {
    pub fn new(terms: Terms, now: Instant) -> Lease {
        Lease { terms, started: now, active: now, executions: 0, uses: 0, attached: 0 }
    }

    /// Something was done with the sandbox.
    fn touch(&mut self, now: Instant) {
        self.active = self.active.max(now);
    }

    /// The number of executions that wait or run has become this.
    pub fn set_executions(&mut self, executions: usize, now: Instant) {
        self.executions = executions;
        self.touch(now);
    }

    pub fn begin_use(&mut self, now: Instant) {
        self.uses += 1;
        self.touch(now);
    }

    pub fn end_use(&mut self, now: Instant) {
        self.uses = self.uses.saturating_sub(1);
        self.touch(now);
    }

    /// Somebody is at one of its terminals.
    pub fn attach(&mut self, now: Instant) {
        self.attached += 1;
        self.touch(now);
    }

    /// Whether it has been used since, or is.
    pub fn is_used_since(&self, then: Instant) -> bool {
        self.active > then || self.executions + self.uses + self.attached > 0
    }

    /// As if something had been done with it.
    pub fn renew(&mut self, now: Instant) {
        self.touch(now);
    }

    pub fn is_attached(&self) -> bool {
        self.attached > 0
    }

    pub fn detach(&mut self, now: Instant) {
        self.attached = self.attached.saturating_sub(1);
        self.touch(now);
    }

    /// Goes on with another sandbox's start and terms: an id keeps its lifetime when its machine is
    /// replaced.
    pub fn take_over(&mut self, terms: Terms, started: Instant, now: Instant) {
        self.terms = terms;
        self.started = started;
        self.touch(now);
    }

    /// When the sandbox ends if nothing more happens, and why. While it is executed in or used otherwise it
    /// is not idle.
    pub fn end(&self) -> (Instant, EndCause) {
        let life_end = self.started + self.terms.life;
        let idle_end = self.active + self.terms.idle;
        if self.executions + self.uses + self.attached == 0 && idle_end < life_end {
            (idle_end, EndCause::Idle(self.terms.idle))
        } else {
            (life_end, EndCause::LifeOver(self.terms.life))
        }
    }
}

/// Why a sandbox or a checkpoint ended, or an id stopped to name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndCause {
    Deleted,
    Idle(Duration),
    LifeOver(Duration),
    /// It goes on when this is resumed.
    Frozen(SpaceId),
    /// Its machine goes on under the parent's id.
    MergedInto(SandboxId),
    /// Another machine goes on under its id.
    ReplacedBy(SandboxId),
    /// A copy of the checkpoint goes on under its id.
    RestoredTo(CheckpointId),
    /// It was a checkpoint of this one.
    SandboxDeleted(SandboxId),
    MachineEnded(String),
    AgentLost(String),
    /// The pool had more members than it needs, or newer ones.
    Surplus,
    Shutdown,
}

impl EndCause {
    /// In one word.
    pub fn kind(&self) -> &'static str {
        match self {
            EndCause::Deleted | EndCause::SandboxDeleted(_) => "deleted",
            EndCause::Idle(_) => "idle",
            EndCause::LifeOver(_) => "lifetime",
            EndCause::Frozen(_) => "frozen",
            EndCause::MergedInto(_) | EndCause::ReplacedBy(_) => "merged",
            EndCause::RestoredTo(_) => "restored",
            EndCause::MachineEnded(_) => "machine",
            EndCause::AgentLost(_) => "agent",
            EndCause::Surplus => "surplus",
            EndCause::Shutdown => "shutdown",
        }
    }

    /// Its id goes on with another machine.
    pub fn is_replacement(&self) -> bool {
        matches!(self, EndCause::ReplacedBy(_) | EndCause::RestoredTo(_))
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndCause::Deleted => f.write_str("it was deleted"),
            EndCause::Idle(idle) => write!(f, "nothing was run in it for {} s", idle.as_secs()),
            EndCause::LifeOver(life) => write!(f, "its lifetime of {} s was over", life.as_secs()),
            EndCause::Frozen(space) => write!(f, "it was frozen as {space}"),
            EndCause::MergedInto(parent) => write!(f, "it was merged into {parent}"),
            EndCause::ReplacedBy(winner) => write!(f, "{winner} was merged into it"),
            EndCause::RestoredTo(checkpoint) => write!(f, "it was restored to {checkpoint}"),
            EndCause::SandboxDeleted(sandbox) => write!(f, "its sandbox {sandbox} was deleted"),
            EndCause::MachineEnded(ending) => f.write_str(ending),
            EndCause::AgentLost(reason) => write!(f, "its guest no longer answers: {reason}"),
            EndCause::Surplus => f.write_str("nobody needed it"),
            EndCause::Shutdown => f.write_str("the host is shutting down"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFFERED: TermsOffered = TermsOffered {
        default: Terms { life: Duration::from_secs(1800), idle: Duration::from_secs(300), persistent: false },
        max: Terms { life: Duration::from_secs(86_400), idle: Duration::from_secs(7200), persistent: true },
    };

    #[test]
    fn terms_default_and_are_lowered_to_the_maximum() {
        assert_eq!(OFFERED.terms(None, None), OFFERED.default);
        let longest = Terms { persistent: false, ..OFFERED.max };
        assert_eq!(OFFERED.terms(Some(u64::MAX), Some(u64::MAX)), longest);
        assert_eq!(OFFERED.terms(Some(0), Some(7)).life, Duration::from_secs(1));
        assert_eq!(OFFERED.terms(Some(0), Some(7)).idle, Duration::from_secs(7));
    }

    #[test]
    fn an_open_execution_keeps_a_sandbox_from_idling() {
        let start = Instant::now();
        let mut lease = Lease::new(OFFERED.default, start);
        assert_eq!(lease.end(), (start + OFFERED.default.idle, EndCause::Idle(OFFERED.default.idle)));
        lease.set_executions(1, start);
        assert_eq!(lease.end().1, EndCause::LifeOver(OFFERED.default.life));
        let later = start + Duration::from_secs(400);
        lease.set_executions(0, later);
        assert_eq!(lease.end().0, later + OFFERED.default.idle);
    }

    #[test]
    fn a_fork_or_a_file_operation_under_way_keeps_a_sandbox_from_idling() {
        let start = Instant::now();
        let mut lease = Lease::new(OFFERED.default, start);
        lease.begin_use(start);
        lease.begin_use(start);
        lease.end_use(start);
        assert_eq!(lease.end().1, EndCause::LifeOver(OFFERED.default.life));
        let later = start + Duration::from_secs(400);
        lease.end_use(later);
        assert_eq!(lease.end().0, later + OFFERED.default.idle);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Use,
        Executions(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Use), (0_usize..3).prop_map(Step::Executions)]
    }

    proptest! {
        #[test]
        fn nothing_prolongs_a_life_and_activity_never_shortens_one(
            steps in proptest::collection::vec((0_u64..1000, step()), 0..32)
        ) {
            let start = Instant::now();
            let mut lease = Lease::new(OFFERED.default, start);
            let mut now = start;
            for (seconds, step) in steps {
                now += Duration::from_secs(seconds);
                match step {
                    Step::Use => {
                        lease.begin_use(now);
                        lease.end_use(now);
                    }
                    Step::Executions(count) => lease.set_executions(count, now),
                }
                let (end, cause) = lease.end();
                prop_assert!(end <= start + OFFERED.default.life);
                if matches!(cause, EndCause::Idle(_)) {
                    prop_assert_eq!(end, now + OFFERED.default.idle);
                }
            }
        }
    }
}

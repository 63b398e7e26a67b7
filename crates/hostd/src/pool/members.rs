//! A pool's members and what it has counted: one plain lock, held for a push or a pop, never across an await.

use super::policy::{self, Demand, Levels};
use crate::sandbox::Sandbox;
use crate::sandbox::state::EndCause;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Refills whose mean is told.
const REFILLS_REMEMBERED: usize = 16;

#[derive(Debug)]
pub(super) struct Members {
    target: usize,
    wanted: usize,
    /// Oldest first.
    ready: VecDeque<Member>,
    starting: usize,
    demand: Demand,
    hits: u64,
    misses: u64,
    missed: Duration,
    refills: VecDeque<Duration>,
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Member {
    sandbox: Sandbox,
    made: Instant,
}

/// A pool's numbers at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    pub levels: Levels,
    pub hits: u64,
    pub misses: u64,
    /// What a copy took that was made on demand.
    pub on_demand_mean: Option<Duration>,
    /// What one of the last refills took.
    pub refill_mean: Option<Duration>,
}

impl Members {
    pub(super) fn new(target: usize) -> Members {
        Members {
            target,
            wanted: target,
            ready: VecDeque::new(),
            starting: 0,
            demand: Demand::default(),
            hits: 0,
            misses: 0,
            missed: Duration::ZERO,
            refills: VecDeque::new(),
            closed: false,
        }
    }

    /// Takes the oldest member that lives.
    pub(super) fn claim(&mut self, now: Instant) -> Option<Sandbox> {
        self.demand.note(now.into_std(), policy::ceiling(self.target));
        while let Some(Member { sandbox, .. }) = self.ready.pop_front() {
            if !sandbox.has_ended() {
                self.hits += 1;
                return Some(sandbox);
            }
        }
        None
    }

    pub(super) fn count_miss(&mut self, took: Duration) {
        self.misses += 1;
        self.missed += took;
    }

    /// Whether it was one of them.
    pub(super) fn forget(&mut self, sandbox: &Sandbox) -> bool {
        let before = self.ready.len();
        self.ready.retain(|member| !member.sandbox.is(sandbox));
        self.ready.len() < before
    }

    pub(super) fn drain(&mut self) -> Vec<Sandbox> {
        self.take_oldest(self.ready.len())
    }

    /// Takes the oldest members away.
    pub(super) fn take_oldest(&mut self, count: usize) -> Vec<Sandbox> {
        self.ready.drain(..count.min(self.ready.len())).map(|member| member.sandbox).collect()
    }

    pub(super) fn oldest_age(&self, now: Instant) -> Option<Duration> {
        self.ready.front().map(|member| now - member.made)
    }

    /// What the pool would have if memory did not count, and what it has.
    pub(super) fn demand(&mut self, now: Instant) -> (usize, usize) {
        let recent = self.demand.recent(now.into_std());
        let wanted = if self.closed { 0 } else { policy::wanted(self.target, recent) };
        (wanted, self.ready.len() + self.starting)
    }

    /// Says anew what the pool is to have.
    pub(super) fn set_wanted(&mut self, wanted: usize) -> Levels {
        self.wanted = if self.closed { 0 } else { wanted };
        self.levels()
    }

    pub(super) fn begin_start(&mut self) {
        self.starting += 1;
    }

    pub(super) fn fail_start(&mut self) {
        self.starting -= 1;
    }

    /// Takes what was started, unless it has ended since.
    pub(super) fn finish_start(&mut self, sandbox: Sandbox, took: Duration) {
        self.starting -= 1;
        if self.refills.len() == REFILLS_REMEMBERED {
            self.refills.pop_front();
        }
        self.refills.push_back(took);
        if self.closed {
            sandbox.end(EndCause::Surplus);
        } else if !sandbox.has_ended() {
            self.ready.push_back(Member { sandbox, made: Instant::now() });
        }
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            levels: self.levels(),
            hits: self.hits,
            misses: self.misses,
            on_demand_mean: mean(self.missed, self.misses),
            refill_mean: mean(self.refills.iter().sum(), self.refills.len() as u64),
        }
    }

    fn levels(&self) -> Levels {
        let Members { target, wanted, starting, .. } = *self;
        Levels { target, wanted, ready: self.ready.len(), starting }
    }
}

fn mean(total: Duration, count: u64) -> Option<Duration> {
    (count > 0).then(|| total.div_f64(count as f64))
}

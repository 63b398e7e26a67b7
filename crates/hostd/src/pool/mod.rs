//! Sandboxes that are ready before anyone asks: copies of the template, running, renewed, connected.

pub mod policy;

use crate::app::App;
use crate::chain::chain;
use crate::sandbox::Sandbox;
use crate::sandbox::copies::{CopyError, POOL_LIMITS};
use crate::sandbox::state::EndCause;
use crate::template::{Availability, Template};
use policy::Levels;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

#[derive(Debug)]
pub struct Pool {
    size: usize,
    /// A plain mutex: it is held for a push or a pop, never across an await.
    members: Mutex<Members>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Members {
    ready: VecDeque<Sandbox>,
    starting: usize,
    hits: u64,
    misses: u64,
    closed: bool,
}

/// A pool's numbers at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    pub levels: Levels,
    pub hits: u64,
    pub misses: u64,
}

impl Pool {
    pub fn new(size: usize) -> Pool {
        Pool { size, members: Mutex::default(), changed: Notify::new() }
    }

    /// Takes a living member, if there is one.
    pub fn claim(&self) -> Option<Sandbox> {
        let claimed = {
            let mut members = self.lock();
            let mut claimed = members.ready.pop_front();
            while claimed.as_ref().is_some_and(Sandbox::has_ended) {
                claimed = members.ready.pop_front();
            }
            members.hits += u64::from(claimed.is_some());
            claimed
        };
        self.changed.notify_one();
        claimed
    }

    /// A copy was made on demand.
    pub fn count_miss(&self) {
        self.lock().misses += 1;
    }

    /// A sandbox has ended, which may have been a member.
    pub fn forget(&self, sandbox: &Sandbox) {
        self.lock().ready.retain(|member| !member.is(sandbox));
        self.changed.notify_one();
    }

    /// Takes no more members, and gives those that there are.
    pub fn close(&self) -> Vec<Sandbox> {
        let mut members = self.lock();
        members.closed = true;
        members.ready.drain(..).collect()
    }

    pub fn counters(&self) -> Counters {
        let members = self.lock();
        let levels = Levels { size: self.size, ready: members.ready.len(), starting: members.starting };
        Counters { levels, hits: members.hits, misses: members.misses }
    }

    fn begin_start(&self) {
        self.lock().starting += 1;
    }

    fn fail_start(&self) {
        self.lock().starting -= 1;
    }

    /// Takes what was started, unless it has ended since.
    fn finish_start(&self, sandbox: Sandbox) {
        let mut members = self.lock();
        members.starting -= 1;
        if members.closed {
            sandbox.end(EndCause::Shutdown);
        } else if !sandbox.has_ended() {
            members.ready.push_back(sandbox);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool at its size for as long as it is polled.
pub async fn keep_filled(app: &Arc<App>) -> Infallible {
    let pool = &app.pool;
    let mut availability = app.watch_template();
    let mut clients = app.admission.watch_clients();
    let mut starts = JoinSet::new();
    let mut failures = 0;
    let mut retry_at = None;
    loop {
        if retry_at.is_none()
            && let Availability::Ready(template) = app.template()
        {
            for _ in 0..policy::to_start(pool.counters().levels) {
                let Some(turn) = app.admission.idle_turn() else { break };
                pool.begin_start();
                starts.spawn(start(app.clone(), template.clone(), turn));
            }
        }
        tokio::select! {
            () = pool.changed.notified() => {}
            // These have no end: the app holds the senders.
            _ = availability.changed() => {}
            _ = clients.changed() => {}
            Some(started) = starts.join_next() => match started.unwrap_or_else(|error| Err(error.into())) {
                Ok(()) => failures = 0,
                Err(error) => {
                    pool.fail_start();
                    failures += 1;
                    retry_at = Some(Instant::now() + policy::retry_after(failures));
                    tracing::warn!(error = %chain(&error), failures, "Could not make a sandbox for the pool");
                }
            },
            () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => retry_at = None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("The task that made it failed")]
    Task(#[from] JoinError),
}

/// Makes one member. It is in the pool, or ended, before this task can be cancelled again.
async fn start(app: Arc<App>, template: Arc<Template>, turn: OwnedSemaphorePermit) -> Result<(), StartError> {
    let (sandbox, _) = app.copy_template(&template, POOL_LIMITS).await?;
    drop(turn);
    app.pool.finish_start(sandbox);
    Ok(())
}

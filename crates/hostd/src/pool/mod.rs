//! Sandboxes that are ready before anyone asks: copies of the template, running, renewed, connected.
//!
//! [`policy`] says how many there are to be and when one may be made; this does it.

pub mod activity;
mod members;
pub mod policy;

use crate::app::App;
use crate::chain::chain;
use crate::network::egress::Egress;
use crate::sandbox::Sandbox;
use crate::sandbox::copies::{CopyError, POOL_LIMITS};
use crate::sandbox::state::EndCause;
use crate::template::{Availability, Template};
use activity::Activity;
use members::Members;
use policy::{Memory, Moment, Refill};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

pub use members::Counters;

/// For how long a reading of the host's memory is good.
const MEMORY_READING_AGE_MAX: Duration = Duration::from_secs(1);

/// How often the pool looks at demand and at the host's memory when nothing else makes it.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Pool {
    /// What somebody waits for, creates included.
    pub activity: Activity,
    members: Mutex<Members>,
    changed: Notify,
}

impl Pool {
    pub fn new(target: usize) -> Pool {
        Pool { activity: Activity::new(), members: Mutex::new(Members::new(target)), changed: Notify::new() }
    }

    /// Takes a living member, if there is one.
    pub fn claim(&self) -> Option<Sandbox> {
        let claimed = self.lock().claim(Instant::now());
        self.activity.touch();
        self.changed.notify_one();
        claimed
    }

    /// A copy was made on demand, and took so long.
    pub fn count_miss(&self, took: Duration) {
        self.lock().count_miss(took);
    }

    /// A sandbox has ended, which may have been a member.
    pub fn forget(&self, sandbox: &Sandbox) {
        self.lock().forget(sandbox);
        self.changed.notify_one();
    }

    /// Takes no more members, and gives those that there are.
    pub fn close(&self) -> Vec<Sandbox> {
        let mut members = self.lock();
        members.closed = true;
        members.drain()
    }

    pub fn counters(&self) -> Counters {
        self.lock().counters()
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool at its level for as long as it is polled.
pub async fn keep_filled(app: &Arc<App>) -> Infallible {
    let mut availability = app.watch_template();
    let mut clients = app.admission.watch_clients();
    let mut activity = app.pool.activity.watch();
    let mut keeper = Keeper::new(app.clone());
    loop {
        let look_at = keeper.look(Instant::now());
        tokio::select! {
            () = app.pool.changed.notified() => {}
            // These have no end: the app holds the senders.
            _ = availability.changed() => {}
            _ = clients.changed() => {}
            _ = activity.changed(), if keeper.short_since.is_some() => {}
            Some(started) = keeper.starts.join_next() => {
                keeper.take_start(started.unwrap_or_else(|error| Err(error.into())));
            }
            () = sleep_until(look_at) => {}
        }
    }
}

struct Keeper {
    app: Arc<App>,
    starts: JoinSet<Result<(), StartError>>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Since when members have been missing, or when the last one was started.
    short_since: Option<Instant>,
    surplus_ended: Option<Instant>,
    memory: Option<(Instant, Option<Memory>)>,
}

impl Keeper {
    fn new(app: Arc<App>) -> Keeper {
        let starts = JoinSet::new();
        Keeper {
            app,
            starts,
            failures: 0,
            retry_at: None,
            short_since: None,
            surplus_ended: None,
            memory: None,
        }
    }

    /// Makes and ends what is to be made and ended now. Says when to look again.
    fn look(&mut self, now: Instant) -> Instant {
        let app = self.app.clone();
        let memory = self.memory(now);
        let levels = app.pool.lock().set_wanted(now, memory);
        let last_ended = self.surplus_ended.map(|at| now - at);
        self.end_surplus(policy::surplus(levels, last_ended, self.moment(now)), now);
        let oldest = app.pool.lock().oldest_age(now);
        if oldest.is_some_and(|age| policy::is_too_old(levels, age, self.moment(now))) {
            self.end_oldest(1);
        }
        let next_look = now + LOOK_PAUSE;
        if let Some(retry_at) = self.retry_at {
            if now < retry_at {
                return retry_at;
            }
            self.retry_at = None;
        }
        let Availability::Ready(template) = app.template() else { return next_look };
        if levels.ready + levels.starting >= levels.wanted {
            self.short_since = None;
            return next_look;
        }
        self.short_since.get_or_insert(now);
        match policy::refill(levels, self.moment(now)) {
            Refill::Start(count) => self.start(&template, count, now),
            Refill::Wait(wait) => return now + wait,
            Refill::Rest => {}
        }
        next_look
    }

    fn memory(&mut self, now: Instant) -> Option<Memory> {
        match self.memory {
            Some((at, memory)) if now - at < MEMORY_READING_AGE_MAX => memory,
            _ => self.memory.insert((now, self.app.memory())).1,
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        let activity = self.app.pool.activity.now();
        Moment {
            busy: activity.executions >= self.app.admission.processors(),
            quiet_for: now.saturating_duration_since(activity.last),
            short_for: self.short_since.map_or(Duration::ZERO, |since| now - since),
            at_once_max: self.app.admission.turns_max() as usize,
        }
    }

    fn start(&mut self, template: &Arc<Template>, count: usize, now: Instant) {
        for _ in 0..count {
            // Clients come first.
            let Some(turn) = self.app.admission.idle_turn() else { return };
            self.app.pool.lock().begin_start();
            self.starts.spawn(start(self.app.clone(), template.clone(), turn));
            self.short_since = Some(now);
        }
    }

    fn take_start(&mut self, started: Result<(), StartError>) {
        let Err(error) = started else {
            self.failures = 0;
            return;
        };
        self.app.pool.lock().fail_start();
        self.failures += 1;
        self.retry_at = Some(Instant::now() + policy::retry_after(self.failures));
        tracing::warn!(error = %chain(&error), self.failures, "Could not make a sandbox for the pool");
    }

    fn end_surplus(&mut self, count: usize, now: Instant) {
        if count > 0 {
            self.surplus_ended = Some(now);
            self.end_oldest(count);
        }
    }

    fn end_oldest(&self, count: usize) {
        for member in self.app.pool.lock().take_oldest(count) {
            member.end(EndCause::Surplus);
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
    let begun = Instant::now();
    let (sandbox, _) = app.copy_template(&template, &Egress::On, POOL_LIMITS).await?;
    drop(turn);
    app.pool.lock().finish_start(sandbox, begun.elapsed());
    Ok(())
}

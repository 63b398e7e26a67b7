//! Sandboxes that are ready before anyone asks: copies of a template, running, renewed, connected.
//!
//! Each variant of a template has a pool. [`policy`] says how many members there are to be and when one may be made; one
//! keeper does it for all pools, so that none counts memory or a quiet moment that another has had.

pub mod activity;
mod members;
pub mod policy;

use crate::app::App;
use crate::chain::chain;
use crate::network::egress::Egress;
use crate::sandbox::Sandbox;
use crate::sandbox::copies::{CopyError, POOL_LIMITS};
use crate::sandbox::state::EndCause;
use crate::template::variant::Variant;
use crate::template::{Availability, Template};
use members::Members;
use policy::{Memory, Moment, Refill};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

pub use members::Counters;

/// For how long a reading of the host's memory is good.
const MEMORY_READING_AGE_MAX: Duration = Duration::from_secs(1);

/// How often the pool looks at demand and at the host's memory when nothing else makes it.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// The pool of one variant.
#[derive(Debug)]
pub struct Pool {
    members: Mutex<Members>,
    /// Wakes who keeps all pools.
    keeper: Arc<Notify>,
}

impl Pool {
    pub(crate) fn new(target: usize, keeper: Arc<Notify>) -> Pool {
        Pool { members: Mutex::new(Members::new(target)), keeper }
    }

    /// Takes a living member, if there is one.
    pub fn claim(&self) -> Option<Sandbox> {
        let claimed = self.lock().claim(Instant::now());
        self.wake();
        claimed
    }

    /// A copy was made on demand, and took so long.
    pub fn count_miss(&self, took: Duration) {
        self.lock().count_miss(took);
    }

    /// A sandbox has ended, which may have been a member.
    pub fn forget(&self, sandbox: &Sandbox) {
        if self.lock().forget(sandbox) {
            self.wake();
        }
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

    /// Has its keeper look at it: it, or what it is filled from, has changed.
    pub(crate) fn wake(&self) {
        self.keeper.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps all pools at their levels for as long as it is polled.
pub async fn keep_filled(app: &Arc<App>) -> Infallible {
    let mut clients = app.admission.watch_clients();
    let mut activity = app.activity.watch();
    let mut keeper = Keeper::new(app.clone());
    loop {
        let look_at = keeper.look(Instant::now());
        tokio::select! {
            () = app.templates.changed() => {}
            // These have no end: the app holds the senders.
            _ = clients.changed() => {}
            _ = activity.changed(), if keeper.is_short() => {}
            Some(started) = keeper.starts.join_next_with_id() => keeper.take_start(started),
            () = sleep_until(look_at) => {}
        }
    }
}

struct Keeper {
    app: Arc<App>,
    /// For each variant that there is.
    cares: Vec<Care>,
    starts: JoinSet<Result<(), StartError>>,
    /// Whose pool each of them is for.
    started_for: HashMap<task::Id, Arc<Variant>>,
    memory: Option<(Instant, Option<Memory>)>,
}

/// What the keeper knows of one pool.
struct Care {
    variant: Arc<Variant>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Since when members have been missing, or when the last one was started.
    short_since: Option<Instant>,
    surplus_ended: Option<Instant>,
}

impl Keeper {
    fn new(app: Arc<App>) -> Keeper {
        Keeper { app, cares: Vec::new(), starts: JoinSet::new(), started_for: HashMap::new(), memory: None }
    }

    fn is_short(&self) -> bool {
        self.cares.iter().any(|care| care.short_since.is_some())
    }

    /// Makes and ends what is to be made and ended now. Says when to look again.
    fn look(&mut self, now: Instant) -> Instant {
        self.care_for(self.app.templates.variants());
        let memory = self.memory(now);
        let demands = self.cares.iter().map(|care| care.variant.pool.lock().demand(now));
        let (wanted, members): (Vec<usize>, Vec<usize>) = demands.unzip();
        let shares = policy::share(&wanted, members.iter().sum(), memory);
        let looks = shares.into_iter().enumerate().map(|(index, share)| self.look_at(index, share, now));
        looks.min().unwrap_or(now + LOOK_PAUSE)
    }

    /// Those that are there, in their order: the first come first.
    fn care_for(&mut self, variants: Vec<Arc<Variant>>) {
        let mut former = std::mem::take(&mut self.cares);
        let care = |variant: Arc<Variant>| {
            let known = former.iter().position(|care| Arc::ptr_eq(&care.variant, &variant));
            known.map_or_else(|| Care::new(variant), |index| former.swap_remove(index))
        };
        self.cares = variants.into_iter().map(care).collect();
    }

    /// Brings one pool closer to what it is to have. Says when to look again.
    fn look_at(&mut self, index: usize, wanted: usize, now: Instant) -> Instant {
        let app = self.app.clone();
        let care = &mut self.cares[index];
        let levels = care.variant.pool.lock().set_wanted(wanted);
        let last_ended = care.surplus_ended.map(|at| now - at);
        care.end_surplus(policy::surplus(levels, last_ended, care.moment(&app, now)), now);
        let oldest = care.variant.pool.lock().oldest_age(now);
        if oldest.is_some_and(|age| policy::is_too_old(levels, age, care.moment(&app, now))) {
            care.end_oldest(1);
        }
        let next_look = now + LOOK_PAUSE;
        if let Some(retry_at) = care.retry_at {
            if now < retry_at {
                return retry_at;
            }
            care.retry_at = None;
        }
        let Availability::Ready(template) = care.variant.availability() else { return next_look };
        if levels.ready + levels.starting >= levels.wanted {
            care.short_since = None;
            return next_look;
        }
        care.short_since.get_or_insert(now);
        match policy::refill(levels, care.moment(&app, now)) {
            Refill::Start(count) => self.start(index, &template, count, now),
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

    fn start(&mut self, index: usize, template: &Arc<Template>, count: usize, now: Instant) {
        let care = &mut self.cares[index];
        for _ in 0..count {
            // Clients come first.
            let Some(turn) = self.app.admission.idle_turn() else { return };
            care.variant.pool.lock().begin_start();
            let start = start(self.app.clone(), care.variant.clone(), template.clone(), turn);
            self.started_for.insert(self.starts.spawn(start).id(), care.variant.clone());
            care.short_since = Some(now);
        }
    }

    fn take_start(&mut self, started: Result<(task::Id, Result<(), StartError>), JoinError>) {
        let (id, result) = match started {
            Ok(started) => started,
            Err(error) => (error.id(), Err(error.into())),
        };
        let Some(variant) = self.started_for.remove(&id) else { return };
        if result.is_err() {
            variant.pool.lock().fail_start();
        }
        let care = self.cares.iter_mut().find(|care| Arc::ptr_eq(&care.variant, &variant));
        let Some(care) = care else { return };
        match result {
            Ok(()) => care.failures = 0,
            Err(error) => care.fail(&error),
        }
    }
}

impl Care {
    fn new(variant: Arc<Variant>) -> Care {
        Care { variant, failures: 0, retry_at: None, short_since: None, surplus_ended: None }
    }

    fn moment(&self, app: &App, now: Instant) -> Moment {
        let activity = app.activity.now();
        Moment {
            busy: activity.executions >= app.admission.processors(),
            quiet_for: now.saturating_duration_since(activity.last),
            short_for: self.short_since.map_or(Duration::ZERO, |since| now - since),
            at_once_max: app.admission.turns_max() as usize,
        }
    }

    fn fail(&mut self, error: &StartError) {
        self.failures += 1;
        self.retry_at = Some(Instant::now() + policy::retry_after(self.failures));
        let template = self.variant.shape.template.as_str();
        tracing::warn!(template, error = %chain(error), self.failures, "Could not make a sandbox for the pool");
    }

    fn end_surplus(&mut self, count: usize, now: Instant) {
        if count > 0 {
            self.surplus_ended = Some(now);
            self.end_oldest(count);
        }
    }

    fn end_oldest(&self, count: usize) {
        for member in self.variant.pool.lock().take_oldest(count) {
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
async fn start(
    app: Arc<App>,
    variant: Arc<Variant>,
    template: Arc<Template>,
    turn: OwnedSemaphorePermit,
) -> Result<(), StartError> {
    let begun = Instant::now();
    let (sandbox, _) = app.copy_template(&template, &Egress::On, POOL_LIMITS).await?;
    drop(turn);
    variant.pool.lock().finish_start(sandbox, begun.elapsed());
    Ok(())
}

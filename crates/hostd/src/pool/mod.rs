//! Sandboxes that are ready before anyone asks: copies of the template, running, renewed, connected.

pub mod policy;

use crate::app::App;
use crate::chain::chain;
use crate::sandbox::Sandbox;
use crate::template::Availability;
use policy::Levels;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::task::JoinSet;

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
            match claimed {
                Some(_) => members.hits += 1,
                None => members.misses += 1,
            }
            claimed
        };
        self.changed.notify_one();
        claimed
    }

    /// A sandbox has ended, which may have been a member.
    pub fn forget(&self, sandbox: &Sandbox) {
        self.lock().ready.retain(|member| !member.is(sandbox));
        self.changed.notify_one();
    }

    pub fn drain(&self) -> Vec<Sandbox> {
        self.lock().ready.drain(..).collect()
    }

    pub fn counters(&self) -> Counters {
        let members = self.lock();
        let levels = Levels { size: self.size, ready: members.ready.len(), starting: members.starting };
        Counters { levels, hits: members.hits, misses: members.misses }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the pool at its size for as long as it is polled.
pub async fn keep_filled(app: &Arc<App>) -> Infallible {
    let pool = &app.pool;
    let mut availability = app.watch_template();
    let mut starts = JoinSet::new();
    let mut failures = 0;
    loop {
        if let Availability::Ready(template) = app.template() {
            for _ in 0..policy::to_start(pool.counters().levels) {
                let (app, template) = (app.clone(), template.clone());
                pool.lock().starting += 1;
                starts.spawn(async move { app.copy_template(&template).await });
            }
        }
        tokio::select! {
            () = pool.changed.notified() => {}
            // It has no end: the app holds the sender.
            _ = availability.changed() => {}
            Some(start) = starts.join_next() => {
                pool.lock().starting -= 1;
                match start {
                    Ok(Ok((sandbox, _))) => {
                        failures = 0;
                        pool.lock().ready.push_back(sandbox);
                    }
                    Ok(Err(error)) => {
                        failures += 1;
                        tracing::warn!(error = %chain(&error), failures, "Could not make a sandbox for the pool");
                        tokio::time::sleep(policy::retry_after(failures)).await;
                    }
                    Err(error) => tracing::error!(%error, "Making a sandbox for the pool failed"),
                }
            }
        }
    }
}

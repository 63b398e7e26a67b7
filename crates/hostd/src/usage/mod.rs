//! What keys use: noted once a minute and when a sandbox ends, so that a host that is killed forgets a minute at most.

pub mod meter;
mod rows;

use crate::app::App;
use crate::chain::chain;
use crate::network::driver::InterfaceId;
use crate::sandbox::Sandbox;
use crate::sandbox::events::unix_time_ms;
use crate::store::{Store, StoreError};
use crate::tenant::Tenant;
use meter::{Meter, Used};
use podflare_api::id::KeyId;
use podflare_api::usage::{USAGE_DAYS_MAX, UsageDay};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

const PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Usage {
    store: Store,
    /// What has not been noted yet. A plain mutex: held for look-ups and swaps, never across an await.
    due: Mutex<HashMap<Option<KeyId>, Used>>,
    /// Meters of sandboxes that have ended since the last minute, whose last traffic is not known yet, with whose they were.
    departed: Mutex<HashMap<InterfaceId, (Option<KeyId>, Meter)>>,
}

impl Usage {
    pub fn new(store: Store) -> Usage {
        Usage { store, due: Mutex::default(), departed: Mutex::default() }
    }

    /// Counts all sandboxes once a minute, for as long as it is polled.
    pub async fn keep(&self, app: &App) -> Infallible {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.count_all(app).await;
            self.note().await;
        }
    }

    async fn count_all(&self, app: &App) {
        let departed = std::mem::take(&mut *lock(&self.departed));
        let sandboxes = app.registry.all();
        for sandbox in &sandboxes {
            self.add(key_of(sandbox), sandbox.read_meter().unwrap_or_default());
        }
        let traffic = match app.network.usages().await {
            Ok(traffic) => traffic,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Sandboxes' traffic is counted later");
                return lock(&self.departed).extend(departed);
            }
        };
        for sandbox in &sandboxes {
            if let Some(traffic) = sandbox.interface().and_then(|interface| traffic.get(&interface.id())) {
                let used = sandbox.meter().read_traffic(*traffic);
                self.add(key_of(sandbox), used);
            }
        }
        for (id, (key, mut meter)) in departed {
            self.add(key, traffic.get(&id).map(|traffic| meter.read_traffic(*traffic)).unwrap_or_default());
        }
    }

    /// Counts what is left of a sandbox that has ended. Its traffic comes with the next minute: to ask for it takes a run of nft.
    pub fn count_last(&self, sandbox: &Sandbox) {
        let Some(used) = sandbox.read_meter() else { return };
        let key = key_of(sandbox);
        if let Some(interface) = sandbox.interface() {
            let meter = std::mem::take(&mut *sandbox.meter());
            lock(&self.departed).insert(interface.id(), (key.clone(), meter));
        }
        self.add(key, used);
    }

    fn add(&self, key: Option<KeyId>, used: Used) {
        if used != Used::default() {
            *lock(&self.due).entry(key).or_default() += used;
        }
    }

    /// Keeps what has been counted.
    pub async fn note(&self) {
        let due = std::mem::take(&mut *lock(&self.due));
        if due.is_empty() {
            return;
        }
        let (day, row) = (rows::day_of(unix_time_ms()), due.clone());
        if let Err(error) = self.store.run(move |db| rows::add(db, day, &row)).await {
            tracing::error!(error = %chain(&error), "Could not note what keys have used; it is noted later");
            due.into_iter().for_each(|(key, used)| self.add(key, used));
        }
    }

    /// The last days, today included, that a tenant may see.
    pub async fn days(&self, tenant: &Tenant, days: u32) -> Result<Vec<UsageDay>, StoreError> {
        let days = days.clamp(1, USAGE_DAYS_MAX);
        let first = rows::day_of(unix_time_ms()).saturating_sub(u64::from(days) - 1);
        let key = tenant.key().cloned();
        self.store.run(move |db| rows::since(db, first, key.as_ref())).await
    }
}

fn key_of(sandbox: &Sandbox) -> Option<KeyId> {
    sandbox.tenant().key().cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

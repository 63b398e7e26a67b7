//! What happens to sandboxes, in the order in which it was kept. Whoever follows reads it from the store, so that a slow reader
//! costs no memory, and one that comes back finds where it was.

mod lost;
pub mod rows;

use crate::chain::chain;
use crate::sandbox::events::unix_time_ms;
use crate::store::{Store, StoreError};
use crate::tenant::Tenant;
use podflare_api::event::{Happening, LifecycleEvent};
use podflare_api::id::KeyId;
use rows::New;
use std::convert::Infallible;
use tokio::sync::{Mutex, mpsc, watch};

/// Events that one transaction keeps.
const BATCH_MAX: usize = 256;

/// A handle to the journal; copies are the same one.
#[derive(Debug)]
pub struct Journal {
    store: Store,
    /// Unbounded, but each is a sandbox's beginning or end, of which there are never many.
    arrivals: mpsc::UnboundedSender<New>,
    /// Held by whoever keeps them.
    to_keep: Mutex<mpsc::UnboundedReceiver<New>>,
    /// The number of the last event that is kept.
    last: watch::Sender<u64>,
}

impl Journal {
    /// Goes on where a former host ended. What that had no time to tell is told now.
    pub fn open(store: Store) -> Result<Journal, StoreError> {
        let last = store.run_blocking(|db| lost::close(db, unix_time_ms()))?;
        let (arrivals, to_keep) = mpsc::unbounded_channel();
        Ok(Journal { store, arrivals, to_keep: Mutex::new(to_keep), last: watch::Sender::new(last) })
    }

    /// Takes note of something; it is kept within moments.
    pub fn record(&self, tenant: &Tenant, what: Happening) {
        // Nobody keeps events of a host that has shut down.
        self.arrivals.send(New { at_ms: unix_time_ms(), key: tenant.key().cloned(), what }).ok();
    }

    /// Keeps what is recorded, for as long as it is polled.
    pub async fn keep(&self) -> Infallible {
        let mut to_keep = self.to_keep.lock().await;
        let mut batch = Vec::new();
        loop {
            if to_keep.recv_many(&mut batch, BATCH_MAX).await == 0 {
                return std::future::pending().await;
            }
            self.keep_batch(std::mem::take(&mut batch)).await;
        }
    }

    /// Keeps what is left when the host shuts down and nobody records any more.
    pub async fn finish(&self) {
        let mut to_keep = self.to_keep.lock().await;
        let mut batch = Vec::new();
        while let Ok(new) = to_keep.try_recv() {
            batch.push(new);
        }
        self.keep_batch(batch).await;
    }

    async fn keep_batch(&self, batch: Vec<New>) {
        let count = batch.len();
        match self.store.run(move |db| rows::insert(db, &batch)).await {
            Ok(last) => drop(self.last.send_replace(last)),
            Err(error) => {
                tracing::error!(count, error = %chain(&error), "Could not keep events; they are lost");
            }
        }
    }

    /// Events after a number that a tenant may see, oldest first.
    pub async fn after(
        &self,
        tenant: &Tenant,
        seq: u64,
        max: u32,
    ) -> Result<Vec<LifecycleEvent>, StoreError> {
        self.of_key(tenant.key(), seq, max).await
    }

    /// Of one key, or of all.
    pub async fn of_key(
        &self,
        key: Option<&KeyId>,
        seq: u64,
        max: u32,
    ) -> Result<Vec<LifecycleEvent>, StoreError> {
        let key = key.cloned();
        self.store.run(move |db| rows::after(db, key.as_ref(), seq, max)).await
    }

    /// The number of the last event that is kept.
    pub fn last(&self) -> u64 {
        *self.last.borrow()
    }

    /// Resolves when there may be more than there was.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_api::id::SandboxId;

    fn closed() -> Happening {
        Happening::Closed { sandbox: SandboxId::random(), reason: "it was deleted".into() }
    }

    #[tokio::test]
    async fn events_are_kept_in_their_order_and_found_from_any_place_on() {
        let journal = Journal::open(Store::in_memory().unwrap()).unwrap();
        let operator = Tenant::operator();
        let all: Vec<Happening> = (0..3).map(|_| closed()).collect();
        for what in &all {
            journal.record(&operator, what.clone());
        }
        journal.finish().await;
        let found = journal.after(&operator, 0, 10).await.unwrap();
        assert_eq!(found.iter().map(|event| event.what.clone()).collect::<Vec<_>>(), all);
        let later = journal.after(&operator, found[0].seq, 1).await.unwrap();
        assert_eq!(later, found[1..2]);
        assert_eq!(*journal.watch().borrow(), found[2].seq);
    }

    #[tokio::test]
    async fn a_journal_goes_on_where_the_former_one_ended() {
        let store = Store::in_memory().unwrap();
        let former = Journal::open(store.clone()).unwrap();
        former.record(&Tenant::operator(), closed());
        former.finish().await;
        let journal = Journal::open(store).unwrap();
        assert_eq!(*journal.watch().borrow(), 1);
        journal.record(&Tenant::operator(), closed());
        journal.finish().await;
        assert_eq!(journal.after(&Tenant::operator(), 1, 10).await.unwrap()[0].seq, 2);
    }
}

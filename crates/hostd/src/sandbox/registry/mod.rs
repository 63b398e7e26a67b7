//! Which id names which sandbox or checkpoint, and what became of the ids that name none any more.

mod checkpoints;
mod ended;

use super::Sandbox;
use super::checkpoint::Checkpoint;
use super::state::EndCause;
use crate::tenant::Tenant;
use checkpoints::Checkpoints;
use ended::Ended;
use podflare_api::id::{CheckpointId, SandboxId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use checkpoints::{FindCheckpointError, KeepError};

#[derive(Debug, Default)]
pub struct Registry {
    /// A plain mutex: it is held for look-ups and swaps only, never across an await.
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    live: HashMap<SandboxId, Sandbox>,
    ended: Ended<SandboxId>,
    checkpoints: Checkpoints,
    closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("sandbox not found")]
    Unknown,
    #[error("sandbox not found: it ended {seconds_ago} s ago because {cause}")]
    Ended { seconds_ago: u64, cause: EndCause },
}

/// Why sandboxes are not registered.
#[derive(Debug, PartialEq, Eq)]
pub enum InsertError {
    /// One has ended already.
    Ended,
    /// The host is shutting down.
    Closed,
}

/// Why a sandbox does not take another's place.
#[derive(Debug, PartialEq, Eq)]
pub enum RestoreError {
    Heir(InsertError),
    Find(FindError),
}

impl From<InsertError> for RestoreError {
    fn from(error: InsertError) -> RestoreError {
        RestoreError::Heir(error)
    }
}

impl From<FindError> for RestoreError {
    fn from(error: FindError) -> RestoreError {
        RestoreError::Find(error)
    }
}

impl Registry {
    /// Registers sandboxes under their ids, all or none.
    pub fn insert(&self, sandboxes: &[Sandbox]) -> Result<(), InsertError> {
        let mut tables = self.lock();
        if tables.closed {
            return Err(InsertError::Closed);
        }
        // A task closes its queue before it retires its sandbox, which needs the lock held here.
        if sandboxes.iter().any(Sandbox::has_ended) {
            return Err(InsertError::Ended);
        }
        for sandbox in sandboxes {
            let id = sandbox.identity().id.clone();
            tables.live.insert(id, sandbox.clone());
        }
        Ok(())
    }

    /// The living sandbox of that name, as a client has written it.
    pub fn find(&self, id: &str) -> Result<Sandbox, FindError> {
        let id: SandboxId = id.parse().map_err(|_| FindError::Unknown)?;
        self.lock().find(&id).cloned()
    }

    /// Whether an id names, or has named, a sandbox that is there for this tenant.
    pub fn check_visible(&self, id: &str, tenant: &Tenant) -> Result<(), FindError> {
        let id: SandboxId = id.parse().map_err(|_| FindError::Unknown)?;
        let tables = self.lock();
        let live = tables.live.get(&id).map(Sandbox::tenant);
        let is_visible = match (&live, tables.ended.tenant(&id)) {
            (Some(owner), _) => tenant.sees(owner),
            (None, owner) => owner.is_some_and(|owner| tenant.sees(owner)),
        };
        if is_visible { Ok(()) } else { Err(FindError::Unknown) }
    }

    /// Whether a sandbox still goes by its id.
    pub fn names(&self, sandbox: &Sandbox) -> bool {
        let id = sandbox.identity().id.clone();
        self.lock().live.get(&id).is_some_and(|live| live.is(sandbox))
    }

    /// Takes an id away from its sandbox and ends it, with all checkpoints that go by this id.
    pub fn delete(&self, id: &str) {
        let Ok(id) = id.parse() else { return };
        let mut tables = self.lock();
        tables.delete_checkpoints_of(&id);
        if let Some(sandbox) = tables.live.remove(&id) {
            sandbox.end(EndCause::Deleted);
            tables.ended.remember(id, EndCause::Deleted, sandbox.tenant());
        }
    }

    /// Takes the id away from a sandbox that has ended, if it still has one.
    pub fn retire(&self, sandbox: &Sandbox, cause: &EndCause) {
        let mut tables = self.lock();
        let id = sandbox.identity().id.clone();
        if tables.live.get(&id).is_some_and(|live| live.is(sandbox)) {
            tables.live.remove(&id);
            tables.ended.remember(id, cause.clone(), sandbox.tenant());
        }
    }

    /// Puts the winner in the parent's place, in one step. Its checkpoints go with it, and the parent's stay.
    pub fn merge(&self, parent: &str, winner: &str) -> Result<(), FindError> {
        let parent: SandboxId = parent.parse().map_err(|_| FindError::Unknown)?;
        let winner: SandboxId = winner.parse().map_err(|_| FindError::Unknown)?;
        let mut tables = self.lock();
        let loser = tables.find(&parent)?.clone();
        let heir = tables.find(&winner)?.clone();
        let tenant = heir.tenant();
        tables.live.remove(&winner);
        tables.checkpoints.hand_over(&winner, &parent);
        tables.put_in_place(&loser, heir, EndCause::ReplacedBy(winner.clone()));
        tables.ended.remember(winner, EndCause::MergedInto(parent), tenant);
        Ok(())
    }

    /// Puts a sandbox that is not registered in another's place, in one step.
    pub fn restore(&self, id: &str, heir: &Sandbox, checkpoint: &CheckpointId) -> Result<(), RestoreError> {
        let id: SandboxId = id.parse().map_err(|_| FindError::Unknown)?;
        let mut tables = self.lock();
        if tables.closed {
            return Err(InsertError::Closed.into());
        }
        let loser = tables.find(&id)?.clone();
        // As in `insert`.
        if heir.has_ended() {
            return Err(InsertError::Ended.into());
        }
        tables.put_in_place(&loser, heir.clone(), EndCause::RestoredTo(checkpoint.clone()));
        Ok(())
    }

    /// Takes no more sandboxes and checkpoints, and gives those that there are.
    pub fn close(&self) -> (Vec<Sandbox>, Vec<Checkpoint>) {
        let mut tables = self.lock();
        tables.closed = true;
        (tables.live.values().cloned().collect(), tables.checkpoints.all())
    }

    /// All sandboxes that are there for a tenant, in no order.
    pub fn visible(&self, tenant: &Tenant) -> Vec<Sandbox> {
        self.lock().live.values().filter(|sandbox| tenant.sees(&sandbox.tenant())).cloned().collect()
    }

    /// All sandboxes, in no order.
    pub fn all(&self) -> Vec<Sandbox> {
        self.lock().live.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().live.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn find(&self, id: &SandboxId) -> Result<&Sandbox, FindError> {
        let sandbox = self.live.get(id).ok_or_else(|| self.missing(id))?;
        match sandbox.end_cause() {
            // It is about to be retired.
            Some(cause) => Err(FindError::Ended { seconds_ago: 0, cause: cause.clone() }),
            None => Ok(sandbox),
        }
    }

    fn missing(&self, id: &SandboxId) -> FindError {
        self.ended
            .find(id)
            .map_or(FindError::Unknown, |(seconds_ago, cause)| FindError::Ended { seconds_ago, cause })
    }

    /// Gives a sandbox's identity to another and ends it.
    fn put_in_place(&mut self, loser: &Sandbox, heir: Sandbox, cause: EndCause) {
        let identity = loser.identity().clone();
        let id = identity.id.clone();
        heir.take_over(identity);
        self.live.insert(id, heir);
        loser.end(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_id_names_no_sandbox() {
        let registry = Registry::default();
        let id = SandboxId::random();
        assert_eq!(registry.find(id.as_str()).unwrap_err(), FindError::Unknown);
        registry.lock().ended.remember(id.clone(), EndCause::Deleted, Tenant::operator());
        let error = registry.find(id.as_str()).unwrap_err();
        assert_eq!(error.to_string(), "sandbox not found: it ended 0 s ago because it was deleted");
        assert_eq!(registry.find("sbx_../etc").unwrap_err(), FindError::Unknown);
    }
}

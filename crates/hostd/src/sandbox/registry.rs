//! Which id names which sandbox, and what became of the ids that name none any more.

use super::Sandbox;
use super::state::EndCause;
use podflare_api::id::SandboxId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Ids of ended sandboxes that are remembered, for better answers.
const ENDED_REMEMBERED: usize = 1024;

#[derive(Debug, Default)]
pub struct Registry {
    /// A plain mutex: it is held for look-ups and swaps only, never across an await.
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    live: HashMap<SandboxId, Sandbox>,
    ended: HashMap<SandboxId, (Instant, EndCause)>,
    /// The keys of `ended`, oldest first.
    ended_order: VecDeque<SandboxId>,
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

    /// Takes an id away from its sandbox.
    pub fn remove(&self, id: &str, cause: &EndCause) -> Option<Sandbox> {
        let id: SandboxId = id.parse().ok()?;
        let mut tables = self.lock();
        let sandbox = tables.live.remove(&id)?;
        tables.remember(id, cause.clone());
        Some(sandbox)
    }

    /// Takes the id away from a sandbox that has ended, if it still has one.
    pub fn retire(&self, sandbox: &Sandbox, cause: &EndCause) {
        let mut tables = self.lock();
        let id = sandbox.identity().id.clone();
        if tables.live.get(&id).is_some_and(|live| live.is(sandbox)) {
            tables.live.remove(&id);
            tables.remember(id, cause.clone());
        }
    }

    /// Puts the winner in the parent's place, in one step. Gives the parent's machine's sandbox back.
    pub fn replace(&self, parent: &str, winner: &str) -> Result<Sandbox, FindError> {
        let parent: SandboxId = parent.parse().map_err(|_| FindError::Unknown)?;
        let winner: SandboxId = winner.parse().map_err(|_| FindError::Unknown)?;
        let mut tables = self.lock();
        let loser = tables.find(&parent)?.clone();
        let heir = tables.find(&winner)?.clone();
        tables.live.remove(&winner);
        let identity = loser.identity().clone();
        heir.take_over(identity);
        tables.live.insert(parent.clone(), heir);
        tables.remember(winner, EndCause::MergedInto(parent));
        Ok(loser)
    }

    /// Takes no more sandboxes, and gives those that there are.
    pub fn close(&self) -> Vec<Sandbox> {
        let mut tables = self.lock();
        tables.closed = true;
        tables.live.values().cloned().collect()
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
        self.ended.get(id).map_or(FindError::Unknown, |(at, cause)| FindError::Ended {
            seconds_ago: at.elapsed().as_secs(),
            cause: cause.clone(),
        })
    }

    fn remember(&mut self, id: SandboxId, cause: EndCause) {
        if self.ended.insert(id.clone(), (Instant::now(), cause)).is_none() {
            self.ended_order.push_back(id);
        }
        if self.ended_order.len() > ENDED_REMEMBERED
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_sandboxes_are_remembered_up_to_a_limit() {
        let registry = Registry::default();
        let ids: Vec<SandboxId> = (0..=ENDED_REMEMBERED).map(|_| SandboxId::random()).collect();
        for id in &ids {
            registry.lock().remember(id.clone(), EndCause::Deleted);
        }
        assert_eq!(registry.find(ids[0].as_str()).unwrap_err(), FindError::Unknown);
        let error = registry.find(ids[1].as_str()).unwrap_err();
        assert_eq!(error.to_string(), "sandbox not found: it ended 0 s ago because it was deleted");
        assert_eq!(registry.find("sbx_../etc").unwrap_err(), FindError::Unknown);
    }
}

//! The checkpoints of sandboxes, in the same tables: what ends, moves or replaces a sandbox settles what
//! becomes of its checkpoints in the same step.

use super::ended::Ended;
use super::{FindError, Registry, Tables};
use crate::sandbox::Sandbox;
use crate::sandbox::checkpoint::Checkpoint;
use crate::sandbox::state::EndCause;
use crate::tenant::Tenant;
use podflare_api::checkpoint::CHECKPOINTS_MAX;
use podflare_api::id::{CheckpointId, SandboxId};

#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// Oldest first. Few: each has one of the host's slots.
    live: Vec<Checkpoint>,
    ended: Ended<CheckpointId>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindCheckpointError {
    #[error("checkpoint not found")]
    Unknown,
    #[error("checkpoint not found: it ended {seconds_ago} s ago because {cause}")]
    Ended { seconds_ago: u64, cause: EndCause },
}

/// Why a checkpoint is not kept.
#[derive(Debug, PartialEq, Eq)]
pub enum KeepError {
    TooMany,
    /// It has ended already.
    Ended(EndCause),
    /// Its sandbox's id names nothing any more.
    NoSandbox(FindError),
    /// The host is shutting down.
    Closed,
}

impl Registry {
    /// Whether a sandbox may have one more checkpoint.
    pub fn has_room_for_checkpoint(&self, sandbox: &SandboxId) -> bool {
        self.lock().checkpoints.of(sandbox).count() < CHECKPOINTS_MAX
    }

    /// Registers a checkpoint of this sandbox, under whichever id the sandbox has now.
    pub fn keep(&self, checkpoint: &Checkpoint, source: &Sandbox) -> Result<(), KeepError> {
        let mut tables = self.lock();
        if tables.closed {
            return Err(KeepError::Closed);
        }
        let sandbox = source.identity().id.clone();
        // What has been put in the source's place meanwhile has its id, and with that its checkpoints.
        tables.find(&sandbox).map_err(KeepError::NoSandbox)?;
        // A task sets the cause before it retires its checkpoint, which needs the lock held here.
        if let Some(cause) = checkpoint.end_cause() {
            return Err(KeepError::Ended(cause.clone()));
        }
        if tables.checkpoints.of(&sandbox).count() >= CHECKPOINTS_MAX {
            return Err(KeepError::TooMany);
        }
        checkpoint.give_to(sandbox);
        tables.checkpoints.live.push(checkpoint.clone());
        Ok(())
    }

    /// The living checkpoint of that name, as a client has written it.
    pub fn find_checkpoint(&self, id: &str) -> Result<Checkpoint, FindCheckpointError> {
        let id: CheckpointId = id.parse().map_err(|_| FindCheckpointError::Unknown)?;
        self.lock().checkpoints.find(&id).cloned()
    }

    /// As [`Registry::check_visible`].
    pub fn check_checkpoint_visible(&self, id: &str, tenant: &Tenant) -> Result<(), FindCheckpointError> {
        let id: CheckpointId = id.parse().map_err(|_| FindCheckpointError::Unknown)?;
        let tables = self.lock();
        let live = tables.checkpoints.live.iter().find(|checkpoint| *checkpoint.id() == id);
        let owner = live.map(Checkpoint::tenant).or_else(|| tables.checkpoints.ended.tenant(&id));
        match owner.is_some_and(|owner| tenant.sees(owner)) {
            true => Ok(()),
            false => Err(FindCheckpointError::Unknown),
        }
    }

    /// All checkpoints that are there for a tenant, oldest first.
    pub fn visible_checkpoints(&self, tenant: &Tenant) -> Vec<Checkpoint> {
        let tables = self.lock();
        tables
            .checkpoints
            .live
            .iter()
            .filter(|checkpoint| tenant.sees(checkpoint.tenant()))
            .cloned()
            .collect()
    }

    /// A sandbox's checkpoints, oldest first. One that has ended may have some left.
    pub fn checkpoints_of(&self, sandbox: &str) -> Result<Vec<Checkpoint>, FindError> {
        let sandbox: SandboxId = sandbox.parse().map_err(|_| FindError::Unknown)?;
        let tables = self.lock();
        let checkpoints: Vec<_> = tables.checkpoints.of(&sandbox).cloned().collect();
        if checkpoints.is_empty() {
            tables.find(&sandbox)?;
        }
        Ok(checkpoints)
    }

    /// Takes the id away from a checkpoint and ends it.
    pub fn delete_checkpoint(&self, id: &str) {
        let Ok(id) = id.parse() else { return };
        self.lock().checkpoints.end_where(&EndCause::Deleted, |checkpoint| *checkpoint.id() == id);
    }

    /// Takes the id away from a checkpoint that has ended, if it still has one.
    pub fn retire_checkpoint(&self, id: &CheckpointId, cause: &EndCause) {
        self.lock().checkpoints.end_where(cause, |checkpoint| checkpoint.id() == id);
    }
}

impl Tables {
    /// Ends a sandbox's checkpoints, if it has any.
    pub(super) fn delete_checkpoints_of(&mut self, sandbox: &SandboxId) {
        let cause = EndCause::SandboxDeleted(sandbox.clone());
        self.checkpoints.end_where(&cause, |checkpoint| *checkpoint.sandbox() == *sandbox);
    }
}

impl Checkpoints {
    fn of<'a>(&'a self, sandbox: &'a SandboxId) -> impl Iterator<Item = &'a Checkpoint> {
        self.live.iter().filter(move |checkpoint| *checkpoint.sandbox() == *sandbox)
    }

    fn find(&self, id: &CheckpointId) -> Result<&Checkpoint, FindCheckpointError> {
        let Some(checkpoint) = self.live.iter().find(|checkpoint| checkpoint.id() == id) else {
            return Err(self.ended.find(id).map_or(FindCheckpointError::Unknown, |(seconds_ago, cause)| {
                FindCheckpointError::Ended { seconds_ago, cause }
            }));
        };
        match checkpoint.end_cause() {
            // It is about to be retired.
            Some(cause) => Err(FindCheckpointError::Ended { seconds_ago: 0, cause: cause.clone() }),
            None => Ok(checkpoint),
        }
    }

    /// Hands one sandbox's checkpoints over to another.
    pub(super) fn hand_over(&self, from: &SandboxId, to: &SandboxId) {
        for checkpoint in self.of(from) {
            checkpoint.give_to(to.clone());
        }
    }

    fn end_where(&mut self, cause: &EndCause, is_over: impl Fn(&Checkpoint) -> bool) {
        for checkpoint in self.live.extract_if(.., |checkpoint| is_over(checkpoint)) {
            checkpoint.end(cause.clone());
            self.ended.remember(checkpoint.id().clone(), cause.clone(), checkpoint.tenant().clone());
        }
    }

    pub(super) fn all(&self) -> Vec<Checkpoint> {
        self.live.clone()
    }
}

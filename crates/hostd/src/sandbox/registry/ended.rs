//! What became of ids that name nothing any more, for better answers. The oldest are forgotten.

use crate::sandbox::state::EndCause;
use crate::tenant::Tenant;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// Ids that are remembered, of each kind.
const ENDED_REMEMBERED: usize = 1024;

#[derive(Debug)]
pub(super) struct Ended<Id> {
    causes: HashMap<Id, Remembered>,
    /// The keys of `causes`, oldest first.
    order: VecDeque<Id>,
}

#[derive(Debug)]
struct Remembered {
    at: Instant,
    cause: EndCause,
    /// Whose it was.
    tenant: Tenant,
}

impl<Id> Default for Ended<Id> {
    fn default() -> Ended<Id> {
        Ended { causes: HashMap::new(), order: VecDeque::new() }
    }
}

impl<Id: Clone + Eq + Hash> Ended<Id> {
    /// How many seconds ago it ended, and why.
    pub(super) fn find(&self, id: &Id) -> Option<(u64, EndCause)> {
        self.causes.get(id).map(|ended| (ended.at.elapsed().as_secs(), ended.cause.clone()))
    }

    pub(super) fn tenant(&self, id: &Id) -> Option<&Tenant> {
        self.causes.get(id).map(|ended| &ended.tenant)
    }

    pub(super) fn remember(&mut self, id: Id, cause: EndCause, tenant: Tenant) {
        let remembered = Remembered { at: Instant::now(), cause, tenant };
        if self.causes.insert(id.clone(), remembered).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > ENDED_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.causes.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_remembered_up_to_a_limit() {
        let mut ended = Ended::default();
        for id in 0..=ENDED_REMEMBERED {
            ended.remember(id, EndCause::Deleted, Tenant::operator());
        }
        assert_eq!(ended.find(&0), None);
        assert_eq!(ended.find(&1), Some((0, EndCause::Deleted)));
    }
}

//! Sandboxes that ended with their host and had nobody to say so: they have begun, and nothing says that they ended.

use super::rows::{self, New};
use podflare_api::event::Happening;
use podflare_api::id::{KeyId, SandboxId};
use rusqlite::Transaction;
use std::collections::HashMap;

/// What they are said to have ended of.
const REASON: &str = "its host ended without a word";

/// Sandboxes that have begun and not ended, each with the number of its beginning.
#[derive(Debug, Default)]
struct Open(HashMap<SandboxId, (u64, Option<KeyId>)>);

impl Open {
    fn take(&mut self, seq: u64, key: Option<KeyId>, what: Happening) {
        match what {
            Happening::Created { sandbox, .. }
            | Happening::Forked { sandbox, .. }
            | Happening::Resumed { sandbox, .. } => drop(self.0.insert(sandbox, (seq, key))),
            Happening::Merged { winner: gone, .. }
            | Happening::Frozen { sandbox: gone, .. }
            | Happening::Closed { sandbox: gone, .. } => drop(self.0.remove(&gone)),
            Happening::Restored { .. } | Happening::Extended { .. } => {}
        }
    }

    /// The ends that are missing, in the order of the beginnings.
    fn ends(self, at_ms: u64) -> Vec<New> {
        let mut open: Vec<_> = self.0.into_iter().collect();
        open.sort_by_key(|(_, (seq, _))| *seq);
        let end = |(sandbox, (_, key))| New {
            at_ms,
            key,
            what: Happening::Closed { sandbox, reason: REASON.to_owned() },
        };
        open.into_iter().map(end).collect()
    }
}

/// Closes what a former host has left open. Gives the last event's number.
pub(super) fn close(db: &Transaction<'_>, at_ms: u64) -> rusqlite::Result<u64> {
    let mut open = Open::default();
    rows::each(db, |seq, key, what| open.take(seq, key, what))?;
    rows::insert(db, &open.ends(at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use podflare_api::id::SpaceId;

    #[test]
    fn what_has_not_ended_is_closed_once_in_the_order_of_its_beginning() {
        let store = Store::in_memory().unwrap();
        let [open, resumed, frozen, closed, winner, parent] = std::array::from_fn(|_| SandboxId::random());
        let key = KeyId::random();
        let space = SpaceId::random();
        let created =
            |sandbox: &SandboxId| Happening::Created { sandbox: sandbox.clone(), template: String::new() };
        let all = [
            created(&open),
            created(&frozen),
            created(&parent),
            Happening::Forked { sandbox: winner.clone(), parent: parent.clone(), checkpoint: None },
            Happening::Merged { sandbox: parent.clone(), winner },
            created(&closed),
            Happening::Closed { sandbox: closed, reason: String::new() },
            Happening::Frozen { sandbox: frozen, space: space.clone() },
            Happening::Resumed { sandbox: resumed.clone(), space },
        ];
        let news: Vec<New> = all.map(|what| New { at_ms: 1, key: Some(key.clone()), what }).into();
        store.run_blocking(move |db| rows::insert(db, &news)).unwrap();
        let last = store.run_blocking(|db| close(db, 2)).unwrap();
        assert_eq!(last, 12);
        assert_eq!(store.run_blocking(|db| close(db, 3)).unwrap(), last);
        let ends = store.run_blocking(move |db| rows::after(db, Some(&key), 9, 10)).unwrap();
        let expected =
            [open, parent, resumed].map(|sandbox| Happening::Closed { sandbox, reason: REASON.to_owned() });
        assert_eq!(ends.into_iter().map(|event| event.what).collect::<Vec<_>>(), expected);
    }
}

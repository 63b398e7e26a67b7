//! Events as rows of the store.

use podflare_api::event::{EVENTS_KEPT_MAX, EVENTS_LISTED_MAX, Happening, LifecycleEvent};
use podflare_api::id::KeyId;
use rusqlite::{Transaction, params};

/// An event that has no number yet.
#[derive(Debug)]
pub struct New {
    pub at_ms: u64,
    pub key: Option<KeyId>,
    pub what: Happening,
}

/// The number of the last event; 0 if there has been none.
pub fn last(db: &Transaction<'_>) -> rusqlite::Result<u64> {
    let sequence = "SELECT seq FROM sqlite_sequence WHERE name = 'events'";
    match db.query_row(sequence, [], |row| row.get(0)) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(0),
        last => last,
    }
}

/// Keeps events, forgets the oldest ones above the most, and gives the last one's number.
pub fn insert(db: &Transaction<'_>, events: &[New]) -> rusqlite::Result<u64> {
    let mut insert = db.prepare_cached("INSERT INTO events (at_ms, key, what) VALUES (?1, ?2, ?3)")?;
    for New { at_ms, key, what } in events {
        let what = serde_json::to_string(what)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        insert.execute(params![at_ms, key.as_ref().map(KeyId::as_str), what])?;
    }
    let last = last(db)?;
    let forget = "DELETE FROM events WHERE seq <= ?1";
    db.prepare_cached(forget)?.execute([last.saturating_sub(EVENTS_KEPT_MAX)])?;
    Ok(last)
}

/// Passes on all events that are known, oldest first.
pub fn each(
    db: &Transaction<'_>,
    mut take: impl FnMut(u64, Option<KeyId>, Happening),
) -> rusqlite::Result<()> {
    let mut select = db.prepare("SELECT seq, key, what FROM events ORDER BY seq")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (key, what): (Option<String>, String) = (row.get(1)?, row.get(2)?);
        // What a later version has kept is overlooked.
        if let Ok(what) = serde_json::from_str(&what) {
            take(row.get(0)?, key.and_then(|key| key.parse().ok()), what);
        }
    }
    Ok(())
}

/// Of one key, or of all.
pub fn after(
    db: &Transaction<'_>,
    key: Option<&KeyId>,
    seq: u64,
    max: u32,
) -> rusqlite::Result<Vec<LifecycleEvent>> {
    let select = "SELECT seq, at_ms, key, what FROM events WHERE seq > ?1 AND (?2 IS NULL OR key = ?2) ORDER BY seq LIMIT ?3";
    let mut select = db.prepare_cached(select)?;
    // SQLite's numbers end there.
    let seq = i64::try_from(seq).unwrap_or(i64::MAX);
    let rows = select.query_map(params![seq, key.map(KeyId::as_str), max.min(EVENTS_LISTED_MAX)], |row| {
        let (key, what): (Option<String>, String) = (row.get(2)?, row.get(3)?);
        Ok((row.get(0)?, row.get(1)?, key, what))
    })?;
    let mut events = Vec::new();
    for row in rows {
        let (seq, at_ms, key, what) = row?;
        // What a later version has kept is overlooked.
        let Ok(what) = serde_json::from_str(&what) else { continue };
        events.push(LifecycleEvent { seq, at_ms, what, key: key.and_then(|key| key.parse().ok()) });
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use podflare_api::id::SandboxId;

    #[test]
    fn the_oldest_events_are_forgotten_and_numbers_never_come_again() {
        let store = Store::in_memory().unwrap();
        let jump = "INSERT INTO events (seq, at_ms, key, what) VALUES (?1, 1, NULL, '{}')";
        store.run_blocking(move |db| db.execute(jump, [1])).unwrap();
        store.run_blocking(move |db| db.execute(jump, [EVENTS_KEPT_MAX])).unwrap();
        let what = Happening::Closed { sandbox: SandboxId::random(), reason: String::new() };
        let last = store.run_blocking(|db| insert(db, &[New { at_ms: 2, key: None, what }])).unwrap();
        assert_eq!(last, EVENTS_KEPT_MAX + 1);
        let count: u64 = store
            .run_blocking(|db| db.query_row("SELECT count(*) FROM events", [], |row| row.get(0)))
            .unwrap();
        assert_eq!(count, 2);
        // The other one is of no kind that is known.
        assert_eq!(store.run_blocking(|db| after(db, None, 0, 10)).unwrap().len(), 1);
    }

    #[test]
    fn a_key_is_told_of_its_own() {
        let store = Store::in_memory().unwrap();
        let [one, other] = [KeyId::random(), KeyId::random()];
        let news: Vec<New> = [&one, &other, &one]
            .map(|key| {
                let what = Happening::Created { sandbox: SandboxId::random(), template: "default".into() };
                New { at_ms: 1, key: Some(key.clone()), what }
            })
            .into();
        store.run_blocking(move |db| insert(db, &news)).unwrap();
        let seqs = |key: Option<KeyId>| {
            let events = store.run_blocking(move |db| after(db, key.as_ref(), 0, 10)).unwrap();
            events.iter().map(|event| event.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(Some(one)), [1, 3]);
        assert_eq!(seqs(Some(other)), [2]);
        assert_eq!(seqs(None), [1, 2, 3]);
    }
}

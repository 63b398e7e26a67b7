//! What keys have used, as rows of the store: one for each day and key.

use super::meter::Used;
use podflare_api::id::KeyId;
use podflare_api::usage::UsageDay;
use rusqlite::{Transaction, params};
use std::collections::HashMap;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The day that a time is on, in days since 1970-01-01.
pub(super) fn day_of(unix_ms: u64) -> u64 {
    unix_ms / DAY_MS
}

/// Adds to a day's rows.
pub(super) fn add(
    db: &Transaction<'_>,
    day: u64,
    used: &HashMap<Option<KeyId>, Used>,
) -> rusqlite::Result<()> {
    let add = "INSERT INTO usage (day, key, sandboxes, sandbox_ms, ram_mib_ms, executions, sent_bytes, received_bytes)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
        ON CONFLICT (day, key) DO UPDATE SET
            sandboxes = sandboxes + excluded.sandboxes,
            sandbox_ms = sandbox_ms + excluded.sandbox_ms,
            ram_mib_ms = ram_mib_ms + excluded.ram_mib_ms,
            executions = executions + excluded.executions,
            sent_bytes = sent_bytes + excluded.sent_bytes,
            received_bytes = received_bytes + excluded.received_bytes";
    let mut add = db.prepare_cached(add)?;
    for (key, used) in used {
        add.execute(params![
            day,
            key.as_ref().map_or("", KeyId::as_str),
            used.sandboxes,
            used.sandbox_ms,
            used.ram_mib_ms,
            used.executions,
            used.sent_bytes,
            used.received_bytes
        ])?;
    }
    Ok(())
}

/// From a day on, of one key or of all.
pub(super) fn since(db: &Transaction<'_>, day: u64, key: Option<&KeyId>) -> rusqlite::Result<Vec<UsageDay>> {
    let select = "SELECT date(day * 86400, 'unixepoch'), key, sandboxes, sandbox_ms / 1000, ram_mib_ms / 1000, executions,
            sent_bytes, received_bytes
        FROM usage WHERE day >= ?1 AND (?2 IS NULL OR key = ?2) ORDER BY day, key";
    let mut select = db.prepare_cached(select)?;
    let rows = select.query_map(params![day, key.map(KeyId::as_str)], |row| {
        let key: String = row.get(1)?;
        Ok(UsageDay {
            day: row.get(0)?,
            key: key.parse().ok(),
            sandboxes: row.get(2)?,
            sandbox_seconds: row.get(3)?,
            ram_mib_seconds: row.get(4)?,
            executions: row.get(5)?,
            sent_bytes: row.get(6)?,
            received_bytes: row.get(7)?,
        })
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_days_use_adds_up_for_each_key() {
        let store = Store::in_memory().unwrap();
        let key = KeyId::random();
        let used = |ms: u64| Used { sandboxes: 1, sandbox_ms: ms, ram_mib_ms: ms * 256, ..Used::default() };
        let minute = HashMap::from([(Some(key.clone()), used(1600)), (None, used(500))]);
        let (first, second) = (minute.clone(), minute);
        store.run_blocking(move |db| add(db, 20_780, &first)).unwrap();
        store.run_blocking(move |db| add(db, 20_780, &second)).unwrap();
        let all = store.run_blocking(|db| since(db, 0, None)).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].key.clone(), all[0].sandbox_seconds), (None, 1));
        let asked = key.clone();
        let own = store.run_blocking(move |db| since(db, 20_780, Some(&asked))).unwrap();
        assert_eq!(own.len(), 1);
        assert_eq!((own[0].day.as_str(), own[0].sandboxes, own[0].sandbox_seconds), ("2026-11-23", 2, 3));
        assert_eq!(own[0].ram_mib_seconds, 819);
        assert_eq!(store.run_blocking(|db| since(db, 20_781, None)).unwrap(), []);
    }
}

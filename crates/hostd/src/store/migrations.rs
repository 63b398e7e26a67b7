//! The database's form, as the steps that lead to it. A step that was released is never changed: another follows it.

use rusqlite::Connection;

const STEPS: [&str; 4] = [
    // Times are milliseconds since 1970-01-01 UTC.
    "CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        name TEXT,
        tier TEXT NOT NULL,
        -- SHA-256 of the whole key.
        hash BLOB NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER
    ) STRICT;",
    "CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        key TEXT,
        what TEXT NOT NULL
    ) STRICT;
    CREATE INDEX events_of_key ON events (key, seq);",
    "CREATE TABLE webhooks (
        id TEXT PRIMARY KEY,
        key TEXT,
        url TEXT NOT NULL,
        secret TEXT NOT NULL,
        -- Types, separated by blanks; all if there is none.
        events TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        told_seq INTEGER NOT NULL
    ) STRICT;",
    // A day is the days since 1970-01-01; the operator's own use is under the empty key.
    "CREATE TABLE usage (
        day INTEGER NOT NULL,
        key TEXT NOT NULL,
        sandboxes INTEGER NOT NULL,
        sandbox_ms INTEGER NOT NULL,
        ram_mib_ms INTEGER NOT NULL,
        executions INTEGER NOT NULL,
        sent_bytes INTEGER NOT NULL,
        received_bytes INTEGER NOT NULL,
        PRIMARY KEY (day, key)
    ) STRICT;",
];

pub(super) enum Migrated {
    Latest,
    TooNew { found: i64, known: i64 },
}

/// Brings an older form up to date, step by step, each whole or not at all.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<Migrated> {
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = i64::try_from(STEPS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Ok(Migrated::TooNew { found, known });
    }
    for (number, step) in (1_i64..).zip(STEPS).filter(|(number, _)| *number > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(Migrated::Latest)
}

//! What outlives hostd: one SQLite database, with one thread that writes and reads it.
//!
//! A job is one transaction: when its answer has come, it is on the disk; without an answer, it has happened or it has not. The
//! database is locked for as long as hostd runs, so that there are never two of it over the same data.

mod migrations;

use rusqlite::{Connection, OpenFlags, Transaction};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use tokio::sync::oneshot;

const FILE: &str = "podflare.db";

/// The modes of a database that survives a killed process and a cut of power: a log that is written ahead, and synced with each
/// transaction. The lock is kept, and so is a second hostd kept out.
const MODES: &str = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the database; copies are the same one. It closes with the last of them.
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("Could not make the folder {}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("Could not open the database {}", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("The database {} is in use: another hostd runs with this folder", path.display())]
    Locked { path: PathBuf },
    #[error(
        "The database {} is of a later version of this program (its form is {found}, the latest known here {known})",
        path.display()
    )]
    TooNew { path: PathBuf, found: i64, known: i64 },
    #[error("Could not start the thread of the database")]
    Thread(#[source] std::io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("The database refused it")]
    Sqlite(#[from] rusqlite::Error),
    #[error("The database has been closed")]
    Closed,
}

impl Store {
    /// Opens the database in this folder, or makes both.
    pub fn open(folder: &Path) -> Result<Store, OpenError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| OpenError::Folder { path: folder.to_owned(), source })?;
        let path = folder.join(FILE);
        let connection = connect(&path)?;
        Store::serve(connection)
    }

    /// One that is forgotten with its last handle: for tests, and for hosts of pretend machines.
    pub fn in_memory() -> Result<Store, OpenError> {
        let path = PathBuf::from(":memory:");
        let opened = Connection::open_in_memory();
        let mut connection = opened.map_err(|source| OpenError::Open { path: path.clone(), source })?;
        bring_up_to_date(&mut connection, &path)?;
        Store::serve(connection)
    }

    fn serve(mut connection: Connection) -> Result<Store, OpenError> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let serve = move || {
            for job in receiver {
                job(&mut connection);
            }
        };
        thread::Builder::new().name("store".to_owned()).spawn(serve).map_err(OpenError::Thread)?;
        Ok(Store { jobs })
    }

    /// Does all of a job or nothing of it. It is done also when nobody waits for its answer any more.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may be gone.
            answer.send(transact(connection, job)).ok();
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?.map_err(StoreError::Sqlite)
    }
}

impl Store {
    /// As [`Store::run`], for the start and the end of a host, which have nothing else to do meanwhile.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |connection| {
            answer.send(transact(connection, job)).ok();
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        answered.recv().map_err(|_| StoreError::Closed)?.map_err(StoreError::Sqlite)
    }
}

fn transact<T>(
    connection: &mut Connection,
    job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction()?;
    let result = job(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            OpenError::Locked { path: path.to_owned() }
        }
        _ => OpenError::Open { path: path.to_owned(), source },
    };
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(std::time::Duration::ZERO).map_err(failed)?;
    connection.execute_batch(MODES).map_err(failed)?;
    // The first write takes the lock.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT;").map_err(failed)?;
    bring_up_to_date(&mut connection, path)?;
    Ok(connection)
}

fn bring_up_to_date(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Open { path: path.to_owned(), source };
    match migrations::migrate(connection).map_err(failed)? {
        migrations::Migrated::Latest => Ok(()),
        migrations::Migrated::TooNew { found, known } => {
            Err(OpenError::TooNew { path: path.to_owned(), found, known })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn count(store: &Store) -> i64 {
        store.run(|db| db.query_row("SELECT count(*) FROM keys", [], |row| row.get(0))).await.unwrap()
    }

    const INSERT: &str =
        "INSERT INTO keys (id, name, tier, hash, created_at_ms) VALUES ('key_a', NULL, 'pro', x'00', 1)";

    #[tokio::test]
    async fn what_was_answered_is_there_when_the_database_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.run(|db| db.execute(INSERT, [])).await.unwrap();
        drop(store);
        let again = loop {
            // Its thread closes it.
            match Store::open(folder.path()) {
                Err(OpenError::Locked { .. }) => thread::yield_now(),
                opened => break opened.unwrap(),
            }
        };
        assert_eq!(count(&again).await, 1);
    }

    #[tokio::test]
    async fn a_job_that_fails_leaves_nothing() {
        let store = Store::in_memory().unwrap();
        let failed = store.run(|db| {
            db.execute(INSERT, [])?;
            db.execute(INSERT, [])
        });
        assert!(failed.await.is_err());
        assert_eq!(count(&store).await, 0);
    }

    #[tokio::test]
    async fn a_second_host_does_not_get_the_same_data() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(OpenError::Locked { .. })));
        assert_eq!(count(&store).await, 0);
    }

    #[test]
    fn a_database_of_a_later_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 9999).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(OpenError::TooNew { found: 9999, .. })));
    }

    #[test]
    fn what_is_no_database_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), vec![7; 8192]).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(OpenError::Open { .. })));
        assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), vec![7; 8192]);
    }
}

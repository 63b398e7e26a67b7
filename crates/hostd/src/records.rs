//! What a host knows of its former lives, read at its start.

use crate::config::Settings;
use crate::journal::Journal;
use crate::store::{Store, StoreError};
use crate::tenant::{Keys, KeysError};

#[derive(Debug)]
pub struct Records {
    pub keys: Keys,
    pub journal: Journal,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("Could not read the events")]
    Journal(#[source] StoreError),
}

impl Records {
    pub fn read(store: Store, settings: &Settings) -> Result<Records, RecordsError> {
        let keys = Keys::load(store.clone(), settings.tiers.clone(), settings.keys.clone())?;
        let journal = Journal::open(store).map_err(RecordsError::Journal)?;
        Ok(Records { keys, journal })
    }
}

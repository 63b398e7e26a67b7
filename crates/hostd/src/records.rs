//! What a host knows of its former lives, read at its start.

use crate::config::{Machines, Settings};
use crate::journal::Journal;
use crate::space::Spaces;
use crate::store::{Store, StoreError};
use crate::tenant::{Keys, KeysError};
use crate::usage::Usage;
use crate::webhook::Webhooks;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug)]
pub struct Records {
    pub keys: Keys,
    pub journal: Arc<Journal>,
    pub webhooks: Arc<Webhooks>,
    pub usage: Usage,
    pub spaces: Arc<Spaces>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("Could not read the events")]
    Journal(#[source] StoreError),
    #[error("Could not read the webhooks")]
    Webhooks(#[source] StoreError),
    #[error("Could not read the Spaces in {}", folder.display())]
    Spaces { folder: PathBuf, source: std::io::Error },
}

impl Records {
    pub fn read(store: Store, settings: &Settings) -> Result<Records, RecordsError> {
        let keys = Keys::load(store.clone(), settings.tiers.clone(), settings.keys.clone())?;
        let journal = Journal::open(store.clone()).map_err(RecordsError::Journal)?;
        let webhooks = Webhooks::load(store.clone()).map_err(RecordsError::Webhooks)?;
        // What pretend machines leave is of no use to others, and the folder of a host that runs is its own.
        let folder = match settings.machines {
            Machines::Processes { .. } => settings.data_dir.clone(),
            Machines::Fake => settings.data_dir.join("fake"),
        };
        let spaces = Spaces::read(&folder, settings.spaces_key.clone())
            .map_err(|source| RecordsError::Spaces { folder, source })?;
        Ok(Records {
            keys,
            journal: Arc::new(journal),
            webhooks: Arc::new(webhooks),
            usage: Usage::new(store),
            spaces,
        })
    }
}

//! Taking what a builder has left in a template's folder: booted first, then put in the former one's place.

use super::folder::{self, FolderError};
use super::shelf::UseError;
use super::variant::Availability;
use super::{DEFAULT, Definition};
use crate::app::App;
use crate::chain::chain;
use podflare_api::template::{TakeState, TemplateProgress};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// Lines of progress that may wait for the client. There are never more.
const PROGRESS_MAX: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("the template \"{DEFAULT}\" comes with the host's image; `podflare up` takes a new one")]
    Default,
    #[error("the host has no folder for templates; set PODFLARE_TEMPLATE_DIR")]
    NoFolder,
    #[error("the template {name:?} cannot be used")]
    Folder { name: String, source: FolderError },
    #[error(transparent)]
    Use(#[from] UseError),
    #[error("the template {name:?} did not boot")]
    Boot { name: String, source: Arc<super::boot::BootError> },
    #[error("the template {name:?} was removed while it was taken")]
    Removed { name: String },
    #[error("the host is shutting down")]
    ShuttingDown,
}

/// Begins to take a template whose folder can be used as it is now. Goes on to its end also if nobody reads how it goes,
/// but for one that still waits for its turn.
pub async fn take(app: &Arc<App>, name: &str) -> Result<mpsc::Receiver<TemplateProgress>, TakeError> {
    let definition = read(app, name).await?;
    let (progress, lines) = mpsc::channel(PROGRESS_MAX);
    tokio::spawn(take_in_turn(app.clone(), definition, progress));
    Ok(lines)
}

async fn take_in_turn(app: Arc<App>, definition: Definition, progress: mpsc::Sender<TemplateProgress>) {
    let name = definition.name.clone();
    let result = async {
        let takes = app.templates.takes.clone();
        let (turn, definition) = match takes.clone().try_lock_owned() {
            Ok(turn) => (turn, definition),
            Err(_) => {
                tell(&progress, TakeState::Waiting, None);
                let turn = tokio::select! {
                    turn = takes.lock_owned() => turn,
                    () = progress.closed() => return Ok(false),
                };
                // What is there may have changed meanwhile.
                (turn, read(&app, &name).await?)
            }
        };
        let taking = app.templates.begin_take(&app, definition)?;
        tell(&progress, TakeState::Booting, None);
        match taking.variant.booted().await {
            Availability::Ready(_) if taking.finish() => {}
            _ if taking.was_removed() => return Err(TakeError::Removed { name: name.clone() }),
            Availability::Gone(Some(source)) => return Err(TakeError::Boot { name: name.clone(), source }),
            Availability::Gone(None) | Availability::Not(_) | Availability::Ready(_) => {
                return Err(TakeError::ShuttingDown);
            }
        }
        drop(taking);
        drop(turn);
        tell(&progress, TakeState::Ready, None);
        Ok(true)
    };
    match result.await {
        Ok(true) => tracing::info!(template = name, "Took a template"),
        Ok(false) => tracing::info!(template = name, "Nobody waits any more for a template to be taken"),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(template = name, error, "Could not take a template");
            tell(&progress, TakeState::Failed, Some(error));
        }
    }
}

fn tell(progress: &mpsc::Sender<TemplateProgress>, state: TakeState, error: Option<String>) {
    // Whoever has gone does not want to know, and there is room for all that is ever told.
    progress.try_send(TemplateProgress { state, error }).ok();
}

/// The folder may be on a file system that takes its time.
async fn read(app: &App, name: &str) -> Result<Definition, TakeError> {
    if name == DEFAULT {
        return Err(TakeError::Default);
    }
    let folder = app.settings.template_dir.clone().ok_or(TakeError::NoFolder)?;
    let (sizes, named) = (app.settings.sizes, name.to_owned());
    let found = spawn_blocking(move || folder::read(&folder, &named, sizes)).await;
    // The task does not panic, and is cancelled only with the runtime.
    let found = found.map_err(|_| TakeError::ShuttingDown)?;
    found.map_err(|source| TakeError::Folder { name: name.to_owned(), source })
}

//! Sandboxes made of a checkpoint: as a fork of the sandbox that it was taken of, at that moment.

use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::copies::CopyError;
use crate::sandbox::fork::{ForkError, Source, make_children};
use podflare_api::sandbox::{ForkRequest, Forked};
use std::sync::Arc;

pub async fn fork(app: &Arc<App>, id: &str, request: &ForkRequest) -> Result<(Forked, Phases), ForkError> {
    let checkpoint = app.registry.find_checkpoint(id)?;
    let machine = async || {
        let checkpoint = app.registry.find_checkpoint(id)?;
        let (machine, egress) = (checkpoint.machine().clone(), checkpoint.egress().clone());
        Ok(Source { machine, egress, _turn: None })
    };
    match make_children(app, machine, request, || checkpoint.heritage()).await {
        Err(ForkError::Copy(CopyError::SourceEnded)) => {
            checkpoint.ended().await;
            app.registry.find_checkpoint(id)?;
            Err(CopyError::SourceEnded.into())
        }
        result => result,
    }
}

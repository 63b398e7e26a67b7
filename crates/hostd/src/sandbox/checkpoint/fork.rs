//! Sandboxes made of a checkpoint: as a fork of the sandbox that it was taken of, at that moment.

use crate::app::App;
use crate::phases::Phases;
use crate::sandbox::copies::CopyError;
use crate::sandbox::fork::{ForkError, make_children};
use podflare_api::sandbox::{ForkRequest, Forked};
use std::sync::Arc;

pub async fn fork(app: &Arc<App>, id: &str, request: &ForkRequest) -> Result<(Forked, Phases), ForkError> {
    let checkpoint = app.registry.find_checkpoint(id)?;
    let machine = || {
        let checkpoint = app.registry.find_checkpoint(id)?;
        Ok((checkpoint.machine().clone(), checkpoint.egress().clone()))
    };
    match make_children(app, checkpoint.tenant().clone(), machine, request, || checkpoint.heritage()).await {
        Err(ForkError::Copy(CopyError::SourceEnded)) => {
            checkpoint.ended().await;
            app.registry.find_checkpoint(id)?;
            Err(CopyError::SourceEnded.into())
        }
        result => result,
    }
}

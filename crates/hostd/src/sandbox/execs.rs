//! Looking at a sandbox's executions, and cancelling them.

use super::registry::FindError;
use crate::app::App;
use podflare_api::exec::ExecList;

/// The executions that run or wait in a sandbox, in the order of their requests.
pub async fn list(app: &App, id: &str) -> Result<ExecList, FindError> {
    // A sandbox that ends when it has just been found may have been replaced by a merge.
    for _ in 0..2 {
        let sandbox = app.registry.find(id)?;
        match sandbox.execs().await {
            Some(execs) => return Ok(ExecList { execs }),
            None => sandbox.ended().await,
        }
    }
    Err(FindError::Unknown)
}

/// Interrupts an execution, or takes it out of the queue. One that there is not, or is no longer, is as good as
/// cancelled.
pub fn cancel(app: &App, id: &str, exec: &str) -> Result<(), FindError> {
    let sandbox = app.registry.find(id)?;
    if let Ok(exec) = exec.parse() {
        sandbox.cancel(exec);
    }
    Ok(())
}

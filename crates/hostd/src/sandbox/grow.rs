//! A root disk of another size than the template's: grown in a sandbox that runs, before it is handed out.

use super::Sandbox;
use super::files::{FileError, Operation};
use crate::vmm::VmmError;
use podflare_wire::files::{Answer, Request};
use std::time::Duration;
use tokio::time::timeout;

/// How long it may take; clients wait 30 s for a create.
const GROW_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    #[error("Could not make the disk longer")]
    Disk(#[from] VmmError),
    #[error("Could not grow the file system")]
    FileSystem(#[from] FileError),
    #[error("The disk had not grown after {} s", GROW_TIMEOUT.as_secs())]
    Timeout,
}

/// The disk a client gets for what it asks: never less than the template's, and no more than is offered.
pub fn disk_gib(asked: Option<u32>, template: u32, max: u32) -> u32 {
    asked.unwrap_or(template).min(max).max(template)
}

/// Grows the disk and the file system in it.
pub async fn grow(sandbox: &Sandbox, disk_gib: u32) -> Result<(), GrowError> {
    let bytes = u64::from(disk_gib) << 30;
    let grown = async {
        // Both are on their way before the first is answered: the guest waits for its disk.
        let longer = sandbox.machine().grow_disk(bytes);
        let mut operation = Operation::begin_unregistered(sandbox, &Request::GrowRoot { bytes }).await?;
        longer.await?;
        match operation.answer().await? {
            Answer::Done => Ok(()),
            _ => Err(FileError::Protocol.into()),
        }
    };
    timeout(GROW_TIMEOUT, grown).await.unwrap_or(Err(GrowError::Timeout))?;
    sandbox.set_disk_gib(disk_gib);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_never_less_than_the_templates_and_no_more_than_offered() {
        let given = [None, Some(0), Some(3), Some(4), Some(5), Some(16), Some(u32::MAX)];
        assert_eq!(given.map(|asked| disk_gib(asked, 4, 16)), [4, 4, 4, 4, 5, 16, 16]);
        assert_eq!(disk_gib(Some(9), 4, 2), 4);
    }
}

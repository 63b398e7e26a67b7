//! A template that its guest has come to rest in.
//!
//! Two seconds after its start Linux begins to report the memory that it has free, in rounds two seconds apart. A
//! template that is frozen before has every copy do it again, for 0.1 s of CPU time under emulation. To wait for it
//! would make the host's start the longer by ten seconds. So sandboxes are made of the template as it booted while a
//! copy of it, which nobody uses, comes to rest; from then on they are made of that one.

use super::Template;
use super::boot::{SettleError, learn_hot_pages};
use crate::vmm::{Fork, Machine, VmmError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A guest that has reported nothing for so long has nothing left to report: twice the pause between two rounds
/// (`PAGE_REPORTING_DELAY` in Linux's mm/page_reporting.c).
const QUIET: Duration = Duration::from_secs(4);

/// One that goes on for longer than this always will, and has reported most of it.
const PATIENCE: Duration = Duration::from_secs(60);

const LOOK_PAUSE: Duration = Duration::from_millis(500);

impl Template {
    /// A template as this one, whose guest has come to rest; `None` if its guest reports nothing. Takes ten
    /// seconds, most of them asleep. This one is of use all the while.
    pub async fn rest(&self) -> Result<Option<Template>, SettleError> {
        if self.machine.reported_bytes().await?.is_none() {
            return Ok(None);
        }
        let Fork { copy: machine, done } = self.machine.fork()?;
        let rest = async {
            done.await?;
            machine.thaw(None).await?;
            until_nothing_is_reported(&*machine).await?;
            machine.freeze().await?;
            learn_hot_pages(&*machine, &self.identity).await
        };
        match rest.await {
            Ok(hot_pages) => {
                let (shape, identity) = (Arc::clone(&self.shape), self.identity.clone());
                let origin = self.origin.clone();
                origin.set_template(&machine, hot_pages, true);
                Ok(Some(Template { shape, identity, machine, origin, hot_pages, rested: true }))
            }
            Err(error) => {
                machine.end().await;
                Err(error)
            }
        }
    }
}

async fn until_nothing_is_reported(machine: &dyn Machine) -> Result<(), VmmError> {
    let deadline = Instant::now() + PATIENCE;
    let (mut reported, mut since) = (machine.reported_bytes().await?, Instant::now());
    while since.elapsed() < QUIET && Instant::now() < deadline {
        sleep(LOOK_PAUSE).await;
        let now = machine.reported_bytes().await?;
        if now != reported {
            (reported, since) = (now, Instant::now());
        }
    }
    Ok(())
}

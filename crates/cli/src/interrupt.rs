//! Ctrl-C while a sandbox is ours: it is closed before the command ends, and would otherwise stay until the
//! host takes it for idle. A second Ctrl-C ends the command at once.

use crate::api::Client;
use anyhow::Context;
use podflare_api::id::SandboxId;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::{io, process};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// As a shell says it of a program that SIGINT has ended.
const EXIT_CODE: i32 = 130;

/// The sandbox to close, once there is one.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Option<SandboxId>>>);

impl Slot {
    /// Locked meanwhile: an interrupt waits for what is being made, and closes it.
    pub(crate) fn set(
        &self,
        create: impl FnOnce() -> anyhow::Result<SandboxId>,
    ) -> anyhow::Result<SandboxId> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = create()?;
        *slot = Some(id.clone());
        Ok(id)
    }

    fn close(&self, client: &Client) {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = &*slot {
            // Of a host that cannot be reached nothing more can be asked.
            client.close(id).ok();
        }
    }
}

/// From now on an interrupt closes the sandbox in the slot and ends this process.
pub(crate) fn closes(client: &Client) -> anyhow::Result<Slot> {
    let slot = Slot::default();
    let (slot_to_close, client) = (slot.clone(), client.clone());
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    // Set up before this returns: what is made from now on is closed.
    let mut signals = runtime.block_on(async { Signals::new() }).context("Cannot watch for signals")?;
    thread::spawn(move || {
        runtime.block_on(signals.next());
        thread::spawn(move || {
            slot_to_close.close(&client);
            end();
        });
        runtime.block_on(signals.next());
        end();
    });
    Ok(slot)
}

#[expect(clippy::exit, reason = "the main thread may wait for a host that never answers")]
fn end() -> ! {
    process::exit(EXIT_CODE)
}

/// Ctrl-C, and what else asks a command to end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> io::Result<Signals> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Signals([interrupt?, terminate?, hangup?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

//! Signals. Ctrl-C while a sandbox is ours: it is closed before the command ends, and would otherwise stay until
//! the host takes it for idle. A second Ctrl-C ends the command at once.

use crate::api::Client;
use anyhow::Context;
use podflare_api::id::SandboxId;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::{io, process};
use tokio::runtime::{self, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// As a shell says it of a program that SIGINT has ended.
pub(crate) const EXIT_CODE: u8 = 130;

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
    // Set up before this returns: what is made from now on is closed.
    let (runtime, mut signals) = watched(Signals::new)?;
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

/// From now on an interrupt does this and no more; the next one, nothing.
pub(crate) fn tells(tell: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let (runtime, mut signals) = watched(Signals::new)?;
    thread::spawn(move || {
        runtime.block_on(signals.next());
        tell();
    });
    Ok(())
}

/// From now on this is done whenever the size of the terminal has changed.
pub(crate) fn on_resize(mut act: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let (runtime, mut resizes) = watched(|| signal(SignalKind::window_change()))?;
    thread::spawn(move || {
        while runtime.block_on(resizes.recv()).is_some() {
            act();
        }
    });
    Ok(())
}

/// Signals that are waited for, and what to wait for them in.
fn watched<T>(watch: impl FnOnce() -> io::Result<T>) -> anyhow::Result<(Runtime, T)> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = runtime.block_on(async { watch() }).context("Cannot watch for signals")?;
    Ok((runtime, signals))
}

#[expect(clippy::exit, reason = "the main thread may wait for a host that never answers")]
fn end() -> ! {
    process::exit(EXIT_CODE.into())
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

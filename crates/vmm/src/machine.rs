//! The microVM, running or frozen, and the ways from one to the other.
//!
//! ```text
//!  boot ──▶ Running ──freeze──▶ Frozen ──thaw──▶ Running
//!             │ fork               │ fork
//!             ▼                    ▼
//!           Frozen               Frozen       (in a process of their own)
//! ```
//!
//! `Running` has KVM descriptors and vCPU threads; `Frozen` has neither, only memory and saved state.
//! A fork parks the threads, saves the state and copies the process: the source wakes its threads
//! again, the copy drops what it inherited of KVM and is a `Frozen`. A `Frozen` can be saved into files and made
//! of them again (`saved`).

use crate::copy::{CopyError, Side, copy_process};
use crate::devices::Devices;
use crate::devices::virtio::block::disk::DiskError;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::{ConnectError, host_port_of};
use crate::hot_pages::recorder::{Permission, RecordError, Recorder};
use crate::hot_pages::{HotPages, HotPagesError};
use crate::kvm::state::{MachineState, StateError, restore, save};
use crate::kvm::vcpu::{Stop, VcpuThreads};
use crate::kvm::vm::{InterruptLines, KvmError, Platform, Vm};
use crate::memory::GuestMemory;
use crate::saved::{Digest, MappedPages};
use crate::signals::Signals;
use podflare_wire::control::{EndReason, Inspection, PageRun, Thawed};
use rustix::process::Pid;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a fork copies: everything but KVM's descriptors and threads.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) platform: Platform,
    pub(crate) memory: GuestMemory,
    pub(crate) mapped_pages: MappedPages,
    pub(crate) devices: Arc<Devices>,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) huge_pages: bool,
    /// What each copy gets before it runs.
    pub(crate) hot_pages: HotPages,
}

#[derive(Debug)]
pub(crate) struct Running {
    /// First, so that they end before anything that they use is dropped.
    threads: VcpuThreads,
    body: Body,
    vm: Arc<kvm_ioctls::VmFd>,
    signals: Arc<Signals>,
    poller: Arc<Epoll>,
    recorder: Option<Recorder>,
}

#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) body: Body,
    pub(crate) state: MachineState,
    /// The saved state of which it is, or is a copy that has never run.
    pub(crate) origin: Option<Digest>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("Could not make the descriptors of the event loop")]
    Descriptors(#[source] std::io::Error),
    #[error("Could not start a vCPU's thread")]
    Thread(#[source] std::io::Error),
}

/// Why a machine does not run and record.
#[derive(Debug)]
pub(crate) enum NotRecording {
    /// It may not; nothing has changed.
    Frozen(Box<Frozen>, RecordError),
    /// Its memory had been touched already.
    Lost(ThawError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ThawError {
    #[error("Could not use the TAP interface")]
    Tap(#[source] std::io::Error),
    #[error("Could not record which pages are touched")]
    Record(#[from] RecordError),
    #[error("Could not make the virtual machine")]
    Build(#[from] KvmError),
    #[error("Could not give the virtual machine its state")]
    Restore(#[from] StateError),
    #[error("Could not start the virtual machine")]
    Start(#[from] StartError),
}

/// A running machine's end.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    pub(crate) console_tail: Vec<u8>,
}

/// A machine that stands still, its KVM side intact.
struct Paused {
    running: Running,
    vm: Vm,
    state: MachineState,
    stop_us: u64,
}

/// What became of a machine that could not be brought to a stand.
#[derive(Debug)]
pub(crate) enum NotPaused {
    Ended(End),
    /// Its state could not be saved. It runs on.
    Running(Box<Running>, StateError),
}

/// Why there is no copy. The source is as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForkError {
    #[error("Could not share the disk with a copy")]
    Disk(#[from] DiskError),
    #[error("Could not copy the machine")]
    Process(#[from] CopyError),
}

/// What is watched by a running machine's event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    Control,
    VcpuEnded,
    Round,
    Tap,
    Connection { host_port: u32, events: EventSet },
}

/// The two sides of a fork of a running machine.
#[derive(Debug)]
pub(crate) enum Forked {
    Source { running: Running, result: Result<Copied, ForkError>, times: ForkTimes },
    Copy(Result<Frozen, DiskError>),
}

/// The two sides of a fork of a frozen machine.
#[derive(Debug)]
pub(crate) enum FrozenForked {
    Source { frozen: Frozen, result: Result<Copied, ForkError> },
    Copy(Result<Frozen, DiskError>),
}

#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ForkTimes {
    pub(crate) pause_us: u64,
    pub(crate) stop_us: u64,
    pub(crate) save_us: u64,
    pub(crate) fork_us: u64,
}

/// Below the tokens of the network card and of connections.
const WAKE_CONTROL: u64 = 1;
const WAKE_VCPU_ENDED: u64 = 2;
const WAKE_ROUND: u64 = 3;

impl Running {
    /// Starts the vCPUs of a machine whose KVM side is complete. `control` is watched from now on.
    pub(crate) fn start(
        body: Body,
        vm: Vm,
        control: BorrowedFd<'_>,
    ) -> Result<Running, (Box<Body>, StartError)> {
        let Vm { fd, vcpus } = vm;
        let (poller, signals) = match event_descriptors(control, InterruptLines::of(fd.clone())) {
            Ok(descriptors) => descriptors,
            Err(error) => return Err((Box::new(body), StartError::Descriptors(error))),
        };
        let threads = VcpuThreads::default();
        let running = Running { threads, body, vm: fd, signals, poller, recorder: None };
        running.body.devices.set_poller(Some(running.poller.clone()));
        running.serve_all_queues();
        match VcpuThreads::start(vcpus, &running.signals, &running.body.devices) {
            Ok(threads) => Ok(Running { threads, ..running }),
            Err(error) => Err((Box::new(running.abandon()), StartError::Thread(error))),
        }
    }

    /// Copies the machine. Returns on both sides; `layer` becomes the copy's disk layer.
    pub(crate) fn fork(self, layer: File) -> Result<Forked, NotPaused> {
        let paused = Instant::now();
        let Paused { running, vm, state, stop_us } = self.pause()?;
        let save_us = micros(paused) - stop_us;
        let forking = Instant::now();
        let result = match running.body.copy() {
            Ok(Side::Copy) => {
                drop(vm);
                return Ok(Forked::Copy(running.become_copy(layer, state)));
            }
            Ok(Side::Source { copy, pidfd }) => Ok(Copied { pid: copy, pidfd }),
            Err(error) => Err(error),
        };
        let fork_us = micros(forking);
        // Until the threads are woken: what they do with this thread's processor then is the guest's time.
        let times = ForkTimes { pause_us: micros(paused), stop_us, save_us, fork_us };
        running.resume(vm.vcpus);
        Ok(Forked::Source { running, result, times })
    }

    /// Stops the machine. Returns the time that it took.
    pub(crate) fn freeze(self) -> Result<(Frozen, u64), NotPaused> {
        let paused = Instant::now();
        let Paused { running, vm, state, .. } = self.pause()?;
        drop(vm);
        let body = running.abandon();
        Ok((Frozen { body, state, origin: None }, micros(paused)))
    }

    /// Waits until there is something to do.
    pub(crate) fn wait(&self) -> std::io::Result<Vec<Wake>> {
        let mut events = [EpollEvent::default(); 32];
        let count = match self.poller.wait(-1, &mut events) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        Ok(events[..count].iter().map(|event| wake_of(*event)).collect())
    }

    /// Moves bytes between a connection's host side and the guest.
    pub(crate) fn host_ready(&self, host_port: u32, events: EventSet) {
        self.signals.settle(self.body.devices.host_ready(host_port, events));
    }

    /// Moves frames from the TAP interface to the guest.
    pub(crate) fn tap_ready(&self) {
        self.signals.settle(self.body.devices.tap_ready());
    }

    /// Serves what waits in any queue, for one round; what is left is another [`Wake::Round`].
    pub(crate) fn serve_all_queues(&self) {
        self.signals.take_round();
        for due in self.body.devices.serve_all_queues() {
            self.signals.settle(due);
        }
    }

    pub(crate) fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        self.body.devices.connect(port, stream)?;
        self.signals.settle(self.body.devices.deliver());
        Ok(())
    }

    pub(crate) fn grow_disk(&self, bytes: u64) -> Result<(), DiskError> {
        self.signals.settle(self.body.devices.grow_disk(bytes)?);
        Ok(())
    }

    pub(crate) fn console_tail(&self) -> Vec<u8> {
        self.body.devices.console_tail()
    }

    pub(crate) fn inspect(&self) -> Inspection {
        self.body.inspect(true)
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.recorder.is_some()
    }

    /// What has been touched since a recording thaw.
    pub(crate) fn recorded_pages(&self) -> Option<Vec<PageRun>> {
        self.recorder.as_ref().map(Recorder::pages)
    }

    /// Parks all vCPU threads and saves the state.
    fn pause(mut self) -> Result<Paused, NotPaused> {
        let stopping = Instant::now();
        let vcpus = self.stop_vcpus().map_err(|reason| NotPaused::Ended(self.end(reason)))?;
        let stop_us = micros(stopping);
        let vm = Vm { fd: self.vm.clone(), vcpus };
        match save(&vm, self.body.platform.reset_msrs()) {
            Ok(state) => Ok(Paused { running: self, vm, state, stop_us }),
            Err(error) => {
                self.resume(vm.vcpus);
                Err(NotPaused::Running(Box::new(self), error))
            }
        }
    }

    /// Parks all vCPU threads. An error if one of the vCPUs had stopped by itself.
    fn stop_vcpus(&mut self) -> Result<Vec<kvm_ioctls::VcpuFd>, EndReason> {
        let reason = |(vcpu, stop)| match stop {
            Stop::Asked => Ok(vcpu),
            Stop::Reset => Err(EndReason::Reset),
            Stop::Failed(detail) => Err(EndReason::VcpuFailed { detail }),
        };
        self.body.devices.set_pausing(true);
        let stopped = self.threads.stop();
        self.body.devices.set_pausing(false);
        stopped.into_iter().map(reason).collect()
    }

    /// Lets the vCPUs of a machine that stands still go on.
    fn resume(&self, vcpus: Vec<kvm_ioctls::VcpuFd>) {
        self.threads.resume(vcpus, &self.signals, &self.body.devices);
    }

    fn end(&self, reason: EndReason) -> End {
        End { reason, console_tail: self.body.devices.console_tail() }
    }

    /// Why a vCPU has stopped by itself. Ends the others.
    pub(crate) fn into_end(mut self) -> End {
        let reason = match self.stop_vcpus() {
            Err(reason) => reason,
            Ok(_) => EndReason::Failed { detail: "a vCPU stopped without a reason".into() },
        };
        self.end(reason)
    }

    /// In the copy: lets go of all that belongs to the source.
    fn become_copy(self, layer: File, state: MachineState) -> Result<Frozen, DiskError> {
        self.threads.forget();
        self.body.devices.become_copy(layer)?;
        Ok(Frozen { body: self.body, state, origin: None })
    }

    /// Lets go of KVM and of the event loop.
    fn abandon(self) -> Body {
        self.body.devices.set_poller(None);
        self.body
    }
}

impl Frozen {
    /// Makes the machine run and notes which pages are touched. It can be neither forked nor frozen then.
    pub(crate) fn thaw_recording(
        mut self,
        control: BorrowedFd<'_>,
    ) -> Result<(Running, Thawed), NotRecording> {
        let permission = match Permission::ask() {
            Ok(permission) => permission,
            Err(error) => return Err(NotRecording::Frozen(Box::new(self), error)),
        };
        // What is brought in unasked would count as touched.
        self.body.hot_pages = HotPages::default();
        let recorder = Recorder::start(permission, &self.body.memory)
            .map_err(|error| NotRecording::Lost(error.into()))?;
        let (mut running, thawed) = self
            .thaw_with(control, Platform::build_without_workers)
            .map_err(|(_, error)| NotRecording::Lost(error))?;
        running.recorder = Some(recorder);
        Ok((running, thawed))
    }

    /// Makes the machine run: a new KVM VM over the same memory, and its network card plugged in. The mirror of
    /// `boot`.
    pub(crate) fn thaw(
        self,
        control: BorrowedFd<'_>,
        tap: Option<OwnedFd>,
    ) -> Result<(Running, Thawed), (Box<Frozen>, ThawError)> {
        if let Some(tap) = tap
            && let Err(error) = self.body.devices.attach_tap(tap)
        {
            return Err((Box::new(self), ThawError::Tap(error)));
        }
        let thawed = self.thaw_with(control, Platform::build);
        thawed.inspect_err(|(frozen, _)| frozen.body.devices.detach_tap())
    }

    fn thaw_with(
        self,
        control: BorrowedFd<'_>,
        build: impl FnOnce(&Platform, &GuestMemory, u8) -> Result<Vm, KvmError>,
    ) -> Result<(Running, Thawed), (Box<Frozen>, ThawError)> {
        let building = Instant::now();
        let Frozen { body, state, origin } = self;
        let vm = match build(&body.platform, &body.memory, body.vcpus) {
            Ok(vm) => vm,
            Err(error) => return Err((Box::new(Frozen { body, state, origin }), error.into())),
        };
        let build_us = micros(building);
        let restoring = Instant::now();
        if let Err(error) = restore(&vm, &state, body.platform.reset_msrs()) {
            return Err((Box::new(Frozen { body, state, origin }), error.into()));
        }
        let prefaulting = Instant::now();
        if let Some(vcpu) = vm.vcpus.first() {
            body.hot_pages.bring_in(&body.memory, vcpu);
        }
        let prefault_us = micros(prefaulting);
        match Running::start(body, vm, control) {
            Ok(running) => Ok((running, Thawed { build_us, restore_us: micros(restoring), prefault_us })),
            // Its queues have been served.
            Err((body, error)) => Err((Box::new(Frozen { body: *body, state, origin: None }), error.into())),
        }
    }

    /// Copies the machine. Returns on both sides; `layer` becomes the copy's disk layer.
    pub(crate) fn fork(self, layer: File) -> FrozenForked {
        match self.body.copy() {
            Ok(Side::Copy) => FrozenForked::Copy(self.body.devices.become_copy(layer).map(|()| self)),
            Ok(Side::Source { copy, pidfd }) => {
                FrozenForked::Source { frozen: self, result: Ok(Copied { pid: copy, pidfd }) }
            }
            Err(error) => FrozenForked::Source { frozen: self, result: Err(error) },
        }
    }

    /// From now on each copy brings these pages in before it runs.
    pub(crate) fn set_hot_pages(&mut self, runs: Vec<PageRun>) -> Result<(), HotPagesError> {
        self.body.hot_pages = HotPages::within(&self.body.memory, runs)?;
        Ok(())
    }

    /// The connection is made when the machine runs.
    pub(crate) fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        // Nothing is put into a queue while nothing can take the interrupt: `thaw` serves all queues.
        self.body.devices.connect(port, stream)
    }

    pub(crate) fn console_tail(&self) -> Vec<u8> {
        self.body.devices.console_tail()
    }

    pub(crate) fn inspect(&self) -> Inspection {
        self.body.inspect(false)
    }
}

impl Body {
    /// Copies the process that holds the machine, which stands still. Returns on both sides.
    fn copy(&self) -> Result<Side, ForkError> {
        self.devices.seal_disk()?;
        Ok(copy_process()?)
    }

    fn inspect(&self, running: bool) -> Inspection {
        let (disk_layer_bytes, disk_layers) = self.devices.disk_size();
        Inspection {
            running,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            disk_layer_bytes,
            disk_layers: u32::try_from(disk_layers).unwrap_or(u32::MAX),
            connections: u32::try_from(self.devices.connection_count()).unwrap_or(u32::MAX),
            console_bytes: self.devices.console_bytes(),
            reported_bytes: self.devices.reported_bytes(),
        }
    }
}

/// The poller of a running machine, and what it watches besides connections.
fn event_descriptors(
    control: BorrowedFd<'_>,
    lines: InterruptLines,
) -> std::io::Result<(Arc<Epoll>, Arc<Signals>)> {
    let poller = Epoll::new()?;
    let signals = Signals::new(lines)?;
    for (descriptor, token) in [
        (control.as_raw_fd(), WAKE_CONTROL),
        (signals.ended_fd(), WAKE_VCPU_ENDED),
        (signals.round_fd(), WAKE_ROUND),
    ] {
        poller.ctl(ControlOperation::Add, descriptor, EpollEvent::new(EventSet::IN, token))?;
    }
    Ok((Arc::new(poller), Arc::new(signals)))
}

fn wake_of(event: EpollEvent) -> Wake {
    match event.data() {
        WAKE_CONTROL => Wake::Control,
        WAKE_VCPU_ENDED => Wake::VcpuEnded,
        WAKE_ROUND => Wake::Round,
        Net::TOKEN => Wake::Tap,
        token => Wake::Connection { host_port: host_port_of(token), events: event.event_set() },
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

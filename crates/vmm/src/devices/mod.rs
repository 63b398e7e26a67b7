//! The devices of a microVM and the buses that lead to them.
//!
//! A device is plain memory behind a lock. vCPU threads call in for each access, the main thread for
//! what arrives from the host and for what one round of a queue has left; whoever calls does what is
//! [`Due`] then. No device has a thread, so none has work under way when the vCPUs stand still.

mod serial;
pub(crate) mod virtio;

use crate::layout::{self, VirtioSlot};
use crate::memory::GuestMemory;
use serde::{Deserialize, Serialize};
use serial::{ConsoleState, SerialConsole};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::balloon::Balloon;
use virtio::block::Block;
use virtio::block::disk::{Disk, DiskError};
use virtio::mmio::MmioTransport;
use virtio::mmio::state::TransportState;
use virtio::net::Net;
use virtio::rng::Rng;
use virtio::vsock::state::VsockState;
use virtio::vsock::{ConnectError, Vsock};
use virtio::{Queue, Served};
use vmm_sys_util::epoll::{Epoll, EventSet};

#[derive(Debug)]
pub(crate) struct Devices {
    serial: Mutex<SerialConsole>,
    block: Mutex<MmioTransport<Block>>,
    vsock: Mutex<MmioTransport<Vsock>>,
    rng: Mutex<MmioTransport<Rng>>,
    /// The machine is being brought to a stand: rounds of long requests end early.
    pausing: Arc<AtomicBool>,
    balloon: Mutex<MmioTransport<Balloon>>,
    net: Mutex<MmioTransport<Net>>,
}

/// All devices, as they are saved. Connections and frames are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DevicesState {
    console: ConsoleState,
    block: TransportState,
    vsock: TransportState,
    vsock_device: VsockState,
    rng: TransportState,
    balloon: TransportState,
    reported_bytes: Option<u64>,
    net: TransportState,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceStateError {
    #[error("a queue is not one of its device, or not in memory")]
    Queue,
    #[error("a device's status is not possible")]
    Status,
    #[error("the socket device has more than it can have")]
    Vsock,
    #[error("the console has more than it can have")]
    Console,
}

/// What is left to do after a device was called.
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub(crate) struct Due {
    /// The interrupt line to raise.
    pub(crate) interrupt: Option<u32>,
    /// [`Devices::serve_all_queues`], on the main thread.
    pub(crate) round: bool,
}

impl Due {
    fn of(slot: VirtioSlot, served: Served) -> Due {
        Due { interrupt: served.raise.then(|| slot.gsi()), round: served.more }
    }
}

/// The CMOS clock's data port: 0 tells the kernel at once that there is none; 0xff makes it wait.
const CMOS_DATA_PORT: u16 = 0x71;

impl Devices {
    pub(crate) fn new(memory: &GuestMemory, disk: Disk) -> Devices {
        let pausing = Arc::new(AtomicBool::new(false));
        Devices {
            serial: Mutex::new(SerialConsole::new()),
            block: Mutex::new(MmioTransport::new(Block::new(disk, pausing.clone()), memory.clone())),
            vsock: Mutex::new(MmioTransport::new(Vsock::new(), memory.clone())),
            rng: Mutex::new(MmioTransport::new(Rng::new(), memory.clone())),
            pausing,
            balloon: Mutex::new(MmioTransport::new(Balloon::new(), memory.clone())),
            net: Mutex::new(MmioTransport::new(Net::new(), memory.clone())),
        }
    }

    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match VirtioSlot::at(address) {
            Some((VirtioSlot::Block, offset)) => lock(&self.block).read(offset, data),
            Some((VirtioSlot::Vsock, offset)) => lock(&self.vsock).read(offset, data),
            Some((VirtioSlot::Rng, offset)) => lock(&self.rng).read(offset, data),
            Some((VirtioSlot::Balloon, offset)) => lock(&self.balloon).read(offset, data),
            Some((VirtioSlot::Net, offset)) => lock(&self.net).read(offset, data),
            None => data.fill(0xff),
        }
    }

    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) -> Due {
        let Some((slot, offset)) = VirtioSlot::at(address) else { return Due::default() };
        let served = match slot {
            VirtioSlot::Block => lock(&self.block).write(offset, data),
            VirtioSlot::Vsock => lock(&self.vsock).write(offset, data),
            VirtioSlot::Rng => lock(&self.rng).write(offset, data),
            VirtioSlot::Balloon => lock(&self.balloon).write(offset, data),
            VirtioSlot::Net => lock(&self.net).write(offset, data),
        };
        Due::of(slot, served)
    }

    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match (serial_register(port), port, &mut *data) {
            (Some(register), _, [byte]) => *byte = lock(&self.serial).read(register),
            (None, CMOS_DATA_PORT, data) => data.fill(0),
            (_, _, data) => data.fill(0xff),
        }
    }

    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Due {
        match (serial_register(port), data) {
            (Some(register), [byte]) => {
                let raise = lock(&self.serial).write(register, *byte);
                Due { interrupt: raise.then_some(layout::SERIAL_GSI), round: false }
            }
            _ => Due::default(),
        }
    }

    /// Serves what waits in any queue, for one round.
    pub(crate) fn serve_all_queues(&self) -> [Due; 5] {
        [
            Due::of(VirtioSlot::Block, lock(&self.block).serve_all_queues()),
            Due::of(VirtioSlot::Vsock, lock(&self.vsock).serve_all_queues()),
            Due::of(VirtioSlot::Rng, lock(&self.rng).serve_all_queues()),
            Due::of(VirtioSlot::Balloon, lock(&self.balloon).serve_all_queues()),
            Due::of(VirtioSlot::Net, lock(&self.net).serve_all_queues()),
        ]
    }

    /// Connects a host stream to a port of the guest. The request waits for [`Devices::deliver`] or
    /// [`Devices::serve_all_queues`].
    pub(crate) fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        lock(&self.vsock).device_mut().connect(port, stream).map(drop)
    }

    /// Gives the guest what waits in vsock, for one round.
    pub(crate) fn deliver(&self) -> Due {
        Due::of(VirtioSlot::Vsock, lock(&self.vsock).with_queues(Vsock::deliver))
    }

    /// The host side of a connection is ready for what the poller was asked to watch.
    pub(crate) fn host_ready(&self, host_port: u32, events: EventSet) -> Due {
        lock(&self.vsock).device_mut().host_event(host_port, events);
        self.deliver()
    }

    /// Plugs the network card into a TAP interface. Frames wait for [`Devices::serve_all_queues`].
    pub(crate) fn attach_tap(&self, tap: OwnedFd) -> std::io::Result<()> {
        lock(&self.net).device_mut().attach(tap)
    }

    pub(crate) fn detach_tap(&self) {
        lock(&self.net).device_mut().detach();
    }

    /// The TAP interface has frames.
    pub(crate) fn tap_ready(&self) -> Due {
        Due::of(VirtioSlot::Net, lock(&self.net).with_queues(Net::deliver))
    }

    /// Where the host sides of connections and the TAP interface are watched; nowhere while the machine is frozen,
    /// which has no TAP interface.
    pub(crate) fn set_poller(&self, poller: Option<Arc<Epoll>>) {
        if poller.is_none() {
            self.detach_tap();
        }
        lock(&self.net).device_mut().set_poller(poller.clone());
        lock(&self.vsock).device_mut().set_poller(poller);
    }

    /// While this holds, a thread that serves a device comes back after the request that it is at. What is left
    /// is [`Due::round`].
    pub(crate) fn set_pausing(&self, pausing: bool) {
        self.pausing.store(pausing, Ordering::Relaxed);
    }

    /// In the source, just before it is copied: what is on the disk is shared from now on.
    pub(crate) fn seal_disk(&self) -> Result<(), DiskError> {
        lock(&self.block).device_mut().disk_mut().seal()
    }

    /// In the copy: its own disk layer, and none of the source's connections and frames.
    pub(crate) fn become_copy(&self, layer: File) -> Result<(), DiskError> {
        lock(&self.net).device_mut().let_go_of_inherited();
        lock(&self.vsock).device_mut().reset_inherited();
        lock(&self.block).device_mut().disk_mut().adopt_layer(layer)
    }

    pub(crate) fn state(&self) -> DevicesState {
        let vsock = lock(&self.vsock);
        let mut balloon = lock(&self.balloon);
        DevicesState {
            console: lock(&self.serial).state(),
            block: lock(&self.block).state(),
            vsock: vsock.state(),
            vsock_device: vsock.device().state(),
            rng: lock(&self.rng).state(),
            balloon: balloon.state(),
            reported_bytes: balloon.device_mut().reported_bytes(),
            net: lock(&self.net).state(),
        }
    }

    /// Whether these devices could have come to this state.
    pub(crate) fn check(&self, state: &DevicesState) -> Result<(), DeviceStateError> {
        self.restored_queues(state).map(drop)
    }

    /// Brings all devices into a saved state, or none; the disk's content is not part of it.
    pub(crate) fn restore(&self, state: DevicesState) -> Result<(), DeviceStateError> {
        let [block, vsock, rng, balloon, net] = self.restored_queues(&state)?;
        *lock(&self.serial) = SerialConsole::of(state.console)?;
        lock(&self.block).restore(&state.block, block);
        lock(&self.rng).restore(&state.rng, rng);
        lock(&self.net).restore(&state.net, net);
        let mut transport = lock(&self.balloon);
        transport.restore(&state.balloon, balloon);
        transport.device_mut().restore(state.reported_bytes);
        let mut transport = lock(&self.vsock);
        transport.restore(&state.vsock, vsock);
        transport.device_mut().restore(state.vsock_device);
        Ok(())
    }

    fn restored_queues(&self, state: &DevicesState) -> Result<[Vec<Queue>; 5], DeviceStateError> {
        SerialConsole::of(state.console.clone())?;
        Vsock::check(&state.vsock_device)?;
        Ok([
            lock(&self.block).check(&state.block)?,
            lock(&self.vsock).check(&state.vsock)?,
            lock(&self.rng).check(&state.rng)?,
            lock(&self.balloon).check(&state.balloon)?,
            lock(&self.net).check(&state.net)?,
        ])
    }

    /// The disk of a machine that stands still.
    pub(crate) fn with_disk<T>(&self, use_it: impl FnOnce(&mut Disk) -> T) -> T {
        use_it(lock(&self.block).device_mut().disk_mut())
    }

    /// Lengthens the disk of a machine that stands still, without a word to its driver.
    pub(crate) fn lengthen_disk(&self, bytes: u64) -> Result<(), DiskError> {
        lock(&self.block).device_mut().grow(bytes)
    }

    /// Makes the root disk longer and has its driver look.
    pub(crate) fn grow_disk(&self, bytes: u64) -> Result<Due, DiskError> {
        let served = lock(&self.block).change_config(|block| block.grow(bytes))?;
        Ok(Due::of(VirtioSlot::Block, served))
    }

    pub(crate) fn console_tail(&self) -> Vec<u8> {
        lock(&self.serial).tail()
    }

    pub(crate) fn console_bytes(&self) -> u64 {
        lock(&self.serial).written_bytes()
    }

    pub(crate) fn connection_count(&self) -> usize {
        lock(&self.vsock).device_mut().connection_count()
    }

    /// How much memory the guest has reported free; `None` if it does not report.
    pub(crate) fn reported_bytes(&self) -> Option<u64> {
        lock(&self.balloon).device_mut().reported_bytes()
    }

    /// Bytes in the disk's own layer, and the number of layers that it reads.
    pub(crate) fn disk_size(&self) -> (u64, usize) {
        let mut block = lock(&self.block);
        let disk = block.device_mut().disk_mut();
        (disk.layer_bytes(), disk.layers())
    }
}

/// The register of the serial port at this I/O port.
fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(layout::SERIAL_PORT)?;
    (register < layout::SERIAL_PORT_LEN).then(|| register.to_le_bytes()[0])
}

/// A panic while a device was locked ends the process (see `main`), so a poisoned lock is never met.
fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! The devices of a microVM and the buses that lead to them.
//!
//! A device is plain memory behind a lock. vCPU threads call in for each access, the main thread for
//! what arrives from the host; whoever finds that the guest must be told raises the interrupt. No
//! device has a thread, so none has work under way when the vCPUs stand still.

mod serial;
pub(crate) mod virtio;

use crate::layout::{self, VirtioSlot};
use crate::memory::GuestMemory;
use serial::SerialConsole;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio::block::Block;
use virtio::block::disk::{Disk, DiskError};
use virtio::mmio::MmioTransport;
use virtio::rng::Rng;
use virtio::vsock::{ConnectError, Vsock};
use vmm_sys_util::epoll::{Epoll, EventSet};

#[derive(Debug)]
pub(crate) struct Devices {
    serial: Mutex<SerialConsole>,
    block: Mutex<MmioTransport<Block>>,
    vsock: Mutex<MmioTransport<Vsock>>,
    rng: Mutex<MmioTransport<Rng>>,
}

/// The CMOS clock's data port: 0 tells the kernel at once that there is none; 0xff makes it wait.
const CMOS_DATA_PORT: u16 = 0x71;

impl Devices {
    pub(crate) fn new(memory: &GuestMemory, disk: Disk) -> Devices {
        Devices {
            serial: Mutex::new(SerialConsole::new()),
            block: Mutex::new(MmioTransport::new(Block::new(disk), memory.clone())),
            vsock: Mutex::new(MmioTransport::new(Vsock::new(), memory.clone())),
            rng: Mutex::new(MmioTransport::new(Rng::new(), memory.clone())),
        }
    }

    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match VirtioSlot::at(address) {
            Some((VirtioSlot::Block, offset)) => lock(&self.block).read(offset, data),
            Some((VirtioSlot::Vsock, offset)) => lock(&self.vsock).read(offset, data),
            Some((VirtioSlot::Rng, offset)) => lock(&self.rng).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Returns the interrupt line to raise, if any.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) -> Option<u32> {
        let (slot, offset) = VirtioSlot::at(address)?;
        let raise = match slot {
            VirtioSlot::Block => lock(&self.block).write(offset, data),
            VirtioSlot::Vsock => lock(&self.vsock).write(offset, data),
            VirtioSlot::Rng => lock(&self.rng).write(offset, data),
        };
        raise.then(|| slot.gsi())
    }

    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match (serial_register(port), port, &mut *data) {
            (Some(register), _, [byte]) => *byte = lock(&self.serial).read(register),
            (None, CMOS_DATA_PORT, data) => data.fill(0),
            (_, _, data) => data.fill(0xff),
        }
    }

    /// Returns the interrupt line to raise, if any.
    pub(crate) fn port_write(&self, port: u16, data: &[u8]) -> Option<u32> {
        match (serial_register(port), data) {
            (Some(register), [byte]) => {
                lock(&self.serial).write(register, *byte).then_some(layout::SERIAL_GSI)
            }
            _ => None,
        }
    }

    /// Serves whatever waits in any queue. Returns the interrupt lines to raise.
    pub(crate) fn serve_all_queues(&self) -> Vec<u32> {
        let raise = [
            (lock(&self.block).serve_all_queues(), VirtioSlot::Block),
            (lock(&self.vsock).serve_all_queues(), VirtioSlot::Vsock),
            (lock(&self.rng).serve_all_queues(), VirtioSlot::Rng),
        ];
        raise.into_iter().filter(|(raise, _)| *raise).map(|(_, slot)| slot.gsi()).collect()
    }

    /// Connects a host stream to a port of the guest. The request waits for [`Devices::deliver`] or
    /// [`Devices::serve_all_queues`].
    pub(crate) fn connect(&self, port: u32, stream: OwnedFd) -> Result<(), ConnectError> {
        lock(&self.vsock).device_mut().connect(port, stream).map(drop)
    }

    /// Gives the guest what waits in vsock. Returns the interrupt line to raise, if any.
    pub(crate) fn deliver(&self) -> Option<u32> {
        lock(&self.vsock).with_queues(Vsock::deliver).then(|| VirtioSlot::Vsock.gsi())
    }

    /// The host side of a connection is ready for what the poller was asked to watch.
    pub(crate) fn host_ready(&self, host_port: u32, events: EventSet) -> Option<u32> {
        lock(&self.vsock).device_mut().host_event(host_port, events);
        self.deliver()
    }

    /// Where the host sides of connections are watched; nowhere while the machine is frozen.
    pub(crate) fn set_poller(&self, poller: Option<Arc<Epoll>>) {
        lock(&self.vsock).device_mut().set_poller(poller);
    }

    /// In the source, just before it is copied: what is on the disk is shared from now on.
    pub(crate) fn seal_disk(&self) {
        lock(&self.block).device_mut().disk_mut().seal();
    }

    /// In the copy: its own disk layer, and none of the source's connections.
    pub(crate) fn become_copy(&self, layer: File) -> Result<(), DiskError> {
        lock(&self.vsock).device_mut().reset_inherited();
        lock(&self.block).device_mut().disk_mut().adopt_layer(layer)
    }

    pub(crate) fn console_tail(&self) -> Vec<u8> {
        lock(&self.serial).tail()
    }

    pub(crate) fn connection_count(&self) -> usize {
        lock(&self.vsock).device_mut().connection_count()
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

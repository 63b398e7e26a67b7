//! All devices of a machine, saved and brought back.

use super::*;
use crate::memory;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_STATUS};

fn new_devices() -> Devices {
    let file = || tempfile::tempfile().unwrap();
    Devices::new(&memory::map(1, false).unwrap(), Disk::new(file(), file(), 1 << 20).unwrap())
}

/// Devices that a guest has begun to use, each in another way.
fn used_devices() -> Devices {
    let devices = new_devices();
    for byte in b"hello" {
        assert_eq!(devices.port_write(layout::SERIAL_PORT, &[*byte]).interrupt, None);
    }
    for (queue, slot) in (1_u32..).zip(VirtioSlot::ALL) {
        for (register, value) in [(VIRTIO_MMIO_STATUS, 1), (VIRTIO_MMIO_QUEUE_SEL, queue)] {
            let due = devices.mmio_write(slot.address() + u64::from(register), &value.to_le_bytes());
            assert!(!due.round);
        }
    }
    assert_eq!(devices.grow_disk(2 << 20).unwrap().interrupt, None);
    devices
}

#[test]
fn devices_come_back_as_they_were_saved() {
    let devices = used_devices();
    let state = devices.state();
    let others = new_devices();
    assert_ne!(others.state(), state);
    others.check(&state).unwrap();
    others.restore(state.clone()).unwrap();
    assert_eq!(others.state(), state);
    assert_eq!((others.console_tail(), others.console_bytes()), (b"hello".to_vec(), 5));
}

#[test]
fn a_state_with_one_device_that_cannot_be_changes_none() {
    let whole = used_devices().state();
    let other = new_devices().state();
    let broken = [
        DevicesState { block: whole.net.clone(), ..whole.clone() },
        DevicesState { vsock: whole.block.clone(), ..whole.clone() },
        DevicesState { rng: whole.block.clone(), ..whole.clone() },
        DevicesState { balloon: whole.rng.clone(), ..whole.clone() },
        DevicesState { net: whole.balloon.clone(), ..whole.clone() },
    ];
    let devices = new_devices();
    for state in broken {
        assert_eq!(devices.check(&state), Err(DeviceStateError::Queue));
        assert_eq!(devices.restore(state), Err(DeviceStateError::Queue));
        assert_eq!(devices.state(), other);
    }
}

#[test]
fn a_connection_that_waits_is_cut_by_what_comes_back() {
    let devices = new_devices();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    devices.connect(1024, theirs.into()).unwrap();
    devices.restore(used_devices().state()).unwrap();
    assert_eq!(devices.connection_count(), 0);
    assert_eq!(std::io::Read::read(&mut &ours, &mut [0]).unwrap(), 0);
}

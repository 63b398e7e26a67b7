//! A device's registers and queues, as they are saved and come back.

use super::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, MmioTransport, NEEDS_RESET};
use crate::devices::DeviceStateError;
use crate::devices::virtio::{Queue, VirtioDevice};
use serde::{Deserialize, Serialize};
use virtio_queue::{QueueState, QueueT};

const STATUS_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransportState {
    queues: Vec<SavedQueue>,
    status: u32,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
}

/// `QueueState`, which has no serde.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> SavedQueue {
        let QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = state;
        SavedQueue {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> QueueState {
        let SavedQueue {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        } = saved;
        QueueState {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    pub(crate) fn state(&self) -> TransportState {
        TransportState {
            queues: self.queues.iter().map(|queue| queue.state().into()).collect(),
            status: self.status,
            driver_features: self.driver_features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            interrupt_status: self.interrupt_status,
            config_generation: self.config_generation,
        }
    }

    /// Whether a device of this kind could have come to this state. Returns its queues.
    pub(crate) fn check(&self, state: &TransportState) -> Result<Vec<Queue>, DeviceStateError> {
        let queues = state.queues.iter().map(|&saved| Queue::try_from(QueueState::from(saved)));
        let queues = queues.collect::<Result<Vec<_>, _>>().map_err(|_| DeviceStateError::Queue)?;
        if !queues.iter().map(Queue::max_size).eq(D::QUEUE_SIZES.iter().copied()) {
            return Err(DeviceStateError::Queue);
        }
        if queues.iter().any(|queue| queue.ready() && !queue.is_valid(&self.memory)) {
            return Err(DeviceStateError::Queue);
        }
        let accepted = state.driver_features & !self.device_features() == 0;
        if state.status & !STATUS_BITS != 0 || state.status & FEATURES_OK != 0 && !accepted {
            return Err(DeviceStateError::Status);
        }
        Ok(queues)
    }

    /// Puts the registers and queues that were checked into the place of those that it has. What a device keeps beside
    /// them starts as at its activation.
    pub(crate) fn restore(&mut self, state: &TransportState, queues: Vec<Queue>) {
        self.device.reset();
        self.queues = queues;
        self.status = state.status;
        self.driver_features = state.driver_features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.interrupt_status = state.interrupt_status;
        self.config_generation = state.config_generation;
        if self.is_active() {
            self.device.activate(self.driver_features);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::test_driver::Driver;

    fn well() -> (Driver<Rng>, TransportState) {
        let mut driver = Driver::new(Rng::new());
        let part = driver.writable(64);
        driver.offer(0, &[part]);
        driver.notify(0);
        let state = driver.transport.state();
        (driver, state)
    }

    #[test]
    fn a_device_goes_on_where_it_was_saved() {
        let (mut driver, state) = well();
        let mut other = MmioTransport::new(Rng::new(), driver.memory.clone());
        let queues = other.check(&state).unwrap();
        other.restore(&state, queues);
        assert_eq!(other.state(), state);
        driver.transport = other;
        assert_eq!(driver.used(0), Some((0, 64)));
        assert_eq!(driver.used(0), None);
        let part = driver.writable(32);
        driver.offer(0, &[part]);
        assert!(driver.notify(0));
        assert_eq!(driver.used(0).map(|(_, len)| len), Some(32));
    }

    #[test]
    fn a_state_that_no_device_has_is_refused() {
        let (driver, state) = well();
        let check = |change: fn(&mut TransportState)| {
            let mut state = state.clone();
            change(&mut state);
            driver.transport.check(&state).map(drop)
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|state| state.queues.clear()), Err(DeviceStateError::Queue));
        assert_eq!(check(|state| state.queues[0].max_size = 16), Err(DeviceStateError::Queue));
        assert_eq!(check(|state| state.queues[0].size = 3), Err(DeviceStateError::Queue));
        assert_eq!(check(|state| state.queues[0].used_ring = 1 << 40), Err(DeviceStateError::Queue));
        assert_eq!(check(|state| state.status = u32::MAX), Err(DeviceStateError::Status));
        assert_eq!(check(|state| state.driver_features = u64::MAX), Err(DeviceStateError::Status));
    }
}

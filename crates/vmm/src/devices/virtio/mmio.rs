//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): registers, feature negotiation, the
//! driver's status and its queues. It has no writable configuration space, no legacy interface, no
//! shared memory and no reset of single queues.

pub(crate) mod state;

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice};
use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_mmio as register;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

/// Where the configuration space begins, behind the registers.
const CONFIG_SPACE: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0;

/// Features that every device here has.
const TRANSPORT_FEATURES: u64 = 1 << config::VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;

const ACKNOWLEDGE: u32 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = config::VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = config::VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = config::VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = config::VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = config::VIRTIO_CONFIG_S_FAILED;

/// The bits that a driver adds one after the other, each with the one before it.
const SET_UP: [(u32, u32); 4] =
    [(ACKNOWLEDGE, 0), (DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)];

/// A device with its registers and queues.
#[derive(Debug)]
pub(crate) struct MmioTransport<D> {
    device: D,
    memory: GuestMemory,
    queues: Vec<Queue>,
    status: u32,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
}

impl<D: VirtioDevice> MmioTransport<D> {
    pub(crate) fn new(device: D, memory: GuestMemory) -> MmioTransport<D> {
        let queue = |&size: &u16| Queue::new(size).expect("a device's queue size is a power of two");
        MmioTransport {
            device,
            memory,
            queues: D::QUEUE_SIZES.iter().map(queue).collect(),
            status: 0,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
            config_generation: 0,
        }
    }

    /// Lets the device change its configuration space, and tells the driver.
    pub(crate) fn change_config<E>(
        &mut self,
        change: impl FnOnce(&mut D) -> Result<(), E>,
    ) -> Result<Served, E> {
        change(&mut self.device)?;
        self.config_generation = self.config_generation.wrapping_add(1);
        // One that is not ready reads it when it is.
        let raise = self.is_active();
        if raise {
            self.interrupt_status |= register::VIRTIO_MMIO_INT_CONFIG;
        }
        Ok(Served { raise, more: false })
    }

    pub(crate) fn device(&self) -> &D {
        &self.device
    }

    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The driver has finished its set-up, and neither side has broken anything since.
    pub(crate) fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.device.read_config(offset, data);
        }
        let value = u32::try_from(offset).map_or(0, |offset| self.register(offset));
        match data.len() {
            4 => data.copy_from_slice(&value.to_le_bytes()),
            _ => data.fill(0),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Served {
        let (Ok(offset), Ok(bytes)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return Served::default();
        };
        let value = u32::from_le_bytes(bytes);
        match offset {
            register::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value),
            register::VIRTIO_MMIO_STATUS => return self.set_status(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.set_driver_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            register::VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            register::VIRTIO_MMIO_QUEUE_NUM
            | register::VIRTIO_MMIO_QUEUE_DESC_LOW..=register::VIRTIO_MMIO_QUEUE_USED_HIGH => {
                self.configure_queue(offset, value);
            }
            _ => {}
        }
        Served::default()
    }

    /// Runs `serve` on the device and its queues if the driver is ready for it, and does nothing
    /// otherwise.
    pub(crate) fn with_queues(
        &mut self,
        serve: impl FnOnce(&mut D, &mut [Queue], &GuestMemory) -> Result<Served, QueueError>,
    ) -> Served {
        if !self.is_active() {
            return Served::default();
        }
        let Ok(served) = serve(&mut self.device, &mut self.queues, &self.memory) else {
            return Served { raise: self.fail(), more: false };
        };
        if served.raise {
            self.interrupt_status |= register::VIRTIO_MMIO_INT_VRING;
        }
        served
    }

    /// Serves what waits in each queue, for one round.
    pub(crate) fn serve_all_queues(&mut self) -> Served {
        self.with_queues(|device, queues, memory| {
            let mut served = Served::default();
            for index in 0..queues.len() {
                if queues[index].ready() {
                    served = served | device.notified(index, queues, memory)?;
                }
            }
            Ok(served)
        })
    }

    fn register(&self, offset: u32) -> u32 {
        let queue = self.selected_queue();
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => D::DEVICE_TYPE,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => {
                word(self.device_features(), self.device_features_select)
            }
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            register::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            register::VIRTIO_MMIO_STATUS => self.status,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.config_generation,
            // The length of a shared memory region that does not exist.
            register::VIRTIO_MMIO_SHM_LEN_LOW | register::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn device_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let value = u64::from(value);
        self.driver_features = match self.driver_features_select {
            0 => self.driver_features >> 32 << 32 | value,
            1 => self.driver_features & u64::from(u32::MAX) | value << 32,
            _ => return,
        };
    }

    /// A driver that has chosen what it was not offered, or the legacy interface, reads FEATURES_OK
    /// back and finds that it has not stuck.
    fn accepts_driver_features(&self) -> bool {
        self.driver_features & !self.device_features() == 0
            && self.driver_features & 1 << config::VIRTIO_F_VERSION_1 != 0
    }

    /// Status bits are added one step after the other; none goes but by a reset, which writes 0.
    fn set_status(&mut self, value: u32) -> Served {
        if value == 0 {
            self.reset();
            return Served::default();
        }
        let was_active = self.is_active();
        for (bit, before) in SET_UP {
            let allowed =
                self.status & before == before && (bit != FEATURES_OK || self.accepts_driver_features());
            if value & bit != 0 && allowed {
                self.status |= bit;
            }
        }
        self.status |= value & FAILED;
        match (was_active, self.is_active()) {
            (false, true) => self.activate(),
            (true, false) => {
                self.device.reset();
                Served::default()
            }
            _ => Served::default(),
        }
    }

    fn activate(&mut self) -> Served {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for queue in &mut self.queues {
            queue.set_event_idx(event_idx);
        }
        self.device.activate(self.driver_features);
        self.serve_all_queues()
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::reset);
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt_status = 0;
    }

    /// The driver has broken a rule that the device cannot work around. Returns true when the interrupt
    /// must be raised: before DRIVER_OK a driver must not be interrupted.
    fn fail(&mut self) -> bool {
        self.device.reset();
        self.status |= NEEDS_RESET;
        if self.status & DRIVER_OK == 0 {
            return false;
        }
        self.interrupt_status |= register::VIRTIO_MMIO_INT_CONFIG;
        true
    }

    fn notify(&mut self, index: u32) -> Served {
        let Ok(index) = usize::try_from(index) else { return Served::default() };
        if !self.queues.get(index).is_some_and(QueueT::ready) {
            return Served::default();
        }
        self.with_queues(|device, queues, memory| device.notified(index, queues, memory))
    }

    /// The selected queue, as long as the driver may still set it up.
    fn queue_in_set_up(&mut self) -> Option<&mut Queue> {
        if self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) != FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?).filter(|queue| !queue.ready())
    }

    fn set_queue_ready(&mut self, value: u32) {
        if value != 1 {
            let index = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
            if let Some(queue) = self.queues.get_mut(index) {
                queue.set_ready(false);
            }
            return;
        }
        let memory = self.memory.clone();
        let Some(queue) = self.queue_in_set_up() else { return };
        queue.set_ready(true);
        if !queue.is_valid(&memory) {
            queue.set_ready(false);
            self.fail();
        }
    }

    /// `Queue` keeps its old value when a new one breaks the rules (a size that is no power of two, an
    /// address out of alignment), which is found here by reading it back.
    fn configure_queue(&mut self, offset: u32, value: u32) {
        let Some(queue) = self.queue_in_set_up() else { return };
        let accepted = match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => u16::try_from(value).is_ok_and(|size| {
                queue.set_size(size);
                queue.size() == size
            }),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => {
                queue.set_desc_table_address(Some(value), None);
                word(queue.desc_table(), 0) == value
            }
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                queue.set_avail_ring_address(Some(value), None);
                word(queue.avail_ring(), 0) == value
            }
            register::VIRTIO_MMIO_QUEUE_USED_LOW => {
                queue.set_used_ring_address(Some(value), None);
                word(queue.used_ring(), 0) == value
            }
            _ => {
                match offset {
                    register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                    register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
                    register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
                true
            }
        };
        if !accepted {
            self.fail();
        }
    }
}

/// Word 0 or 1 of a 64-bit value; there are no more.
fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default(),
        1 => u32::try_from(value >> 32).unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{self, Driver, Part};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Marks each chain as used, and counts its calls.
    #[derive(Debug, Default)]
    struct Probe {
        activated: Option<u64>,
        resets: usize,
        served: usize,
        /// So many chains are made available again while they are being served.
        refills: usize,
    }

    impl VirtioDevice for Probe {
        const DEVICE_TYPE: u32 = 42;
        const QUEUE_SIZES: &'static [u16] = &[8, 4];

        fn features(&self) -> u64 {
            1 << 5
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            super::super::read_config_bytes(&[1, 2, 3, 4, 5], offset, data);
        }

        fn activate(&mut self, features: u64) {
            self.activated = Some(features);
        }

        fn reset(&mut self) {
            self.resets += 1;
        }

        fn notified(
            &mut self,
            index: usize,
            queues: &mut [Queue],
            memory: &GuestMemory,
        ) -> Result<Served, QueueError> {
            super::super::serve_queue(&mut queues[index], memory, |chain| {
                self.served += 1;
                if self.refills > 0 {
                    self.refills -= 1;
                    test_driver::make_available_again::<Probe>(memory, index, chain.head_index());
                }
                Ok(0)
            })
        }
    }

    const NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
    const PART: Part = Part { address: 0x10_0000, len: 16, writable: true };

    #[test]
    fn a_driver_finds_the_device() {
        let driver = Driver::unset(Probe::default());
        assert_eq!(driver.read(0), MAGIC);
        assert_eq!(driver.read(4), 2);
        assert_eq!(driver.read(8), 42);
        assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), 8);
        assert_eq!(driver.read(register::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    }

    #[test]
    fn a_driver_is_told_of_a_change_when_it_is_ready() {
        let change =
            |driver: &mut Driver<Probe>| driver.transport.change_config(|_| Ok::<_, ()>(())).unwrap();
        let mut unset = Driver::unset(Probe::default());
        assert_eq!(change(&mut unset), Served::default());
        assert_eq!(unset.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        let mut ready = Driver::new(Probe::default());
        let before = ready.read(register::VIRTIO_MMIO_CONFIG_GENERATION);
        assert!(change(&mut ready).raise);
        assert_eq!(ready.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), register::VIRTIO_MMIO_INT_CONFIG);
        assert_ne!(ready.read(register::VIRTIO_MMIO_CONFIG_GENERATION), before);
        let refused = ready.transport.change_config(|_| Err("too long"));
        assert_eq!(refused, Err("too long"));
        assert_eq!(ready.read(register::VIRTIO_MMIO_CONFIG_GENERATION), before + 1);
    }

    #[test]
    fn configuration_can_be_read_in_any_width_and_ends_in_zeros() {
        let driver = Driver::unset(Probe::default());
        let mut byte = [9];
        driver.transport.read(0x101, &mut byte);
        assert_eq!(byte, [2]);
        let mut word = [9; 8];
        driver.transport.read(0x103, &mut word);
        assert_eq!(word, [4, 5, 0, 0, 0, 0, 0, 0]);
        driver.transport.read(u64::MAX, &mut word);
        assert_eq!(word, [0; 8]);
    }

    #[test]
    fn set_up_activates_the_device_with_what_was_negotiated() {
        let mut driver = Driver::new(Probe::default());
        assert!(driver.transport.is_active());
        assert_eq!(driver.transport.device.activated, Some(1 << 5 | TRANSPORT_FEATURES));
        driver.offer(1, &[PART]);
        assert!(driver.notify(1));
        assert_eq!(driver.used(1), Some((0, 0)));
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    }

    #[test]
    fn a_driver_that_does_not_look_yet_is_not_interrupted_again() {
        let mut driver = Driver::new(Probe::default());
        driver.offer(0, &[PART]);
        assert!(driver.notify(0));
        driver.offer(0, &[PART]);
        assert!(!driver.notify(0));
        while driver.used(0).is_some() {}
        driver.offer(0, &[PART]);
        assert!(driver.notify(0));
    }

    #[test]
    fn a_queue_that_never_runs_empty_is_served_one_round_at_a_time() {
        let mut driver = Driver::new(Probe { refills: usize::MAX, ..Probe::default() });
        let avail_event = driver.avail_event(0);
        driver.offer(0, &[PART]);
        assert_eq!(driver.transport.write(NOTIFY, &[0; 4]), Served { raise: true, more: true });
        assert_eq!(driver.transport.device.served, 8);
        for round in 2..10 {
            // The driver has not looked yet: it is not interrupted again.
            assert_eq!(driver.transport.serve_all_queues(), Served { raise: false, more: true });
            assert_eq!(driver.transport.device.served, 8 * round);
        }
        assert_eq!(driver.avail_event(0), avail_event, "notifications stay disabled while there is more");
    }

    #[test]
    fn the_last_round_leaves_nothing_and_asks_for_notifications_again() {
        let mut driver = Driver::new(Probe { refills: 20, ..Probe::default() });
        for _ in 0..3 {
            driver.offer(0, &[PART]);
        }
        let mut rounds = 0;
        let mut served = driver.transport.write(NOTIFY, &[0; 4]);
        while served.more {
            rounds += 1;
            served = driver.transport.serve_all_queues();
        }
        assert_eq!((rounds, driver.transport.device.served), (2, 23));
        assert_eq!(driver.avail_event(0), 23);
        test_driver::make_available_again::<Probe>(&driver.memory, 0, 0);
        assert_eq!(driver.transport.write(NOTIFY, &[0; 4]), Served::default());
        assert_eq!(driver.transport.device.served, 24);
    }

    #[test]
    fn a_refilled_queue_is_served_in_order() {
        let mut driver = Driver::new(Probe { refills: 20, ..Probe::default() });
        for _ in 0..3 {
            driver.offer(0, &[PART]);
        }
        let mut heads = Vec::new();
        let mut served = driver.transport.write(NOTIFY, &[0; 4]);
        while served.more {
            heads.extend(std::iter::from_fn(|| driver.used(0)).map(|(head, _)| head));
            served = driver.transport.serve_all_queues();
        }
        heads.extend(std::iter::from_fn(|| driver.used(0)).map(|(head, _)| head));
        let expected: Vec<u16> = (0..3).cycle().take(23).collect();
        assert_eq!(heads, expected);
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let mut driver = Driver::unset(Probe::default());
        driver.write(register::VIRTIO_MMIO_STATUS, 1);
        driver.write(register::VIRTIO_MMIO_STATUS, 3);
        driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1 << 6);
        driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        driver.write(register::VIRTIO_MMIO_STATUS, 3 | 8);
        assert_eq!(driver.status(), 3);
    }

    #[test]
    fn a_legacy_driver_is_refused() {
        assert_eq!(Driver::unset(Probe::default()).negotiate(1 << 5), 3);
    }

    #[test]
    fn no_step_of_the_set_up_can_be_left_out() {
        let mut driver = Driver::unset(Probe::default());
        driver.write(register::VIRTIO_MMIO_STATUS, 4);
        driver.write(register::VIRTIO_MMIO_STATUS, 2);
        driver.write(register::VIRTIO_MMIO_STATUS, 8);
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.transport.device.activated, None);
    }

    #[test]
    fn chains_offered_before_the_end_of_the_set_up_are_served_at_its_end() {
        let mut driver = Driver::unset(Probe::default());
        driver.negotiate(u64::MAX);
        driver.set_up_queue(0);
        driver.offer(0, &[PART]);
        assert!(!driver.notify(0));
        assert_eq!(driver.used(0), None);
        assert!(driver.write(register::VIRTIO_MMIO_STATUS, test_driver::DRIVER_OK));
        assert_eq!(driver.used(0), Some((0, 0)));
    }

    #[test]
    fn a_queue_outside_of_memory_stops_the_device() {
        for (offset, value) in [
            (register::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, u32::MAX),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x7f_fffc),
            (register::VIRTIO_MMIO_QUEUE_DESC_LOW, 8),
            (register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 1),
            (register::VIRTIO_MMIO_QUEUE_USED_LOW, 2),
            (register::VIRTIO_MMIO_QUEUE_NUM, 3),
            (register::VIRTIO_MMIO_QUEUE_NUM, 16),
            (register::VIRTIO_MMIO_QUEUE_NUM, 0x1_0008),
        ] {
            let mut driver = Driver::unset(Probe::default());
            driver.negotiate(u64::MAX);
            driver.write(offset, value);
            driver.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
            assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{offset:#x} {value:#x}");
            assert_eq!(driver.read(register::VIRTIO_MMIO_QUEUE_READY), 0);
            driver.write(register::VIRTIO_MMIO_STATUS, test_driver::DRIVER_OK);
            assert_eq!(driver.transport.device.activated, None);
        }
    }

    #[test]
    fn a_broken_ring_stops_the_device_until_it_is_reset() {
        let mut driver = Driver::new(Probe::default());
        driver.break_avail_index(0, 100);
        assert!(driver.notify(0));
        assert_eq!(driver.status(), test_driver::DRIVER_OK | NEEDS_RESET);
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        driver.offer(1, &[PART]);
        assert!(!driver.notify(1));
        assert_eq!(driver.transport.serve_all_queues(), Served::default());
        assert_eq!(driver.transport.device.served, 0);

        driver.write(register::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.set_up();
        driver.offer(0, &[PART]);
        assert!(driver.notify(0));
        assert_eq!(driver.used(0), Some((0, 0)));
    }

    #[test]
    fn a_queue_in_use_cannot_be_moved() {
        let mut driver = Driver::new(Probe::default());
        driver.write(register::VIRTIO_MMIO_QUEUE_SEL, 0);
        driver.write(register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
        driver.offer(0, &[PART]);
        assert!(driver.notify(0));
        assert_eq!(driver.used(0), Some((0, 0)));
    }

    #[test]
    fn any_register_can_be_read_and_written_with_anything() {
        let mut driver = Driver::unset(Probe::default());
        driver.memory.write_slice(&[0xff; 0x1000], GuestAddress(0)).unwrap();
        let mut random = 1_u64;
        let mut served = Served::default();
        for _ in 0..100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = random >> 33 & 0x1ff;
            let value = (random >> 20 & 0xf).to_le_bytes();
            served = served | driver.transport.write(offset, &value[..(random >> 50 & 7) as usize]);
            let mut data = [0; 8];
            driver.transport.read(offset, &mut data[..(random >> 53 & 7) as usize]);
        }
        assert!(!served.more);
    }
}

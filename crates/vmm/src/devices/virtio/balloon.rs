//! The memory balloon, for one purpose: the guest reports what memory it has free, and the host takes it back
//! (virtio 1.2, section 5.5, free page reporting). The guest may use it again at any time, and then finds zeros.
//!
//! It never asks the guest to give up memory that it has not got free: the balloon's size is 0. So there is
//! nothing to deflate when a guest runs out of memory, no statistics, and no list of pages to keep for a fork.

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice, serve_queue};
use crate::memory;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::DescriptorChain;

/// VIRTIO_BALLOON_F_REPORTING. Without VIRTIO_BALLOON_F_PAGE_POISON: a guest that fills its free pages with
/// a pattern, and relies on it, does not report.
const REPORTING: u64 = 1 << 5;

/// Inflating and deflating come first, by the specification. Queues of features that are not offered do not
/// count, so that reporting is the third.
const REPORTING_QUEUE: usize = 2;

/// Ranges of one report that are looked at: as many as Linux has in one. An indirect table may have more.
const RANGES_MAX: usize = 32;

/// The most of one range that is taken back: the largest block of Linux's allocator is 4 MiB. To take back
/// pages that are in use takes time, for which a vCPU could not be stopped.
const RANGE_LEN_MAX: u32 = 16 << 20;

#[derive(Debug)]
pub(crate) struct Balloon {
    /// What has been taken back since the guest said that it reports; `None` while it has not.
    reported_bytes: Option<u64>,
}

impl Balloon {
    pub(crate) fn new() -> Balloon {
        Balloon { reported_bytes: None }
    }

    /// How much memory the guest has reported free since it started to, what it has used again included. `None` if it
    /// does not report.
    pub(crate) fn reported_bytes(&self) -> Option<u64> {
        self.reported_bytes
    }

    /// A saved machine comes back with its account.
    pub(crate) fn restore(&mut self, reported_bytes: Option<u64>) {
        if self.reported_bytes.is_some() {
            self.reported_bytes = reported_bytes.or(self.reported_bytes);
        }
    }
}

impl VirtioDevice for Balloon {
    const DEVICE_TYPE: u32 = VIRTIO_ID_BALLOON;
    const QUEUE_SIZES: &'static [u16] = &[8, 8, 32];

    fn features(&self) -> u64 {
        REPORTING
    }

    /// The size that the balloon should have, the one that it has: 0. The rest belongs to what is not offered.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, features: u64) {
        self.reported_bytes = (features & REPORTING != 0).then_some(0);
    }

    fn reset(&mut self) {
        self.reported_bytes = None;
    }

    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        serve_queue(&mut queues[index], memory, |chain| {
            // A guest that inflates unasked has put the pages away for itself.
            if let (REPORTING_QUEUE, Some(reported)) = (index, &mut self.reported_bytes) {
                *reported = reported.saturating_add(take_back(chain, memory));
            }
            Ok(0)
        })
    }
}

/// A range that is not memory is left alone: nothing was promised for it.
fn take_back(chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> u64 {
    let ranges = chain.writable().take(RANGES_MAX);
    ranges.map(|range| memory::release(memory, range.addr(), range.len().min(RANGE_LEN_MAX))).sum()
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{Driver, Part, any_descriptor};
    use super::{Balloon, RANGE_LEN_MAX, RANGES_MAX, REPORTING, REPORTING_QUEUE};
    use proptest::prelude::*;
    use virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS;
    use virtio_bindings::virtio_ring::VRING_DESC_F_INDIRECT;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::{Bytes, GuestAddress};

    const PAGE_LEN: usize = 4096;
    const PAGES: u64 = 4 << 20;

    /// A driver whose memory from [`PAGES`] on is full of 7, for as many pages.
    fn driver_with_full_pages(count: usize) -> Driver<Balloon> {
        let driver = Driver::new(Balloon::new());
        driver.memory.write_slice(&vec![7; count * PAGE_LEN], GuestAddress(PAGES)).unwrap();
        driver
    }

    fn page(driver: &Driver<Balloon>, index: u64) -> u8 {
        let start = PAGES + index * PAGE_LEN as u64;
        let mut content = [0; PAGE_LEN];
        driver.memory.read_slice(&mut content, GuestAddress(start)).unwrap();
        assert!(content.iter().all(|byte| *byte == content[0]), "page {index} was taken back in part");
        content[0]
    }

    fn pages(driver: &Driver<Balloon>, count: u64) -> Vec<u8> {
        (0..count).map(|index| page(driver, index)).collect()
    }

    fn report(driver: &mut Driver<Balloon>, ranges: &[(u64, u32)]) {
        let part = |&(address, len)| Part { address, len, writable: true };
        let head = driver.offer(REPORTING_QUEUE, &ranges.iter().map(part).collect::<Vec<_>>());
        assert!(driver.notify(REPORTING_QUEUE));
        assert_eq!(driver.used(REPORTING_QUEUE), Some((head, 0)));
        assert_eq!(driver.used(REPORTING_QUEUE), None);
    }

    #[test]
    fn reporting_is_offered_and_nothing_that_goes_with_other_queues() {
        let mut driver = Driver::new(Balloon::new());
        assert_eq!(driver.device_features() & 0xff, REPORTING);
    }

    #[test]
    fn what_is_reported_is_taken_back_and_nothing_beside_it() {
        let mut driver = driver_with_full_pages(6);
        report(&mut driver, &[(PAGES + 0x1000, 0x2000), (PAGES + 0x4000, 0x1000)]);
        assert_eq!(pages(&driver, 6), [7, 0, 0, 7, 0, 7]);
        // It is memory as before.
        driver.memory.write_slice(&[9; PAGE_LEN], GuestAddress(PAGES + 0x1000)).unwrap();
        assert_eq!(pages(&driver, 6), [7, 9, 0, 7, 0, 7]);
    }

    #[test]
    fn what_was_taken_back_is_counted_until_the_driver_resets_the_device() {
        let mut driver = driver_with_full_pages(4);
        assert_eq!(driver.transport.device_mut().reported_bytes(), Some(0));
        report(&mut driver, &[(PAGES, 0x2000), (PAGES + 0x3001, 0xfff), (1 << 40, 0x1000)]);
        report(&mut driver, &[(PAGES, 0x1000)]);
        assert_eq!(driver.transport.device_mut().reported_bytes(), Some(0x3000));
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.transport.device_mut().reported_bytes(), None);
    }

    #[test]
    fn a_page_that_is_reported_in_part_is_kept() {
        let mut driver = driver_with_full_pages(4);
        report(&mut driver, &[(PAGES + 1, 0x3ffe), (PAGES + 0x3001, 0xfff), (PAGES, 0xfff), (PAGES, 0)]);
        assert_eq!(pages(&driver, 4), [7, 0, 0, 7]);
    }

    #[test]
    fn what_is_not_memory_is_left_alone_and_the_rest_of_its_report_is_not() {
        let mut driver = driver_with_full_pages(2);
        let outside =
            [(u64::MAX - 0xfff, 0x1000), (u64::MAX, u32::MAX), (1 << 40, 0x1000), (0x7ff000, 0x2000)];
        report(&mut driver, &outside);
        report(&mut driver, &[outside[0], (PAGES, 0x1000)]);
        assert_eq!(pages(&driver, 2), [0, 7]);
    }

    #[test]
    fn what_the_device_could_not_write_is_no_report() {
        let mut driver = driver_with_full_pages(1);
        driver.offer(REPORTING_QUEUE, &[Part { address: PAGES, len: 0x1000, writable: false }]);
        driver.notify(REPORTING_QUEUE);
        assert_eq!(driver.used(REPORTING_QUEUE), Some((0, 0)));
        assert_eq!(pages(&driver, 1), [7]);
    }

    #[test]
    fn pages_that_are_given_to_the_balloon_unasked_stay_as_they_are() {
        let mut driver = driver_with_full_pages(1);
        for queue in 0..REPORTING_QUEUE {
            let frames = driver.readable(&u32::to_le_bytes(u32::try_from(PAGES >> 12).unwrap()));
            let head = driver.offer(queue, &[frames]);
            assert!(driver.notify(queue));
            assert_eq!(driver.used(queue), Some((head, 0)));
        }
        assert_eq!(pages(&driver, 1), [7]);
    }

    #[test]
    fn one_report_takes_back_no_more_than_its_limits() {
        let many = RANGES_MAX + 1;
        let mut driver = driver_with_full_pages(many);
        let table = 0x4_0000;
        for index in 0..many as u64 {
            let next = u16::try_from(index + 1).unwrap();
            let chained = 2 | u16::from(usize::from(next) < many);
            let range = Descriptor::new(PAGES + index * 0x1000, 0x1000, chained, next);
            driver.memory.write_obj(RawDescriptor::from(range), GuestAddress(table + 16 * index)).unwrap();
        }
        let flags = u16::try_from(VRING_DESC_F_INDIRECT).unwrap();
        let len = u32::try_from(16 * many).unwrap();
        driver.write_descriptor(REPORTING_QUEUE, 0, Descriptor::new(table, len, flags, 0));
        driver.make_available(REPORTING_QUEUE, 0);
        driver.notify(REPORTING_QUEUE);
        assert_eq!(driver.used(REPORTING_QUEUE), Some((0, 0)));
        let kept: Vec<u8> = pages(&driver, many as u64).into_iter().filter(|byte| *byte == 7).collect();
        assert_eq!(kept.len(), 1);
        assert!(u64::from(RANGE_LEN_MAX) * (RANGES_MAX as u64) < 1 << 30);
    }

    proptest! {
        #[test]
        fn garbage_is_survived_and_takes_back_whole_pages_only(
            descriptors in prop::collection::vec(any_descriptor(), 8),
            heads in prop::collection::vec((0..3_usize, 0..10_u16), 1..9),
        ) {
            let mut driver = driver_with_full_pages(64);
            for (slot, descriptor) in (0..).zip(descriptors) {
                for queue in 0..3 {
                    driver.write_descriptor(queue, slot, descriptor);
                }
            }
            for (queue, head) in heads {
                driver.make_available(queue, head);
            }
            for queue in 0..3 {
                driver.notify(queue);
            }
            prop_assert!(pages(&driver, 64).into_iter().all(|byte| byte == 7 || byte == 0));
        }
    }
}

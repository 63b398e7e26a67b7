//! The entropy device: fills the driver's buffers from getrandom(2).

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice, serve_queue};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io::Write;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;

/// The most that one request gets; getrandom(2) fills that much in one go. Drivers ask again for more.
const REQUEST_LEN_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Rng;

impl Rng {
    pub(crate) fn new() -> Rng {
        Rng
    }
}

impl VirtioDevice for Rng {
    const DEVICE_TYPE: u32 = VIRTIO_ID_RNG;
    const QUEUE_SIZES: &'static [u16] = &[8];

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        serve_queue(&mut queues[index], memory, |chain| fill(chain, memory))
    }
}

/// A chain without room, or a host without entropy, gets a used length of 0.
fn fill(chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> Result<u32, QueueError> {
    let mut writer = chain.writer(memory)?;
    let mut buffer = [0; REQUEST_LEN_MAX];
    let wanted = writer.available_bytes().min(buffer.len());
    let filled = getrandom(&mut buffer[..wanted], GetRandomFlags::empty()).unwrap_or(0);
    let written = writer.write(&buffer[..filled]).map_err(|_| QueueError::InvalidChain)?;
    Ok(u32::try_from(written).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{Driver, any_descriptor};
    use super::Rng;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_filled_with_random_bytes_up_to_the_limit() {
        let mut driver = Driver::new(Rng::new());
        let long = driver.writable(4096);
        driver.offer(0, &[long]);
        assert!(driver.notify(0));
        assert_eq!(driver.used(0), Some((0, 256)));
        let content = driver.content(long, 4096);
        assert!(content[..256].iter().any(|&byte| byte != 0));
        assert!(content[256..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_request_without_room_gets_nothing() {
        let mut driver = Driver::new(Rng::new());
        let part = driver.readable(&[7; 64]);
        driver.offer(0, &[part]);
        driver.notify(0);
        assert_eq!(driver.used(0), Some((0, 0)));
        assert_eq!(driver.content(part, 64), [7; 64]);
    }

    proptest! {
        #[test]
        fn garbage_is_survived(
            descriptors in prop::collection::vec(any_descriptor(), 8),
            heads in prop::collection::vec(0..10_u16, 1..9),
        ) {
            let mut driver = Driver::new(Rng::new());
            for (slot, descriptor) in (0..).zip(descriptors) {
                driver.write_descriptor(0, slot, descriptor);
            }
            for head in heads {
                driver.make_available(0, head);
            }
            driver.notify(0);
        }
    }
}

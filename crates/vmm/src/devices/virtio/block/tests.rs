//! The block device as its driver sees it.

use super::super::test_driver::{Driver, NEEDS_RESET, any_descriptor, pattern};
use super::*;
use proptest::prelude::*;
use std::fs::File;
use std::io::Write;

const DISK_LEN: u64 = 1 << 20;
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn driver_on(layer: File) -> Driver<Block> {
    let mut base = tempfile::tempfile().unwrap();
    base.write_all(&[0xba; 8192]).unwrap();
    let disk = Disk::new(base, layer, DISK_LEN).unwrap();
    Driver::new(Block::new(disk, Arc::new(AtomicBool::new(false))))
}

fn driver() -> Driver<Block> {
    driver_on(tempfile::tempfile().unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Runs one request. Returns its status, what it has read, and the length it says it has written.
fn run(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, Vec<u8>, u32) {
    let mut parts = vec![driver.readable(&header(kind, sector))];
    if !data.is_empty() {
        parts.push(driver.readable(data));
    }
    let answer = driver.writable(room);
    let status = driver.writable(1);
    parts.extend((room > 0).then_some(answer));
    parts.push(status);
    let head = driver.offer(0, &parts);
    driver.notify(0);
    let (used_head, len) = driver.used(0).expect("the request is served before the notification ends");
    assert_eq!(used_head, head);
    assert!(driver.used(0).is_none());
    (driver.content(status, 1)[0], driver.content(answer, room), len)
}

fn read(driver: &mut Driver<Block>, sector: u64, len: usize) -> Vec<u8> {
    let (status, content, used_len) = run(driver, blk::VIRTIO_BLK_T_IN, sector, &[], len);
    assert_eq!(status, OK);
    assert_eq!(usize::try_from(used_len).unwrap(), len + 1);
    content
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn requests_that_come_while_the_machine_is_brought_to_a_stand_wait_for_the_next_round() {
    let mut driver = driver();
    let pausing = driver.transport.device_mut().pausing.clone();
    let parts =
        [driver.readable(&header(blk::VIRTIO_BLK_T_GET_ID, 0)), driver.writable(20), driver.writable(1)];
    let head = driver.offer(0, &parts);
    pausing.store(true, Ordering::Relaxed);
    assert_eq!(driver.transport.serve_all_queues(), Served { raise: false, more: true });
    assert_eq!(driver.used(0), None);
    pausing.store(false, Ordering::Relaxed);
    assert_eq!(driver.transport.serve_all_queues(), Served { raise: true, more: false });
    assert_eq!(driver.used(0), Some((head, 21)));
}

#[test]
fn the_configuration_names_the_capacity_and_the_limits() {
    let driver = driver();
    assert_eq!(driver.read(0x100), 2048);
    assert_eq!(driver.read(0x108), SEGMENT_LEN_MAX);
    assert_eq!(driver.read(0x10c), SEGMENTS_MAX);
    assert_eq!(driver.read(0x114), 512);
    assert_eq!(driver.read(0x124), DISCARD_SECTORS_MAX);
    assert_eq!(driver.read(0x128), 1);
    assert_eq!(driver.read(0x130), DISCARD_SECTORS_MAX);
    assert_eq!(driver.read(0x138), 1);
}

#[test]
fn what_was_written_is_read_back_and_the_rest_is_the_base() {
    let mut driver = driver();
    let data = pattern(1024);
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_OUT, 9, &data, 0).0, OK);
    let content = read(&mut driver, 0, 16384);
    assert!(content[..9 * 512].iter().all(|&byte| byte == 0xba));
    assert_eq!(content[9 * 512..11 * 512], data);
    assert!(content[11 * 512..8192].iter().all(|&byte| byte == 0xba));
    assert!(content[8192..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_request_longer_than_the_bounce_buffer_is_served_whole() {
    let mut driver = driver();
    let data = pattern(3 * request::BOUNCE_LEN);
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_OUT, 3, &data, 0).0, OK);
    assert_eq!(read(&mut driver, 3, data.len()), data);
}

#[test]
fn a_request_beyond_the_end_fails() {
    let mut driver = driver();
    for sector in [2048, 2047, u64::MAX, u64::MAX / 512] {
        assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_OUT, sector, &[1; 1024], 0).0, FAILED);
        assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_IN, sector, &[], 1024).0, FAILED);
    }
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_IN, 0, &[], 511).0, FAILED);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let mut driver = driver();
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_DISCARD, 0, &range(0, 8, 0), 0).0, OK);
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(9, 2, 1), 0).0, OK);
    let content = read(&mut driver, 0, 8192);
    assert!(content[..4096].iter().all(|&byte| byte == 0));
    assert!(content[4096..9 * 512].iter().all(|&byte| byte == 0xba));
    assert!(content[9 * 512..11 * 512].iter().all(|&byte| byte == 0));
    assert!(content[11 * 512..].iter().all(|&byte| byte == 0xba));
}

#[test]
fn ranges_that_break_the_limits_are_refused() {
    let mut driver = driver();
    let too_many = [range(0, 8, 0), range(8, 8, 0)].concat();
    for (data, status) in [
        (range(0, DISCARD_SECTORS_MAX + 1, 0), FAILED),
        (range(2048, 8, 0), FAILED),
        (range(u64::MAX, 8, 0), FAILED),
        (range(0, 8, 1), UNSUPPORTED),
        (vec![0; 15], FAILED),
        (too_many, FAILED),
    ] {
        assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_DISCARD, 0, &data, 0).0, status);
    }
}

#[test]
fn flush_identity_and_unknown_requests_are_answered() {
    let mut driver = driver();
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_FLUSH, 0, &[], 0).0, OK);
    let (status, serial, _) = run(&mut driver, blk::VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert_eq!((status, &serial[..13]), (OK, &b"podflare-root"[..]));
    assert_eq!(run(&mut driver, 99, 0, &[], 0).0, UNSUPPORTED);
}

#[test]
fn a_full_host_disk_fails_the_write_and_nothing_else() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let mut driver = driver_on(full);
    assert_eq!(run(&mut driver, blk::VIRTIO_BLK_T_OUT, 0, &[1; 8192], 0).0, FAILED);
    assert_eq!(read(&mut driver, 0, 8192), [0xba; 8192]);
    assert_eq!(driver.transport.device_mut().disk_mut().layer_bytes(), 0);
    assert!(driver.transport.is_active());
}

#[test]
fn a_request_that_cannot_be_answered_breaks_the_queue() {
    let mut driver = driver();
    let short = driver.readable(&[0; 15]);
    let status = driver.writable(1);
    driver.offer(0, &[short, status]);
    assert!(driver.notify(0));
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
}

proptest! {
    #[test]
    fn garbage_is_survived(
        descriptors in prop::collection::vec(any_descriptor(), 8),
        kinds in prop::collection::vec((0..15_u32, any::<u64>()), 8),
        heads in prop::collection::vec(0..9_u16, 1..20),
    ) {
        let mut driver = driver();
        for (slot, descriptor) in (0..).zip(descriptors) {
            driver.write_descriptor(0, slot, descriptor);
        }
        for (index, (kind, sector)) in kinds.into_iter().enumerate() {
            let bytes = header(kind, sector);
            let address = vm_memory::GuestAddress((1 << 20) + 16 * index as u64);
            vm_memory::Bytes::write_slice(&driver.memory, &bytes, address).unwrap();
        }
        for head in heads {
            driver.make_available(0, head);
        }
        driver.notify(0);
    }
}

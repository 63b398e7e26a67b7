use super::super::test_driver::{Driver, any_descriptor, pattern};
use super::{FRAME_LEN_MAX, HEADER_LEN, Net, RX, TX};
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL};
use vmm_sys_util::epoll::{Epoll, EpollEvent};

/// A card that is plugged into a socket, which keeps the bounds of frames as a TAP interface does.
fn plugged_driver() -> (Driver<Net>, OwnedFd) {
    let mut driver = Driver::new(Net::new());
    let cable = plug(driver.transport.device_mut());
    (driver, cable)
}

fn plug(net: &mut Net) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tap, cable) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    net.attach(tap).unwrap();
    cable
}

fn frame(payload_len: usize) -> Vec<u8> {
    [vec![0; HEADER_LEN], pattern(payload_len)].concat()
}

fn deliver(driver: &mut Driver<Net>) -> bool {
    driver.transport.with_queues(Net::deliver).raise
}

/// Has the card's interface watched; the result says whether it is ready.
fn watch(driver: &mut Driver<Net>) -> impl Fn() -> bool + use<> {
    let poller = Arc::new(Epoll::new().unwrap());
    driver.transport.device_mut().set_poller(Some(poller.clone()));
    move || {
        let mut events = [EpollEvent::default(); 4];
        let count = poller.wait(0, &mut events).unwrap();
        events[..count].iter().any(|event| event.data() == Net::TOKEN)
    }
}

fn received_at(cable: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; HEADER_LEN + FRAME_LEN_MAX];
    let len = rustix::io::read(cable, &mut buffer).ok()?;
    buffer.truncate(len);
    Some(buffer)
}

#[test]
fn a_frame_of_the_guest_arrives_at_the_interface_with_its_header() {
    let (mut driver, cable) = plugged_driver();
    let sent = frame(1500);
    let parts = [driver.readable(&sent[..HEADER_LEN]), driver.readable(&sent[HEADER_LEN..])];
    let head = driver.offer(TX, &parts);
    driver.notify(TX);
    assert_eq!(received_at(&cable), Some(sent));
    assert_eq!(driver.used(TX), Some((head, 0)));
}

#[test]
fn a_frame_that_is_too_long_is_lost_and_the_next_one_is_not() {
    let (mut driver, cable) = plugged_driver();
    for len in [FRAME_LEN_MAX + 1, FRAME_LEN_MAX] {
        let part = driver.readable(&frame(len));
        driver.offer(TX, &[part]);
        driver.notify(TX);
    }
    assert_eq!(received_at(&cable).map(|received| received.len()), Some(HEADER_LEN + FRAME_LEN_MAX));
    assert_eq!(received_at(&cable), None);
}

#[test]
fn what_the_guest_sends_without_an_interface_is_lost() {
    let mut driver = Driver::new(Net::new());
    let part = driver.readable(&frame(60));
    let head = driver.offer(TX, &[part]);
    driver.notify(TX);
    assert_eq!(driver.used(TX), Some((head, 0)));
}

#[test]
fn a_frame_for_the_guest_is_spread_over_as_many_buffers_as_it_needs() {
    let (mut driver, cable) = plugged_driver();
    let parts: Vec<_> = (0..3).map(|_| driver.writable(1536)).collect();
    let heads: Vec<_> = parts.iter().map(|part| driver.offer(RX, &[*part])).collect();
    let sent = frame(3000);
    rustix::io::write(&cable, &sent).unwrap();
    assert!(deliver(&mut driver));
    assert_eq!(driver.used(RX), Some((heads[0], 1536)));
    assert_eq!(driver.used(RX), Some((heads[1], 3012 - 1536)));
    assert_eq!(driver.used(RX), None);
    let mut expected = sent;
    expected[10] = 2;
    let seen = [driver.content(parts[0], 1536), driver.content(parts[1], 3012 - 1536)].concat();
    assert!(seen == expected, "the frame was changed on its way");
}

#[test]
fn a_frame_waits_until_the_guest_has_offered_room_for_all_of_it() {
    let (mut driver, cable) = plugged_driver();
    let first = driver.writable(1536);
    driver.offer(RX, &[first]);
    rustix::io::write(&cable, &frame(2000)).unwrap();
    assert!(!deliver(&mut driver));
    assert_eq!(driver.used(RX), None);
    let second = driver.writable(1536);
    driver.offer(RX, &[second]);
    assert!(driver.notify(RX));
    assert_eq!(driver.used(RX), Some((0, 1536)));
    assert_eq!(driver.used(RX), Some((1, 2012 - 1536)));
}

#[test]
fn frames_arrive_in_their_order_and_none_twice() {
    let (mut driver, cable) = plugged_driver();
    let parts: Vec<_> = (0..100).map(|_| driver.writable(128)).collect();
    for part in &parts {
        driver.offer(RX, &[*part]);
    }
    for len in 0..100 {
        rustix::io::write(&cable, &frame(len)).unwrap();
    }
    assert!(deliver(&mut driver));
    for len in 0..100_u16 {
        assert_eq!(driver.used(RX), Some((len, 12 + u32::from(len))));
    }
    assert_eq!(driver.used(RX), None);
}

#[test]
fn an_interface_is_watched_only_while_the_guest_has_room() {
    let (mut driver, cable) = plugged_driver();
    let is_signalled = watch(&mut driver);
    let part = driver.writable(128);
    driver.offer(RX, &[part]);
    deliver(&mut driver);
    assert!(!is_signalled());
    for _ in 0..2 {
        rustix::io::write(&cable, &frame(60)).unwrap();
    }
    assert!(is_signalled());
    assert!(deliver(&mut driver));
    assert!(!is_signalled(), "there is no room for the second frame");
    let part = driver.writable(128);
    driver.offer(RX, &[part]);
    driver.notify(RX);
    rustix::io::write(&cable, &frame(60)).unwrap();
    assert!(is_signalled());
}

#[test]
fn a_driver_that_takes_its_queue_away_is_not_told_of_frames_for_ever() {
    let (mut driver, cable) = plugged_driver();
    let is_signalled = watch(&mut driver);
    let part = driver.writable(128);
    driver.offer(RX, &[part]);
    deliver(&mut driver);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    rustix::io::write(&cable, &frame(60)).unwrap();
    assert!(is_signalled());
    assert!(!deliver(&mut driver));
    assert!(!is_signalled());
}

#[test]
fn a_copy_neither_takes_nor_sends_frames_through_its_sources_interface() {
    let mut driver = Driver::new(Net::new());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tap, cable) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let sources = tap.try_clone().unwrap();
    driver.transport.device_mut().attach(tap).unwrap();
    rustix::io::write(&cable, &frame(60)).unwrap();
    driver.transport.device_mut().let_go_of_inherited();
    let part = driver.writable(128);
    driver.offer(RX, &[part]);
    assert!(!deliver(&mut driver));
    let part = driver.readable(&frame(60));
    driver.offer(TX, &[part]);
    driver.notify(TX);
    assert_eq!(received_at(&cable), None);
    assert_eq!(received_at(&sources), Some(frame(60)));
}

#[test]
fn the_card_tells_its_address() {
    let (driver, _cable) = plugged_driver();
    let mut config = [0xff; 8];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0]);
}

proptest! {
    #[test]
    fn garbage_is_survived(
        queue in 0..2_usize,
        descriptors in prop::collection::vec(any_descriptor(), 8),
        heads in prop::collection::vec(0..10_u16, 1..9),
        frames in prop::collection::vec(0..3000_usize, 0..4),
    ) {
        let (mut driver, cable) = plugged_driver();
        for len in frames {
            rustix::io::write(&cable, &frame(len)).unwrap();
        }
        for (slot, descriptor) in (0..).zip(descriptors) {
            driver.write_descriptor(queue, slot, descriptor);
        }
        for head in heads {
            driver.make_available(queue, head);
        }
        driver.notify(queue);
    }
}

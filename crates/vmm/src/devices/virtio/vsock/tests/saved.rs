//! The socket device of a machine that is saved and comes back.

use super::super::state::VsockState;
use super::*;
use crate::devices::DeviceStateError;
use crate::devices::virtio::mmio::MmioTransport;
use podflare_wire::codec;

impl Guest {
    /// Puts the saved device into the place of the one that there was, as in another process.
    fn come_back(&mut self) {
        let (registers, device) = (self.driver.transport.state(), self.driver.transport.device().state());
        let mut transport = MmioTransport::new(Vsock::new(), self.driver.memory.clone());
        let queues = transport.check(&registers).unwrap();
        Vsock::check(&device).unwrap();
        transport.restore(&registers, queues);
        transport.device_mut().restore(device);
        self.poller = Arc::new(Epoll::new().unwrap());
        transport.device_mut().set_poller(Some(self.poller.clone()));
        self.driver.transport = transport;
    }
}

#[test]
fn connections_that_the_guest_knows_of_are_reset_and_new_ones_are_others() {
    let mut guest = Guest::new();
    let (accepted, stream) = guest.accept();
    let _requested = guest.connect();
    let requested = guest.expect(op::REQUEST).src_port;
    assert!(guest.next().is_none());
    guest.come_back();
    assert_eq!(guest.vsock().connection_count(), 0);
    assert!(is_at_end(&stream));

    let _new = guest.connect();
    for host_port in [accepted.host_port, requested] {
        assert_eq!(guest.expect(op::RST).src_port, host_port);
    }
    let new = guest.expect(op::REQUEST).src_port;
    assert!(new != accepted.host_port && new != requested);
    assert!(guest.next().is_none());
}

#[test]
fn resets_that_were_due_still_are() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (socket, _stream) = guest.accept();
    guest.vsock().reset_inherited();
    guest.send(Socket { host_port: 77, received: 0 }, op::RW, b"to nobody");
    guest.come_back();
    guest.come_back();
    guest.offer_buffers(4);
    assert_eq!(guest.expect(op::RST).src_port, socket.host_port);
    assert_eq!(guest.expect(op::RST).src_port, 77);
    assert!(guest.next().is_none());
}

#[test]
fn buffers_that_were_kept_are_given_back() {
    let mut guest = Guest::new();
    let (socket, _stream) = guest.accept();
    while guest.driver.used(TX).is_some() {}
    for _ in 0..3 {
        guest.send(socket, op::RW, b"kept");
    }
    assert!(guest.driver.used(TX).is_none());
    guest.come_back();
    guest.send(socket, op::RW, b"to nobody");
    let given_back = std::iter::from_fn(|| guest.driver.used(TX)).count();
    assert!(given_back >= 4, "{given_back}");
    assert!(guest.driver.transport.is_active());
}

#[test]
fn more_than_the_device_can_have_is_refused() {
    let check = |resets: usize, answers: usize, transmitted: usize, next_host_port: u32| {
        let ports = |count| vec![(PORT, HOST_PORT_FIRST); count];
        let fields = (ports(resets), ports(answers), vec![0_u16; transmitted], next_host_port);
        Vsock::check(&codec::decode::<VsockState>(&codec::encode(&fields)).unwrap())
    };
    let chains = usize::from(Vsock::QUEUE_SIZES[TX]);
    assert_eq!(check(CONNECTIONS_MAX, ANSWERS_MAX, chains, HOST_PORT_LAST), Ok(()));
    assert_eq!(check(CONNECTIONS_MAX + 1, 0, 0, HOST_PORT_FIRST), Err(DeviceStateError::Vsock));
    assert_eq!(check(0, ANSWERS_MAX + 1, 0, HOST_PORT_FIRST), Err(DeviceStateError::Vsock));
    assert_eq!(check(0, 0, chains + 1, HOST_PORT_FIRST), Err(DeviceStateError::Vsock));
    for host_port in [0, HOST_PORT_FIRST - 1, HOST_PORT_LAST + 1] {
        assert_eq!(check(0, 0, 0, host_port), Err(DeviceStateError::Vsock));
    }
}

#[test]
fn heads_of_chains_that_no_queue_has_break_it_and_nothing_else() {
    let mut guest = Guest::new();
    let (socket, _stream) = guest.accept();
    let fields = (Vec::<(u32, u32)>::new(), Vec::<(u32, u32)>::new(), vec![u16::MAX; 3], HOST_PORT_FIRST);
    guest.vsock().restore(codec::decode(&codec::encode(&fields)).unwrap());
    guest.send(socket, op::RW, b"x");
    assert_eq!(guest.driver.status() & NEEDS_RESET, NEEDS_RESET);
}

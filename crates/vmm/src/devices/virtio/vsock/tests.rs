//! The socket device between a guest's driver and host streams.

mod saved;

use super::super::test_driver::{Driver, NEEDS_RESET, Part, any_descriptor, pattern};
use super::connection::BACKLOG_LEN_MAX;
use super::packet::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::net::Shutdown;

/// The guest's receive buffer for each socket, and its buffers in the receive queue.
const GUEST_LEN: u32 = 64 * 1024;
const BUFFER_LEN: usize = 4096;
const PORT: u32 = 1024;

/// A guest with its driver and the machine's main loop.
struct Guest {
    driver: Driver<Vsock>,
    poller: Arc<Epoll>,
    /// Buffers in the receive queue, by their chain's head.
    buffers: BTreeMap<u16, Part>,
}

/// One socket of the guest.
#[derive(Clone, Copy)]
struct Socket {
    host_port: u32,
    received: u32,
}

impl Guest {
    fn new() -> Guest {
        let mut guest = Guest::without_buffers();
        guest.offer_buffers(16);
        guest
    }

    fn without_buffers() -> Guest {
        let poller = Arc::new(Epoll::new().unwrap());
        let mut vsock = Vsock::new();
        vsock.set_poller(Some(poller.clone()));
        Guest { driver: Driver::new(vsock), poller, buffers: BTreeMap::new() }
    }

    fn offer_buffers(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let part = self.driver.writable(BUFFER_LEN);
            let head = self.driver.offer(RX, &[part]);
            self.buffers.insert(head, part);
        }
        self.driver.notify(RX)
    }

    fn vsock(&mut self) -> &mut Vsock {
        self.driver.transport.device_mut()
    }

    fn deliver(&mut self) -> bool {
        self.driver.transport.with_queues(Vsock::deliver).raise
    }

    fn connect(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.vsock().connect(PORT, theirs.into()).unwrap();
        self.deliver();
        ours.set_nonblocking(true).unwrap();
        ours
    }

    /// What the poller has to say at once, as the main loop would pass it on. Returns how much it was.
    fn poll(&mut self) -> usize {
        let mut events = [EpollEvent::default(); 16];
        let count = self.poller.wait(0, &mut events).unwrap();
        for event in &events[..count] {
            self.vsock().host_event(host_port_of(event.data()), event.event_set());
        }
        self.deliver();
        count
    }

    /// The poller becomes silent, whatever the guest does not do.
    fn poll_until_silent(&mut self) {
        for _ in 0..1000 {
            if self.poll() == 0 {
                return;
            }
        }
        panic!("the poller never becomes silent");
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.driver.used(RX)?;
        let part = self.buffers.remove(&head).unwrap();
        let content = self.driver.content(part, len.try_into().unwrap());
        let header = Header::from_bytes(content[..HEADER_LEN].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, GUEST_CID, TYPE_STREAM));
        assert_eq!(usize::try_from(header.len).unwrap(), content.len() - HEADER_LEN);
        Some((header, content[HEADER_LEN..].to_vec()))
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.next().expect("a packet");
        assert_eq!(header.op, op);
        header
    }

    fn send(&mut self, socket: Socket, op: u16, payload: &[u8]) -> bool {
        let len = payload.len().try_into().unwrap();
        self.send_as(Header { op, len, ..self.header(socket) }, payload)
    }

    fn header(&self, socket: Socket) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: socket.host_port,
            kind: TYPE_STREAM,
            buf_alloc: GUEST_LEN,
            fwd_cnt: socket.received,
            ..Header::default()
        }
    }

    fn send_as(&mut self, header: Header, payload: &[u8]) -> bool {
        let mut parts = vec![self.driver.readable(&header.to_bytes())];
        if !payload.is_empty() {
            parts.push(self.driver.readable(payload));
        }
        self.driver.offer(TX, &parts);
        self.driver.notify(TX)
    }

    /// A connection that the guest has accepted.
    fn accept(&mut self) -> (Socket, UnixStream) {
        let stream = self.connect();
        let socket = Socket { host_port: self.expect(op::REQUEST).src_port, received: 0 };
        self.send(socket, op::RESPONSE, &[]);
        (socket, stream)
    }

    /// Everything the guest can receive now; it gives its buffers back and grants credit.
    fn receive_all(&mut self, socket: &mut Socket) -> Vec<u8> {
        let mut received = Vec::new();
        loop {
            self.poll();
            let before = received.len();
            while let Some((header, bytes)) = self.next() {
                assert_eq!(header.op, op::RW);
                received.extend_from_slice(&bytes);
                self.offer_buffers(1);
            }
            if received.len() == before {
                return received;
            }
            socket.received = socket.received.wrapping_add((received.len() - before).try_into().unwrap());
            self.send(*socket, op::CREDIT_UPDATE, &[]);
        }
    }
}

/// What a stream has at once.
fn read_all(mut stream: &UnixStream) -> Vec<u8> {
    let mut content = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        content.extend_from_slice(&buffer[..len]);
    }
    content
}

fn is_at_end(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn a_connection_carries_bytes_both_ways() {
    let mut guest = Guest::new();
    let mut stream = guest.connect();
    let request = guest.expect(op::REQUEST);
    assert_eq!((request.dst_port, request.buf_alloc), (PORT, BACKLOG_LEN_MAX));
    let socket = Socket { host_port: request.src_port, received: 0 };
    guest.send(socket, op::RESPONSE, &[]);

    stream.write_all(b"to the guest").unwrap();
    guest.poll();
    assert_eq!(guest.next().unwrap().1, b"to the guest");
    guest.send(socket, op::RW, b"to the host");
    assert_eq!(read_all(&stream), b"to the host");
    assert_eq!(guest.vsock().connection_count(), 1);
}

#[test]
fn bytes_that_were_there_before_the_answer_follow_it_at_once() {
    let mut guest = Guest::new();
    let mut stream = guest.connect();
    stream.write_all(b"early").unwrap();
    guest.poll_until_silent();
    let socket = Socket { host_port: guest.expect(op::REQUEST).src_port, received: 0 };
    assert!(guest.next().is_none());
    assert!(guest.send(socket, op::RESPONSE, &[]));
    assert_eq!(guest.next().unwrap().1, b"early");
}

#[test]
fn a_connection_waits_for_the_driver_and_its_buffers() {
    let mut guest = Guest::without_buffers();
    guest.driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    let (_stream, theirs) = UnixStream::pair().unwrap();
    guest.vsock().connect(PORT, theirs.into()).unwrap();
    assert!(!guest.deliver());
    // What a driver does first, when it finds the device.
    guest.driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    guest.driver.set_up();
    assert!(guest.next().is_none());
    assert!(guest.offer_buffers(1));
    guest.expect(op::REQUEST);
}

#[test]
fn a_refused_connection_is_closed() {
    let mut guest = Guest::new();
    let stream = guest.connect();
    let socket = Socket { host_port: guest.expect(op::REQUEST).src_port, received: 0 };
    guest.send(socket, op::RST, &[]);
    assert!(is_at_end(&stream));
    assert_eq!(guest.vsock().connection_count(), 0);
    assert!(guest.next().is_none());
}

#[test]
fn a_connection_that_the_host_gives_up_before_it_was_made_is_dropped() {
    let mut guest = Guest::without_buffers();
    drop(guest.connect());
    guest.poll_until_silent();
    assert_eq!(guest.vsock().connection_count(), 0);

    guest.offer_buffers(4);
    drop(guest.connect());
    guest.expect(op::REQUEST);
    guest.poll_until_silent();
    guest.expect(op::RST);
    assert_eq!(guest.vsock().connection_count(), 0);
}

#[test]
fn the_guest_cannot_open_connections() {
    let mut guest = Guest::new();
    let stranger = Socket { host_port: 7, received: 0 };
    guest.send(stranger, op::REQUEST, &[]);
    let reset = guest.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (7, PORT));
    guest.send(stranger, op::RST, &[]);
    assert!(guest.next().is_none());
    assert_eq!(guest.vsock().connection_count(), 0);
}

#[test]
fn packets_from_or_to_other_machines_are_ignored() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    for (src_cid, dst_cid) in [(9, HOST_CID), (GUEST_CID, 9)] {
        let header = Header { op: op::RW, len: 1, src_cid, dst_cid, ..guest.header(socket) };
        guest.send_as(header, b"x");
    }
    assert_eq!(read_all(&stream), b"");
    assert!(guest.next().is_none());
}

#[test]
fn a_slow_host_gets_everything_in_order() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    let content = pattern(3 << 20);
    let mut sent = 0;
    let mut told = 0_usize;
    let mut read = Vec::new();
    while sent < content.len() {
        while let Some((header, _)) = guest.next() {
            told = header.fwd_cnt.try_into().unwrap();
            guest.offer_buffers(1);
        }
        let credit = BACKLOG_LEN_MAX as usize - (sent - told);
        let len = credit.min(40_000).min(content.len() - sent);
        if len == 0 {
            // The guest has to wait, and learns from the device when the host has read.
            guest.poll_until_silent();
            read.extend(read_all(&stream));
            guest.poll_until_silent();
            continue;
        }
        guest.send(socket, op::RW, &content[sent..sent + len]);
        sent += len;
    }
    while read.len() < content.len() {
        read.extend(read_all(&stream));
        guest.poll_until_silent();
    }
    assert!(read == content);
    assert_eq!(guest.vsock().connection_count(), 1);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    let mut packets = 0;
    while guest.vsock().connection_count() == 1 {
        guest.send(socket, op::RW, &[0; 64 * 1024]);
        packets += 1;
        assert!(packets < 100, "the device takes anything");
    }
    let last = std::iter::from_fn(|| guest.next()).last().unwrap().0;
    assert_eq!(last.op, op::RST);
    drop(stream);
}

#[test]
fn a_packet_that_is_longer_than_its_buffers_is_reset() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    let header = Header { op: op::RW, len: 100, ..guest.header(socket) };
    guest.send_as(header, &[0; 99]);
    guest.expect(op::RST);
    assert!(is_at_end(&stream));
}

#[test]
fn without_buffers_bytes_wait_and_the_poller_is_silent() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (mut socket, mut stream) = guest.accept();
    let content = pattern(60_000);
    stream.write_all(&content).unwrap();
    guest.poll_until_silent();
    assert!(guest.next().is_none());
    guest.offer_buffers(2);
    assert!(guest.receive_all(&mut socket) == content);
    guest.poll_until_silent();
}

#[test]
fn without_credit_bytes_wait_and_the_poller_is_silent() {
    let mut guest = Guest::new();
    guest.offer_buffers(16);
    let (mut socket, mut stream) = guest.accept();
    let content = pattern(150_000);
    stream.write_all(&content).unwrap();
    guest.poll_until_silent();
    let mut received = Vec::new();
    while let Some((_, bytes)) = guest.next() {
        received.extend(bytes);
    }
    assert_eq!(received.len(), GUEST_LEN as usize);
    guest.offer_buffers(32);
    guest.poll_until_silent();
    assert!(guest.next().is_none());
    socket.received = GUEST_LEN;
    guest.send(socket, op::CREDIT_UPDATE, &[]);
    received.extend(guest.receive_all(&mut socket));
    assert!(received == content);
}

#[test]
fn receive_notifications_are_asked_for_only_when_buffers_are_missing() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(3);
    let (_socket, mut stream) = guest.accept();
    assert_eq!(guest.driver.avail_event(RX), 0);
    stream.write_all(&pattern(10_000)).unwrap();
    guest.poll();
    assert_eq!(guest.driver.avail_event(RX), 3);
}

#[test]
fn busy_connections_take_turns() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(2);
    let mut streams = Vec::new();
    for _ in 0..2 {
        let (_, mut stream) = guest.accept();
        stream.write_all(&pattern(20_000)).unwrap();
        streams.push(stream);
    }
    guest.poll_until_silent();
    guest.offer_buffers(6);
    let ports: Vec<u32> = std::iter::from_fn(|| guest.next()).map(|(header, _)| header.src_port).collect();
    assert_eq!(ports.len(), 6);
    for pair in ports.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}

#[test]
fn the_hosts_end_of_sending_is_passed_on_after_its_last_byte() {
    let mut guest = Guest::new();
    let (socket, mut stream) = guest.accept();
    stream.write_all(b"last").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.poll_until_silent();
    assert_eq!(guest.next().unwrap().1, b"last");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_SEND);
    guest.send(socket, op::RW, b"answer");
    assert_eq!(read_all(&stream), b"answer");

    drop(stream);
    guest.poll_until_silent();
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
    guest.send(socket, op::RST, &[]);
    assert_eq!(guest.vsock().connection_count(), 0);
    assert!(guest.next().is_none());
}

#[test]
fn a_host_that_closes_has_its_last_bytes_delivered() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (mut socket, mut stream) = guest.accept();
    let content = pattern(30_000);
    stream.write_all(&content).unwrap();
    drop(stream);
    guest.poll_until_silent();
    let mut received = Vec::new();
    while received.len() < content.len() {
        guest.offer_buffers(1);
        let (header, bytes) = guest.next().expect("more bytes");
        assert_eq!(header.op, op::RW);
        received.extend(bytes);
    }
    assert!(received == content);
    guest.offer_buffers(1);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
    socket.received = 30_000;
    guest.offer_buffers(1);
    guest.send(socket, op::RW, b"too late");
    guest.expect(op::RST);
    assert_eq!(guest.vsock().connection_count(), 0);
}

#[test]
fn the_guests_end_of_sending_is_passed_on_after_its_last_byte() {
    let mut guest = Guest::new();
    let (socket, mut stream) = guest.accept();
    guest.send(socket, op::RW, b"last");
    let header = Header { op: op::SHUTDOWN, flags: SHUTDOWN_SEND, ..guest.header(socket) };
    guest.send_as(header, &[]);
    let mut content = Vec::new();
    stream.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"last");
    stream.write_all(b"answer").unwrap();
    guest.poll();
    assert_eq!(guest.next().unwrap().1, b"answer");
}

#[test]
fn a_guest_that_no_longer_receives_makes_the_hosts_writes_fail() {
    let mut guest = Guest::new();
    let (socket, mut stream) = guest.accept();
    let header = Header { op: op::SHUTDOWN, flags: SHUTDOWN_RECEIVE, ..guest.header(socket) };
    guest.send_as(header, &[]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    guest.send(socket, op::RW, b"still sending");
    assert_eq!(read_all(&stream), b"still sending");
    guest.poll_until_silent();
}

#[test]
fn a_guest_that_closes_is_answered_at_once_and_the_host_still_gets_everything() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    let content = pattern(BACKLOG_LEN_MAX as usize + 100_000);
    for chunk in content.chunks(60_000) {
        guest.send(socket, op::RW, chunk);
    }
    let header = Header { op: op::SHUTDOWN, flags: SHUTDOWN_BOTH, ..guest.header(socket) };
    guest.send_as(header, &[]);
    let last = std::iter::from_fn(|| guest.next()).last().unwrap().0;
    assert_eq!(last.op, op::RST);
    assert_eq!(guest.vsock().connection_count(), 1);

    let mut read = Vec::new();
    while guest.vsock().connection_count() > 0 {
        read.extend(read_all(&stream));
        guest.poll_until_silent();
    }
    read.extend(read_all(&stream));
    assert!(read == content);
    assert!(is_at_end(&stream));
}

#[test]
fn a_copy_resets_the_guest_and_leaves_the_sources_streams_alone() {
    let mut guest = Guest::new();
    let (_, mut stream) = guest.accept();
    let unanswered = guest.connect();
    guest.expect(op::REQUEST);
    // The source, as far as this test needs one: the same streams, still open.
    let source: Vec<UnixStream> = guest
        .vsock()
        .connections
        .values()
        .map(|connection| connection.stream().try_clone().unwrap())
        .collect();

    let host_ports: Vec<u32> = guest.vsock().connections.keys().copied().collect();
    guest.vsock().reset_inherited();
    assert_eq!(guest.vsock().connection_count(), 0);
    guest.connect();
    for host_port in host_ports {
        let reset = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (host_port, PORT));
    }
    guest.expect(op::REQUEST);

    stream.write_all(b"to the source").unwrap();
    assert_eq!(read_all(&source[0]), b"to the source");
    (&source[0]).write_all(b"from the source").unwrap();
    assert_eq!(read_all(&stream), b"from the source");
    assert!(!is_at_end(&unanswered));
}

#[test]
fn a_copy_resets_first_even_when_buffers_come_late() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (socket, _stream) = guest.accept();
    guest.vsock().reset_inherited();
    guest.connect();
    // The guest does not know yet.
    guest.send(socket, op::RW, b"lost");
    guest.offer_buffers(4);
    guest.expect(op::RST);
    guest.expect(op::REQUEST);
    assert!(guest.next().is_none());
}

#[test]
fn connections_are_watched_by_a_new_poller() {
    let mut guest = Guest::new();
    let (_, mut stream) = guest.accept();
    guest.vsock().set_poller(None);
    guest.poller = Arc::new(Epoll::new().unwrap());
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.poll(), 0);
    let poller = guest.poller.clone();
    guest.vsock().set_poller(Some(poller));
    assert_eq!(guest.poll(), 1);
    assert_eq!(guest.next().unwrap().1, b"x");
}

#[test]
fn connections_have_a_limit_and_host_ports_differ() {
    let mut guest = Guest::without_buffers();
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let (ours, theirs) = UnixStream::pair().unwrap();
        guest.vsock().connect(PORT, theirs.into()).unwrap();
        streams.push(ours);
    }
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(matches!(guest.vsock().connect(PORT, theirs.into()), Err(ConnectError::TooManyConnections)));
    assert_eq!(guest.vsock().connection_count(), CONNECTIONS_MAX);
    drop(streams);
    while guest.poll() > 0 {}
    assert_eq!(guest.vsock().connection_count(), 0);
    assert_eq!(guest.vsock().next_host_port, HOST_PORT_FIRST + u32::try_from(CONNECTIONS_MAX).unwrap());
}

#[test]
fn a_guest_that_talks_to_nobody_takes_no_connections_place() {
    let mut guest = Guest::without_buffers();
    let answers_max = u32::try_from(ANSWERS_MAX).unwrap();
    for host_port in 0..2 * answers_max {
        guest.send(Socket { host_port, received: 0 }, op::REQUEST, &[]);
    }
    let streams: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| guest.connect()).collect();
    guest.offer_buffers(100);
    assert_eq!(guest.expect(op::RST).src_port, 0);
    while guest.vsock().answers.len() + guest.vsock().ready.len() > 0 {
        while guest.next().is_some() {}
        guest.offer_buffers(100 - guest.buffers.len());
    }
    assert_eq!(guest.vsock().connection_count(), streams.len());
}

#[test]
fn transmitted_buffers_come_back_with_the_next_interrupt() {
    let mut guest = Guest::new();
    let (socket, mut stream) = guest.accept();
    assert!(guest.next().is_none());
    while guest.driver.used(TX).is_some() {}
    assert!(!guest.send(socket, op::RW, b"a"));
    assert!(!guest.send(socket, op::RW, b"b"));
    assert_eq!(guest.driver.used(TX), None);
    stream.write_all(b"x").unwrap();
    guest.poll();
    assert!(guest.driver.used(TX).is_some());
    assert!(guest.driver.used(TX).is_some());
}

#[test]
fn transmitted_buffers_come_back_when_they_are_many_or_long() {
    for (packets_max, len) in [(32, 1), (2, 40_000)] {
        let mut guest = Guest::new();
        let (socket, _stream) = guest.accept();
        while guest.driver.used(TX).is_some() {}
        let raised = (0..packets_max).any(|_| guest.send(socket, op::RW, &vec![0; len]));
        assert!(raised);
        assert!(guest.driver.used(TX).is_some());
    }
}

#[test]
fn a_guest_that_sends_without_end_is_served_one_round_at_a_time() {
    let mut guest = Guest::new();
    let (socket, stream) = guest.accept();
    let size = usize::from(Vsock::QUEUE_SIZES[TX]);
    let part = guest.driver.readable(&Header { op: op::RW, len: 1, ..guest.header(socket) }.to_bytes());
    let byte = guest.driver.readable(b"x");
    let heads: Vec<u16> = (0..size / 2).map(|_| guest.driver.offer(TX, &[part, byte])).collect();
    let send_again = |guest: &mut Guest| heads.iter().for_each(|&head| guest.driver.make_available(TX, head));
    for round in 1..=3 {
        send_again(&mut guest);
        assert!(guest.driver.transport.serve_all_queues().more, "round {round}");
        assert_eq!(read_all(&stream).len(), size, "round {round}");
        send_again(&mut guest);
    }
    assert!(!guest.driver.transport.serve_all_queues().more);
    assert_eq!(read_all(&stream).len(), size / 2);
}

#[test]
fn a_host_that_sends_without_end_is_delivered_one_round_at_a_time() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (socket, mut stream) = guest.accept();
    guest.send_as(Header { op: op::CREDIT_UPDATE, buf_alloc: u32::MAX, ..guest.header(socket) }, &[]);
    let size = usize::from(Vsock::QUEUE_SIZES[RX]);
    let small = HEADER_LEN + 1;
    let mut delivered = 0;
    stream.write_all(&vec![7; 3 * size]).unwrap();
    guest.poll();
    for round in 1..=2 {
        for _ in 0..size {
            let part = guest.driver.writable(small);
            let head = guest.driver.offer(RX, &[part]);
            guest.buffers.insert(head, part);
        }
        assert!(guest.driver.transport.serve_all_queues().more, "round {round}");
        delivered += std::iter::from_fn(|| guest.next()).count();
        assert_eq!(delivered, size * round);
    }
    assert!(!guest.driver.transport.serve_all_queues().more);
    assert_eq!(guest.driver.avail_event(RX), u16::try_from(1 + 2 * size).unwrap());
}

#[test]
fn a_driver_that_starts_over_ends_all_connections() {
    let mut guest = Guest::new();
    let (_, stream) = guest.accept();
    guest.driver.write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert!(is_at_end(&stream));
    assert_eq!(guest.poll(), 0);
    guest.driver.set_up();
    guest.buffers.clear();
    guest.offer_buffers(4);
    let (socket, stream) = guest.accept();
    guest.send(socket, op::RW, b"again");
    assert_eq!(read_all(&stream), b"again");
}

#[test]
fn a_buffer_without_room_for_a_byte_stops_the_device_and_ends_its_connections() {
    let mut guest = Guest::without_buffers();
    guest.offer_buffers(1);
    let (_, mut stream) = guest.accept();
    stream.write_all(b"x").unwrap();
    let part = guest.driver.writable(HEADER_LEN);
    guest.driver.offer(RX, &[part]);
    guest.poll();
    assert_eq!(guest.driver.status() & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(guest.poll(), 0);
    assert_eq!(guest.vsock().connection_count(), 0);
}

fn any_header() -> impl Strategy<Value = Header> {
    let host_port = prop_oneof![HOST_PORT_FIRST..HOST_PORT_FIRST + 3, any::<u32>()];
    let numbers = prop_oneof![Just(0), 0..200_000_u32, any::<u32>()];
    let op = prop_oneof![4 => 0..9_u16, 1 => any::<u16>()];
    let kind = prop_oneof![9 => Just(TYPE_STREAM), 1 => any::<u16>()];
    (host_port, op, kind, [numbers.clone(), numbers.clone(), numbers], 0..5_u32).prop_map(
        |(dst_port, op, kind, [len, buf_alloc, fwd_cnt], flags)| Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port,
            kind,
            op,
            len,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Send(Header, usize),
    OfferBuffers(usize),
    Connect,
    HostWrite(usize),
    HostRead,
    HostClose,
    BecomeCopy,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (any_header(), 0..70_000_usize).prop_map(|(header, len)| Step::Send(header, len)),
        2 => (0..8_usize).prop_map(Step::OfferBuffers),
        2 => Just(Step::Connect),
        2 => (0..50_000_usize).prop_map(Step::HostWrite),
        1 => Just(Step::HostRead),
        1 => Just(Step::HostClose),
        1 => Just(Step::BecomeCopy),
    ]
}

proptest! {
    #[test]
    fn any_packets_are_survived_and_the_poller_becomes_silent(
        steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let mut guest = Guest::new();
        let mut streams = vec![guest.connect()];
        for step in steps {
            match step {
                Step::Send(header, len) => { guest.send_as(header, &vec![1; len]); }
                Step::OfferBuffers(count) => { guest.offer_buffers(count.min(100 - guest.buffers.len())); }
                Step::Connect => streams.push(guest.connect()),
                Step::HostWrite(len) => {
                    for mut stream in &streams {
                        stream.write_all(&vec![2; len]).ok();
                    }
                }
                Step::HostRead => streams.iter().for_each(|stream| { read_all(stream); }),
                Step::HostClose => { streams.pop(); }
                Step::BecomeCopy => {
                    guest.vsock().reset_inherited();
                    let poller = guest.poller.clone();
                    guest.vsock().set_poller(Some(poller));
                }
            }
            while guest.next().is_some() {}
            while guest.driver.used(TX).is_some() {}
            prop_assert!(guest.driver.transport.is_active());
            guest.poll_until_silent();
        }
    }

    #[test]
    fn garbage_is_survived(
        descriptors in prop::collection::vec(any_descriptor(), 8),
        headers in prop::collection::vec(any_header(), 8),
        heads in prop::collection::vec((0..3_usize, 0..9_u16), 1..16),
    ) {
        let mut guest = Guest::new();
        let _stream = guest.connect();
        for (slot, descriptor) in (0..).zip(descriptors) {
            for queue in 0..3 {
                guest.driver.write_descriptor(queue, slot, descriptor);
            }
        }
        for (index, header) in headers.into_iter().enumerate() {
            let address = vm_memory::GuestAddress((1 << 20) + 64 * index as u64);
            vm_memory::Bytes::write_slice(&guest.driver.memory, &header.to_bytes(), address).unwrap();
        }
        for (queue, head) in heads {
            guest.driver.make_available(queue, head);
            guest.driver.notify(queue);
        }
        guest.poll_until_silent();
    }
}

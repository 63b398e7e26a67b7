//! The socket device: stream connections that the host opens to ports of the guest. The guest opens
//! none, and gets a RST if it tries.
//!
//! The host's end of a connection is a Unix stream. Bytes go between it and guest memory directly, with
//! no thread and no copy between them: from the guest when it notifies the transmit queue, to the guest
//! when the poller says that a stream has something and [`Vsock::deliver`] is called.
//!
//! Two economies, since a notification is an exit, and an interrupt is followed by two (its status is
//! read and acknowledged). Receive buffers are asked for only when there are none left. And transmitted
//! buffers are given back not one by one but with the next interrupt that is due anyway, or when they
//! have become many.
//!
//! A copy of the machine has the same connections as its source, over the same streams, which are still
//! the source's. [`Vsock::reset_inherited`] closes them without a word to the host and resets the
//! guest's ends, before any new connection is asked for.

mod connection;
mod credit;
mod packet;
pub(crate) mod state;
mod transmitted;

use super::{GuestMemory, Queue, QueueError, Served, VirtioDevice, next_chain, read_config_bytes};
use connection::{Connection, Verdict};
use packet::{Buffers, HEADER_LEN, Header, TYPE_STREAM, op};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use transmitted::Transmitted;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Event data of a connection's stream in the poller: this, and the host port in the low half.
pub(crate) const CONNECTION_TOKEN_BASE: u64 = 1 << 32;

/// Connections at a time, those included whose RST the guest has not taken yet.
pub(crate) const CONNECTIONS_MAX: usize = 256;

/// RSTs that wait for the guest because of what it sent itself. It loses the others: whoever sends
/// hundreds of packets to nobody and reads none may wait for its own time-outs.
const ANSWERS_MAX: usize = 256;

const GUEST_CID: u64 = 3;
const HOST_CID: u64 = 2;

/// Host ports go up from here and are used again only when all have been used.
const HOST_PORT_FIRST: u32 = 1 << 30;
const HOST_PORT_LAST: u32 = 1 << 31;

const RX: usize = 0;
const TX: usize = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("The guest already has {CONNECTIONS_MAX} connections, the most it can; close some first")]
    TooManyConnections,
    #[error("Could not take the stream of a new connection")]
    Stream(#[source] io::Error),
}

/// The host port of the connection that an event of the poller is about.
pub(crate) fn host_port_of(token: u64) -> u32 {
    u32::try_from(token & u64::from(u32::MAX)).unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Ports {
    guest: u32,
    host: u32,
}

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Vsock {
    /// By host port, which is this device's own choice and so never met twice.
    connections: BTreeMap<u32, Connection>,
    /// RSTs for the guest, of connections that are over. They go out before anything else.
    resets: VecDeque<Ports>,
    /// RSTs for the guest, for what it has sent to nobody. They take no connection's place.
    answers: VecDeque<Ports>,
    /// Host ports of connections that have something to say, in turn: one packet each.
    ready: VecDeque<u32>,
    transmitted: Transmitted,
    next_host_port: u32,
    poller: Option<Arc<Epoll>>,
}

/// What came of the attempt to hand the guest a packet.
enum Delivery {
    Delivered,
    /// Whoever's turn it was had nothing to say after all.
    Skipped,
    NoBuffer,
    Idle,
}

impl Vsock {
    pub(crate) fn new() -> Vsock {
        Vsock {
            connections: BTreeMap::new(),
            resets: VecDeque::new(),
            answers: VecDeque::new(),
            ready: VecDeque::new(),
            transmitted: Transmitted::default(),
            next_host_port: HOST_PORT_FIRST,
            poller: None,
        }
    }

    /// Opens a connection to a port of the guest, as soon as its driver is there; call `deliver` next.
    /// The stream is closed when the guest refuses or resets it. Returns the host port.
    pub(crate) fn connect(&mut self, guest_port: u32, stream: OwnedFd) -> Result<u32, ConnectError> {
        if self.connections.len() + self.resets.len() >= CONNECTIONS_MAX {
            return Err(ConnectError::TooManyConnections);
        }
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true).map_err(ConnectError::Stream)?;
        let host_port = self.take_host_port();
        self.connections.insert(host_port, Connection::new(guest_port, stream));
        self.schedule(host_port);
        self.watch(host_port);
        Ok(host_port)
    }

    /// The poller has reported `events` for a connection's stream; call `deliver` next. Events of a
    /// connection that has ended meanwhile are ignored.
    pub(crate) fn host_event(&mut self, host_port: u32, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        let verdict = connection.host_event(events);
        self.conclude(host_port, verdict);
        // Not watched for bytes that have come until they were read: `deliver` sees to that.
        if events != EventSet::IN {
            self.watch(host_port);
        }
    }

    /// Gives the guest what there is for it and room for, for one round.
    pub(crate) fn deliver(
        &mut self,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        let mut served = match queues.get_mut(RX) {
            Some(rx) if rx.ready() => self.deliver_packets(rx, memory)?,
            _ => Served::default(),
        };
        // What waits for a buffer now need not be watched for bytes.
        for index in 0..self.ready.len() {
            self.watch(self.ready[index]);
        }
        if served.raise
            && let Some(tx) = queues.get_mut(TX)
        {
            served.raise |= self.transmitted.give_back(tx, memory)?;
        }
        Ok(served)
    }

    /// In a copy of the machine, before anything else: closes all streams, which are the source's, and
    /// resets the guest's ends of the connections with the next `deliver`. No poller is left either: the
    /// one there was is the source's too.
    pub(crate) fn reset_inherited(&mut self) {
        self.poller = None;
        self.ready.clear();
        for (host, connection) in std::mem::take(&mut self.connections) {
            if connection.is_known_to_guest() {
                self.resets.push_back(Ports { guest: connection.guest_port(), host });
            }
        }
    }

    /// Has all streams watched by another poller, or by none. The one before must be dropped.
    pub(crate) fn set_poller(&mut self, poller: Option<Arc<Epoll>>) {
        self.poller = poller;
        for connection in self.connections.values_mut() {
            connection.watched = None;
        }
        let host_ports: Vec<u32> = self.connections.keys().copied().collect();
        for host_port in host_ports {
            self.watch(host_port);
        }
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.connections.len()
    }

    fn take_host_port(&mut self) -> u32 {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = if host_port == HOST_PORT_LAST { HOST_PORT_FIRST } else { host_port + 1 };
            if !self.connections.contains_key(&host_port) {
                return host_port;
            }
        }
    }

    fn deliver_packets(&mut self, rx: &mut Queue, memory: &GuestMemory) -> Result<Served, QueueError> {
        let mut delivered = false;
        let mut more = true;
        for _ in 0..rx.size() {
            match self.deliver_packet(rx, memory)? {
                Delivery::Delivered => delivered = true,
                Delivery::Skipped => {}
                Delivery::Idle => {
                    rx.disable_notification(memory)?;
                    more = false;
                    break;
                }
                Delivery::NoBuffer => {
                    if !rx.enable_notification(memory)? {
                        more = false;
                        break;
                    }
                }
            }
        }
        Ok(Served { raise: delivered && rx.needs_notification(memory)?, more })
    }

    fn deliver_packet(&mut self, rx: &mut Queue, memory: &GuestMemory) -> Result<Delivery, QueueError> {
        while self.ready.front().is_some_and(|host_port| !self.connections.contains_key(host_port)) {
            self.ready.pop_front();
        }
        if self.resets.is_empty() && self.answers.is_empty() && self.ready.is_empty() {
            return Ok(Delivery::Idle);
        }
        let Some(chain) = next_chain(rx, memory)? else { return Ok(Delivery::NoBuffer) };
        let head = chain.head_index();
        let (header_part, payload) = Buffers::writable(chain, memory)?.split_header()?;
        let Some(header) = self.next_packet(payload)? else {
            rx.go_to_previous_position();
            return Ok(Delivery::Skipped);
        };
        header_part.write_header(header)?;
        let header_len = u32::try_from(HEADER_LEN).unwrap_or_default();
        rx.add_used(memory, head, header_len + header.len)?;
        Ok(Delivery::Delivered)
    }

    /// The next packet: of a reset, or of the connection whose turn it is. None if that one has nothing
    /// to say after all.
    fn next_packet(&mut self, payload: Buffers<'_>) -> Result<Option<Header>, QueueError> {
        if let Some(ports) = self.resets.pop_front().or_else(|| self.answers.pop_front()) {
            return Ok(Some(address(ports, Header { op: op::RST, ..Header::default() })));
        }
        let Some(host) = self.ready.pop_front() else { return Ok(None) };
        let Some(connection) = self.connections.get_mut(&host) else { return Ok(None) };
        connection.scheduled = false;
        let guest = connection.guest_port();
        let packet = connection.next_packet(payload)?;
        self.schedule(host);
        self.watch(host);
        Ok(packet.map(|header| address(Ports { guest, host }, header)))
    }

    /// Takes what the guest has sent, and answers, for one round.
    fn transmit(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<Served, QueueError> {
        let Some(tx) = queues.get_mut(TX) else { return Ok(Served::default()) };
        let mut served = Served { raise: false, more: true };
        tx.disable_notification(memory)?;
        for _ in 0..tx.size() {
            if let Some(chain) = next_chain(tx, memory)? {
                let head = chain.head_index();
                let buffers = Buffers::readable(chain, memory)?;
                self.transmitted.keep(head, &buffers);
                self.receive(buffers)?;
                if self.transmitted.are_many(tx) {
                    served.raise |= self.transmitted.give_back(tx, memory)?;
                }
            } else if tx.enable_notification(memory)? {
                tx.disable_notification(memory)?;
            } else {
                served.more = false;
                break;
            }
        }
        Ok(served | self.deliver(queues, memory)?)
    }

    fn receive(&mut self, buffers: Buffers<'_>) -> Result<(), QueueError> {
        let (header_part, payload) = buffers.split_header()?;
        let header = header_part.read_header()?;
        if header.src_cid != GUEST_CID || header.dst_cid != HOST_CID {
            return Ok(());
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        let connection = self.connections.get_mut(&ports.host).filter(|connection| {
            header.kind == TYPE_STREAM && connection.guest_port() == ports.guest && !connection.is_queued()
        });
        let Some(connection) = connection else {
            self.answer_stranger(header.op, ports);
            return Ok(());
        };
        let verdict = connection.receive(header, payload)?;
        self.conclude(ports.host, verdict);
        self.watch(ports.host);
        Ok(())
    }

    /// A packet that belongs to no connection gets a RST, unless it is one.
    fn answer_stranger(&mut self, op: u16, ports: Ports) {
        let is_due = self.resets.contains(&ports) || self.answers.contains(&ports);
        if op != op::RST && self.answers.len() < ANSWERS_MAX && !is_due {
            self.answers.push_back(ports);
        }
    }

    fn conclude(&mut self, host_port: u32, verdict: Verdict) {
        let Some(connection) = self.connections.get(&host_port) else { return };
        if matches!(verdict, Verdict::Reset | Verdict::Answer) {
            self.resets.push_back(Ports { guest: connection.guest_port(), host: host_port });
        }
        if matches!(verdict, Verdict::Reset | Verdict::Remove) || connection.is_drained() {
            self.remove(host_port);
        } else {
            self.schedule(host_port);
        }
    }

    /// Ends the host's side. The poller is told in so many words: closing the stream does not take it
    /// out of a poller as long as a copy of this machine has it open too.
    fn remove(&mut self, host_port: u32) {
        let Some(connection) = self.connections.remove(&host_port) else { return };
        if let (Some(poller), Some(_)) = (&self.poller, connection.watched) {
            let descriptor = connection.stream().as_raw_fd();
            // Fails only for a stream that the poller does not have.
            poller.ctl(ControlOperation::Delete, descriptor, EpollEvent::default()).ok();
        }
        connection.shut_both();
    }

    fn schedule(&mut self, host_port: u32) {
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        if !connection.scheduled && connection.has_packet() {
            connection.scheduled = true;
            self.ready.push_back(host_port);
        }
    }

    /// Has the poller watch a stream for what its connection waits for now. A stream that cannot be
    /// watched is of no use.
    fn watch(&mut self, host_port: u32) {
        let Some(poller) = &self.poller else { return };
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        let wanted = connection.interest();
        let operation = match (connection.watched, wanted) {
            (watched, wanted) if watched == wanted => return,
            (None, _) => ControlOperation::Add,
            (Some(_), Some(_)) => ControlOperation::Modify,
            (Some(_), None) => ControlOperation::Delete,
        };
        let token = CONNECTION_TOKEN_BASE | u64::from(host_port);
        let event = EpollEvent::new(wanted.unwrap_or(EventSet::empty()), token);
        let watched = poller.ctl(operation, connection.stream().as_raw_fd(), event);
        connection.watched = wanted;
        if watched.is_err() {
            connection.watched = None;
            let verdict = if connection.is_known_to_guest() { Verdict::Reset } else { Verdict::Remove };
            self.conclude(host_port, verdict);
        }
    }
}

/// Completes the header of a packet from the host.
fn address(ports: Ports, header: Header) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: GUEST_CID,
        src_port: ports.host,
        dst_port: ports.guest,
        kind: TYPE_STREAM,
        ..header
    }
}

impl VirtioDevice for Vsock {
    const DEVICE_TYPE: u32 = VIRTIO_ID_VSOCK;
    /// Receive, transmit, and events, of which there are none: transport resets race with connections
    /// that are made right after them, so each connection is reset by itself instead.
    const QUEUE_SIZES: &'static [u16] = &[128, 128, 16];

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&GUEST_CID.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _features: u64) {}

    /// Ends all connections but those that the guest has not heard of.
    fn reset(&mut self) {
        self.resets.clear();
        self.answers.clear();
        self.ready.clear();
        self.transmitted = Transmitted::default();
        let host_ports: Vec<u32> = self.connections.keys().copied().collect();
        for host_port in host_ports {
            match self.connections.get_mut(&host_port) {
                Some(connection) if connection.is_queued() => {
                    connection.scheduled = false;
                    self.schedule(host_port);
                }
                _ => self.remove(host_port),
            }
        }
    }

    fn notified(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &GuestMemory,
    ) -> Result<Served, QueueError> {
        match index {
            RX => self.deliver(queues, memory),
            TX => self.transmit(queues, memory),
            _ => Ok(Served::default()),
        }
    }
}

#[cfg(test)]
mod tests;

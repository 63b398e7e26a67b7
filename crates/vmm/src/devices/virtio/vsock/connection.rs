//! One connection: where it stands, what either side may still send, and the bytes that a slow host has
//! not taken yet. It knows one stream and no queue; what it has to say is handed out packet by packet.
//!
//! ```text
//!   Queued ──REQUEST──▶ Requested ──RESPONSE──▶ Established ──guest is done──▶ Draining ──▶ gone
//! ```
//!
//! `Draining` has no guest any more: only bytes that it sent before it left and the host still reads.

use super::credit::{ReceiveCredit, SendCredit};
use super::packet::{Buffers, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use virtio_queue::Error as QueueError;
use vmm_sys_util::epoll::EventSet;

/// The longest payload of a packet.
const PAYLOAD_LEN_MAX: usize = 64 * 1024;

/// Bytes that wait for a slow host before the guest has to.
pub(super) const BACKLOG_LEN_MAX: u32 = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Requested,
    Established,
    Draining,
}

/// What becomes of a connection after something has happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// The guest has closed it and gets a RST for an answer; what it sent before may have to be drained.
    Answer,
    /// It is over, and the guest does not know yet.
    Reset,
    /// It is over, and there is nothing to tell the guest.
    Remove,
}

#[derive(Debug)]
pub(super) struct Connection {
    guest_port: u32,
    stream: UnixStream,
    phase: Phase,
    send_credit: SendCredit,
    receive_credit: ReceiveCredit,
    /// Bytes from the guest that the stream has not taken.
    backlog: Vec<u8>,
    /// The stream may have bytes, or its end, that have not been read.
    readable: bool,
    /// The host will send no more, and all it has sent was read.
    host_ended: bool,
    /// The host is gone for both directions. What it has sent can still be read.
    hung_up: bool,
    /// Flags of the SHUTDOWN that the guest has sent, and that it was sent.
    guest_shutdown: u32,
    told_shutdown: u32,
    /// What the poller watches the stream for; none while it does not watch it.
    pub(super) watched: Option<EventSet>,
    /// In the device's list of connections that have something to say.
    pub(super) scheduled: bool,
}

impl Connection {
    /// `stream` does not block.
    pub(super) fn new(guest_port: u32, stream: UnixStream) -> Connection {
        Connection {
            guest_port,
            stream,
            phase: Phase::Queued,
            send_credit: SendCredit::default(),
            receive_credit: ReceiveCredit::default(),
            backlog: Vec::new(),
            readable: false,
            host_ended: false,
            hung_up: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            watched: None,
            scheduled: false,
        }
    }

    pub(super) fn guest_port(&self) -> u32 {
        self.guest_port
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The guest has not heard of this connection.
    pub(super) fn is_queued(&self) -> bool {
        self.phase == Phase::Queued
    }

    /// The guest has this connection, or will have when it has taken what was sent.
    pub(super) fn is_known_to_guest(&self) -> bool {
        matches!(self.phase, Phase::Requested | Phase::Established)
    }

    /// What the stream is to be watched for. With nothing to wait for it is still watched for its end,
    /// which polling reports unasked, again and again: after it, no more.
    pub(super) fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut events = EventSet::empty();
        events.set(EventSet::IN, !self.readable && self.may_read());
        events.set(EventSet::OUT, !self.backlog.is_empty());
        Some(events)
    }

    /// There may be a packet to hand out.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Queued => true,
            Phase::Established => {
                self.readable && self.may_read()
                    || self.due_shutdown() != self.told_shutdown
                    || self.receive_credit.is_update_due()
            }
            Phase::Requested | Phase::Draining => false,
        }
    }

    fn may_read(&self) -> bool {
        self.phase == Phase::Established
            && !self.host_ended
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.send_credit.available() > 0
    }

    fn due_shutdown(&self) -> u32 {
        match (self.host_ended, self.hung_up) {
            (true, true) => SHUTDOWN_BOTH,
            (true, false) => SHUTDOWN_SEND,
            (false, _) => 0,
        }
    }

    /// The next packet for the guest, its payload already in `payload`; none if there is nothing to say.
    /// An error of the host's stream is its end for both directions.
    pub(super) fn next_packet(&mut self, payload: Buffers<'_>) -> Result<Option<Header>, QueueError> {
        if self.phase == Phase::Queued {
            self.phase = Phase::Requested;
            return Ok(Some(self.header(op::REQUEST, 0)));
        }
        if self.phase != Phase::Established {
            return Ok(None);
        }
        if self.readable && self.may_read() {
            let read = self.read_stream(payload)?;
            if read > 0 {
                return Ok(Some(self.header(op::RW, read)));
            }
        }
        if self.due_shutdown() != self.told_shutdown {
            self.told_shutdown = self.due_shutdown();
            let flags = self.told_shutdown;
            return Ok(Some(Header { flags, ..self.header(op::SHUTDOWN, 0) }));
        }
        let update = self.receive_credit.is_update_due();
        Ok(update.then(|| self.header(op::CREDIT_UPDATE, 0)))
    }

    /// Returns the length of the payload; 0 when there is none now, or never again.
    fn read_stream(&mut self, mut payload: Buffers<'_>) -> Result<u32, QueueError> {
        let credit = usize::try_from(self.send_credit.available()).unwrap_or(usize::MAX);
        payload.truncate(credit.min(PAYLOAD_LEN_MAX))?;
        let room = payload.len();
        if room == 0 {
            // Reading nothing would look like the stream's end.
            return Err(QueueError::InvalidChain);
        }
        match payload.fill_from(&self.stream) {
            Ok(0) => self.host_ended = true,
            Ok(read) => {
                // A stream that gave less than it was asked for is empty; the poller tells when it is not.
                self.readable = read == room || self.hung_up;
                let read = u32::try_from(read).unwrap_or(u32::MAX);
                self.send_credit.sent(read);
                return Ok(read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host_ended = true;
                self.hung_up = true;
            }
        }
        Ok(0)
    }

    /// Everything that a packet says besides its addresses. Each one tells the guest its credit.
    fn header(&mut self, op: u16, len: u32) -> Header {
        let fwd_cnt = self.receive_credit.tell();
        Header { op, len, buf_alloc: BACKLOG_LEN_MAX, fwd_cnt, ..Header::default() }
    }

    /// The guest has sent a packet, with `payload` behind its header.
    pub(super) fn receive(&mut self, header: Header, payload: Buffers<'_>) -> Result<Verdict, QueueError> {
        if header.op == op::RST {
            self.guest_left();
            return Ok(Verdict::Keep);
        }
        self.send_credit.update(header.buf_alloc, header.fwd_cnt);
        Ok(match (self.phase, header.op) {
            (Phase::Requested, op::RESPONSE) => {
                self.phase = Phase::Established;
                // The host has usually sent its first bytes by now: look before asking the poller.
                self.readable = true;
                Verdict::Keep
            }
            (Phase::Established, op::RW) => return self.receive_bytes(header.len, payload),
            (Phase::Established, op::CREDIT_UPDATE) => Verdict::Keep,
            (Phase::Established, op::CREDIT_REQUEST) => {
                self.receive_credit.ask_for_update();
                Verdict::Keep
            }
            (Phase::Established, op::SHUTDOWN) => self.receive_shutdown(header.flags),
            // Sent before the guest has seen the RST that is on its way.
            (Phase::Draining, _) => Verdict::Keep,
            _ => Verdict::Reset,
        })
    }

    fn receive_bytes(&mut self, len: u32, mut payload: Buffers<'_>) -> Result<Verdict, QueueError> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        payload.truncate(bytes)?;
        let known = bytes <= PAYLOAD_LEN_MAX && payload.len() == bytes;
        if !known || self.guest_shutdown & SHUTDOWN_SEND != 0 || !self.receive_credit.received(len) {
            return Ok(Verdict::Reset);
        }
        let mut sent = 0;
        if self.backlog.is_empty() {
            // A host that is gone gives EPIPE: Rust programs ignore SIGPIPE.
            let Ok(drained) = payload.drain_to(&self.stream) else { return Ok(Verdict::Reset) };
            sent = drained;
        }
        self.receive_credit.forwarded(sent);
        payload.append_to(&mut self.backlog, sent).map_err(QueueError::VolatileMemoryError)?;
        Ok(Verdict::Keep)
    }

    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            self.guest_left();
            return Verdict::Answer;
        }
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.shut(Shutdown::Read);
        }
        self.pass_on_end();
        Verdict::Keep
    }

    /// The guest's side is over. What it has sent still goes to the host.
    fn guest_left(&mut self) {
        self.phase = Phase::Draining;
        self.shut(Shutdown::Read);
    }

    /// The guest is gone, and nothing that it sent is left, or nobody to take it.
    pub(super) fn is_drained(&self) -> bool {
        self.phase == Phase::Draining && (self.backlog.is_empty() || self.hung_up)
    }

    /// The poller has something to say about the stream.
    pub(super) fn host_event(&mut self, events: EventSet) -> Verdict {
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            self.hung_up = true;
            if self.is_abandoned() {
                return if self.is_queued() { Verdict::Remove } else { Verdict::Reset };
            }
        }
        self.readable |= events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR);
        if events.contains(EventSet::OUT) && self.flush().is_err() {
            return if self.phase == Phase::Draining { Verdict::Remove } else { Verdict::Reset };
        }
        Verdict::Keep
    }

    /// The host has gone before the guest answered, and has left nothing to deliver.
    fn is_abandoned(&self) -> bool {
        matches!(self.phase, Phase::Queued | Phase::Requested)
            && rustix::io::ioctl_fionread(&self.stream).unwrap_or(0) == 0
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match (&self.stream).write(&self.backlog) {
                Ok(written) => {
                    self.backlog.drain(..written);
                    self.receive_credit.forwarded(written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.backlog = Vec::new();
        self.pass_on_end();
        Ok(())
    }

    /// Shows the host the end of what the guest sends, once everything before it was taken.
    fn pass_on_end(&self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            self.shut(Shutdown::Write);
        }
    }

    /// Shuts the stream for both sides at once. Closing it does not, while a copy of this machine that
    /// was just made still has it open too.
    pub(super) fn shut_both(&self) {
        self.shut(Shutdown::Both);
    }

    /// Fails only where there is nothing left to shut.
    fn shut(&self, how: Shutdown) {
        self.stream.shutdown(how).ok();
    }
}

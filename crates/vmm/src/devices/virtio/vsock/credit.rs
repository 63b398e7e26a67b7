//! Flow control of one connection (virtio 1.2, section 5.10.6.3): each side says how much it can hold
//! and how much it has passed on, in counters that wrap. The guest's counters are its own word: a wrong
//! one starves or floods that guest alone.

use super::connection::BACKLOG_LEN_MAX;
use std::num::Wrapping;

/// The guest is told of its credit unasked when it may be using the last half.
const UPDATE_THRESHOLD: u32 = BACKLOG_LEN_MAX / 2;

/// What may be sent to the guest.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    sent: Wrapping<u32>,
    peer_len: u32,
    peer_forwarded: Wrapping<u32>,
}

impl SendCredit {
    pub(super) fn available(&self) -> u32 {
        let on_the_way = self.sent - self.peer_forwarded;
        self.peer_len.saturating_sub(on_the_way.0)
    }

    pub(super) fn sent(&mut self, len: u32) {
        self.sent += len;
    }

    pub(super) fn update(&mut self, peer_len: u32, peer_forwarded: u32) {
        self.peer_len = peer_len;
        self.peer_forwarded = Wrapping(peer_forwarded);
    }
}

/// What the guest may send.
#[derive(Debug, Default)]
pub(super) struct ReceiveCredit {
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    asked: bool,
}

impl ReceiveCredit {
    /// Counts bytes from the guest; false if it had no credit for them.
    pub(super) fn received(&mut self, len: u32) -> bool {
        let held = (self.received - self.forwarded).0;
        if held.checked_add(len).is_none_or(|held| held > BACKLOG_LEN_MAX) {
            return false;
        }
        self.received += len;
        true
    }

    /// Counts bytes that the host has taken, never more than were received.
    pub(super) fn forwarded(&mut self, len: usize) {
        self.forwarded += u32::try_from(len).unwrap_or(0);
    }

    pub(super) fn ask_for_update(&mut self) {
        self.asked = true;
    }

    pub(super) fn is_update_due(&self) -> bool {
        self.asked || (self.forwarded - self.told).0 >= UPDATE_THRESHOLD
    }

    /// The counter to put in a packet, which is then an update.
    pub(super) fn tell(&mut self) -> u32 {
        self.asked = false;
        self.told = self.forwarded;
        self.told.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_way_takes_credit_until_it_was_forwarded() {
        let mut credit = SendCredit::default();
        assert_eq!(credit.available(), 0);
        credit.update(100, 0);
        credit.sent(70);
        assert_eq!(credit.available(), 30);
        credit.update(100, 50);
        assert_eq!(credit.available(), 80);
    }

    #[test]
    fn counters_wrap() {
        let start = u32::MAX - 9;
        let mut credit = SendCredit { sent: Wrapping(start), ..SendCredit::default() };
        credit.update(100, start);
        credit.sent(30);
        assert_eq!(credit.available(), 70);
        credit.update(100, 20);
        assert_eq!(credit.available(), 100);
    }

    #[test]
    fn a_guest_that_says_it_forwarded_more_than_it_got_has_no_credit() {
        let mut credit = SendCredit::default();
        credit.update(100, 1);
        assert_eq!(credit.available(), 0);
    }

    #[test]
    fn bytes_beyond_the_credit_are_refused() {
        let mut credit = ReceiveCredit::default();
        assert!(credit.received(BACKLOG_LEN_MAX));
        assert!(!credit.received(1));
        assert!(!credit.received(u32::MAX));
        credit.forwarded(10);
        assert!(credit.received(10));
    }

    #[test]
    fn an_update_is_due_when_half_the_credit_may_be_used_up() {
        let mut credit = ReceiveCredit::default();
        credit.received(BACKLOG_LEN_MAX);
        credit.forwarded(usize::try_from(UPDATE_THRESHOLD).unwrap() - 1);
        assert!(!credit.is_update_due());
        credit.forwarded(1);
        assert!(credit.is_update_due());
        assert_eq!(credit.tell(), UPDATE_THRESHOLD);
        assert!(!credit.is_update_due());
    }
}

//! A sandbox's most recent events, as they were sent.
//!
//! The history belongs to the machine: it goes with the winner of a merge, and a fork's children start
//! without one, for what they show is what they have done themselves.

use bytes::Bytes;
use std::collections::VecDeque;

/// The most events kept for one sandbox.
pub const EVENTS_MAX: usize = 1000;

/// The most bytes of events kept for one sandbox. An event that is longer alone is not kept.
pub const EVENTS_LEN_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, Default)]
pub struct Replay {
    events: VecDeque<Bytes>,
    len: usize,
}

impl Replay {
    /// Appends one event, and forgets the oldest over the limits.
    pub fn push(&mut self, event: Bytes) {
        if event.len() > EVENTS_LEN_MAX {
            return;
        }
        self.len += event.len();
        self.events.push_back(event);
        while self.len > EVENTS_LEN_MAX || self.events.len() > EVENTS_MAX {
            let Some(oldest) = self.events.pop_front() else { return };
            self.len -= oldest.len();
        }
    }

    /// The events, oldest first.
    pub fn events(&self) -> Vec<Bytes> {
        self.events.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_events_are_forgotten_by_number() {
        let mut replay = Replay::default();
        for index in 0..EVENTS_MAX + 5 {
            replay.push(Bytes::from(index.to_string()));
        }
        let events = replay.events();
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events[0], "5");
    }

    #[test]
    fn the_oldest_events_are_forgotten_by_length() {
        let mut replay = Replay::default();
        let third = Bytes::from(vec![b'x'; EVENTS_LEN_MAX / 3]);
        for _ in 0..4 {
            replay.push(third.clone());
        }
        assert_eq!(replay.events().len(), 3);
    }

    #[test]
    fn an_event_over_the_limit_drives_no_other_out() {
        let mut replay = Replay::default();
        replay.push(Bytes::from_static(b"kept"));
        replay.push(Bytes::from(vec![b'x'; EVENTS_LEN_MAX + 1]));
        assert_eq!(replay.events(), ["kept"]);
        replay.push(Bytes::from(vec![b'x'; EVENTS_LEN_MAX]));
        assert_eq!(replay.events().len(), 1);
        assert_eq!(replay.len, EVENTS_LEN_MAX);
    }
}

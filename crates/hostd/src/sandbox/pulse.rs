//! Whether a guest still answers: when to ask it, and when to give it up. Pure, over times passed in.
//!
//! A virtual CPU that spins or a kernel that hangs closes nothing: only an unanswered question shows it.

use std::time::{Duration, Instant};

/// How long a guest may be silent before it is asked: while code runs in it, and while it waits in a pool or only its
/// terminals are used.
pub const SILENCE_RUNNING: Duration = Duration::from_secs(20);
pub const SILENCE_POOLED: Duration = Duration::from_secs(60);
pub const SILENCE_ATTACHED: Duration = Duration::from_secs(60);

/// How long it may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Ask,
    GiveUp,
}

#[derive(Debug)]
pub struct Pulse {
    heard: Instant,
    asked: Option<Instant>,
}

impl Pulse {
    pub fn new(now: Instant) -> Pulse {
        Pulse { heard: now, asked: None }
    }

    /// The guest has said something, or there was no reason to listen until now.
    pub fn restart(&mut self, now: Instant) {
        *self = Pulse::new(now);
    }

    pub fn asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// What is to be done next, and when.
    pub fn next(&self, silence: Duration) -> (Instant, Due) {
        match self.asked {
            None => (self.heard + silence, Due::Ask),
            Some(asked) => (asked + PATIENCE, Due::GiveUp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_guest_is_asked_once_and_then_given_up() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let asked = start + SILENCE_RUNNING;
        assert_eq!(pulse.next(SILENCE_RUNNING), (asked, Due::Ask));
        pulse.asked(asked);
        assert_eq!(pulse.next(SILENCE_RUNNING), (asked + PATIENCE, Due::GiveUp));
        let answered = asked + Duration::from_secs(59);
        pulse.restart(answered);
        assert_eq!(pulse.next(SILENCE_POOLED), (answered + SILENCE_POOLED, Due::Ask));
    }
}

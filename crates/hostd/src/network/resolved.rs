//! The addresses that a list lets through because an allowed name stood for them.

use super::driver::Resolved;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Addresses of one sandbox at a time; above, those go that run out first.
const RESOLVED_MAX: usize = 4096;

/// How long an address is let through after its name was asked for, at least: programs keep what they were told longer
/// than they may.
const LIFE_MIN: Duration = Duration::from_secs(300);
const LIFE_MAX: Duration = Duration::from_secs(86_400);

#[derive(Debug, Default)]
pub(super) struct Names {
    until: HashMap<Resolved, Instant>,
}

/// What is to be let through from now on, and no longer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) add: Vec<Resolved>,
    pub(super) remove: Vec<Resolved>,
}

impl Names {
    /// Takes in what a name stands for, for as long as its answer says.
    pub(super) fn learn(
        &mut self,
        found: impl IntoIterator<Item = Resolved>,
        ttl: Duration,
        now: Instant,
    ) -> Difference {
        let until = now + ttl.clamp(LIFE_MIN, LIFE_MAX);
        let mut add = Vec::new();
        for resolved in found {
            let known = self.until.entry(resolved).or_insert_with(|| {
                add.push(resolved);
                until
            });
            *known = (*known).max(until);
        }
        let mut remove: Vec<Resolved> =
            self.until.iter().filter(|(_, until)| **until <= now).map(|(resolved, _)| *resolved).collect();
        self.until.retain(|_, until| *until > now);
        if self.until.len() > RESOLVED_MAX {
            let mut by_end: Vec<_> = self.until.iter().map(|(resolved, until)| (*until, *resolved)).collect();
            by_end.sort_unstable();
            let mut evicted: HashSet<Resolved> = by_end
                .into_iter()
                .take(self.until.len() - RESOLVED_MAX)
                .map(|(_, resolved)| resolved)
                .collect();
            self.until.retain(|resolved, _| !evicted.contains(resolved));
            add.retain(|resolved| !evicted.remove(resolved));
            remove.extend(evicted);
        }
        Difference { add, remove }
    }

    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.until.values().any(|until| *until <= now)
    }

    /// Nothing has come of a difference: what was to go is to go the next time.
    pub(super) fn undo(&mut self, difference: &Difference, now: Instant) {
        self.until.retain(|resolved, _| !difference.add.contains(resolved));
        self.until.extend(difference.remove.iter().map(|resolved| (*resolved, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn resolved(number: u32) -> Resolved {
        Resolved { address: Ipv4Addr::from_bits(number), port: None }
    }

    #[test]
    fn an_address_is_let_through_once_and_for_as_long_as_it_is_asked_for() {
        let (mut names, start) = (Names::default(), Instant::now());
        let ttl = Duration::from_secs(400);
        assert_eq!(
            names.learn([resolved(1)], ttl, start),
            Difference { add: vec![resolved(1)], remove: vec![] }
        );
        let later = start + Duration::from_secs(300);
        assert_eq!(names.learn([resolved(1)], ttl, later), Difference { add: vec![], remove: vec![] });
        let late = start + Duration::from_secs(500);
        assert_eq!(
            names.learn([resolved(2)], ttl, late),
            Difference { add: vec![resolved(2)], remove: vec![] }
        );
        let very_late = later + ttl;
        assert_eq!(names.learn([], ttl, very_late), Difference { add: vec![], remove: vec![resolved(1)] });
    }

    #[test]
    fn a_name_of_a_moment_is_let_through_long_enough_to_be_used() {
        let (mut names, start) = (Names::default(), Instant::now());
        names.learn([resolved(1)], Duration::ZERO, start);
        let soon = start + Duration::from_secs(299);
        assert_eq!(names.learn([], Duration::ZERO, soon).remove, []);
    }

    #[test]
    fn there_are_never_more_than_the_most() {
        let (mut names, start) = (Names::default(), Instant::now());
        let mut let_through = std::collections::HashSet::new();
        for round in 0..5_u32 {
            let now = start + Duration::from_secs(round.into());
            let found = (0..1500).map(|number| resolved(round * 10_000 + number));
            let Difference { add, remove } = names.learn(found, Duration::ZERO, now);
            let_through.extend(add);
            for gone in remove {
                assert!(let_through.remove(&gone));
            }
            assert!(let_through.len() <= RESOLVED_MAX);
        }
        assert_eq!(let_through.len(), RESOLVED_MAX);
    }
}

//! How many sandboxes to keep ready, and when to make or end some: pure, over numbers and times passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The pool keeps as many as were asked for within so long, if that is more than its target.
pub const DEMAND_WINDOW: Duration = Duration::from_secs(10);

/// But never more than so many times its target.
pub const GROWTH_MAX: usize = 4;

/// What a member takes of the host's memory while it waits: its own pages, page tables, its process and KVM's part.
/// `bench-warm-members` measures 5.2 MiB, and 6.1 MiB after ten minutes.
const MEMBER_LEN: u64 = 8 << 20;

/// The part of the host's memory that the pool leaves to sandboxes at work: an eighth.
const RESERVE_PART: u64 = 8;

/// How long nothing must have happened that somebody waits for, before a member is made. The first code usually
/// follows a create within that time.
pub const QUIET: Duration = Duration::from_millis(100);

/// How long a pool that is half full waits for a quiet moment.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two members that are ended because there are too many.
pub const SURPLUS_PAUSE: Duration = Duration::from_secs(5);

/// How old a member gets before a new one takes its place. A guest's clock does not follow the corrections of its
/// host's: at 50 millionths, which clocks keep to, it is off by 90 ms after so long.
const AGE_MAX: Duration = Duration::from_secs(30 * 60);

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a pool has and is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// What it has when nothing is asked of it.
    pub target: usize,
    /// What it is to have now.
    pub wanted: usize,
    pub ready: usize,
    pub starting: usize,
}

/// The host's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
}

/// The moment in which a member may be made.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Executions that somebody waits for are as many as there are processors.
    pub busy: bool,
    /// Since somebody has last asked for something, or been answered.
    pub quiet_for: Duration,
    /// Since members have been missing, or the last one was started.
    pub short_for: Duration,
    /// Members that may be made at once.
    pub at_once_max: usize,
}

/// What to do about members that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    Start(usize),
    /// Look again after this time, or when an execution begins or ends.
    Wait(Duration),
    /// Nothing, until a member has been started or claimed.
    Rest,
}

/// The creates of the last [`DEMAND_WINDOW`].
#[derive(Debug, Default)]
pub struct Demand(VecDeque<Instant>);

impl Demand {
    /// Of more than `limit` only the last are remembered.
    pub fn note(&mut self, now: Instant, limit: usize) {
        self.0.push_back(now);
        while self.0.len() > limit {
            self.0.pop_front();
        }
    }

    pub fn recent(&mut self, now: Instant) -> usize {
        while self.0.front().is_some_and(|created| now.duration_since(*created) > DEMAND_WINDOW) {
            self.0.pop_front();
        }
        self.0.len()
    }
}

/// The most that a pool ever keeps.
pub fn ceiling(target: usize) -> usize {
    target * GROWTH_MAX
}

/// What a pool would have if memory did not count.
pub fn wanted(target: usize, recent_creates: usize) -> usize {
    recent_creates.clamp(target, ceiling(target))
}

/// What each of several pools is to have that together have so many `members`, the starting ones included. Where
/// memory does not allow all that they want, the first come first.
pub fn share(wanted: &[usize], members: usize, memory: Option<Memory>) -> Vec<usize> {
    let mut left = memory.map_or(usize::MAX, |memory| affordable(members, memory));
    let give = |wanted: &usize| {
        let given = left.min(*wanted);
        left -= given;
        given
    };
    wanted.iter().map(give).collect()
}

/// How many members memory allows.
fn affordable(members: usize, memory: Memory) -> usize {
    let reserve = memory.total / RESERVE_PART;
    let count = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    if memory.available >= reserve {
        members.saturating_add(count((memory.available - reserve) / MEMBER_LEN))
    } else {
        members.saturating_sub(count((reserve - memory.available).div_ceil(MEMBER_LEN)))
    }
}

/// A pool that is less than half full is filled at once, as fast as the host can. Any other waits for a moment in
/// which it disturbs nobody, but not for ever.
pub fn refill(levels: Levels, moment: Moment) -> Refill {
    let Levels { wanted, ready, starting, .. } = levels;
    let missing = wanted.saturating_sub(ready + starting);
    if missing == 0 {
        return Refill::Rest;
    }
    if ready * 2 < wanted {
        let room = moment.at_once_max.saturating_sub(starting);
        return if room == 0 { Refill::Rest } else { Refill::Start(missing.min(room)) };
    }
    if starting > 0 {
        return Refill::Rest;
    }
    let left = PATIENCE.saturating_sub(moment.short_for);
    let loud = if moment.busy { left } else { QUIET.saturating_sub(moment.quiet_for) };
    match loud.min(left) {
        Duration::ZERO => Refill::Start(1),
        wait => Refill::Wait(wait),
    }
}

/// Whether the oldest member of a full pool is to be replaced now.
pub fn is_too_old(levels: Levels, oldest: Duration, moment: Moment) -> bool {
    let is_full = levels.starting == 0 && levels.ready >= levels.wanted;
    is_full && oldest >= AGE_MAX && !moment.busy
}

/// How many members to end now. One that memory has no room for goes at once; of others one after the other goes,
/// because taking a machine down costs those that run some time.
pub fn surplus(levels: Levels, last_ended: Option<Duration>, moment: Moment) -> usize {
    let over = (levels.ready + levels.starting).saturating_sub(levels.wanted).min(levels.ready);
    if levels.wanted < levels.target {
        return over;
    }
    let may_end = !moment.busy && last_ended.is_none_or(|since| since >= SURPLUS_PAUSE);
    if may_end { over.min(1) } else { 0 }
}

/// How long to wait after so many failures in a row.
pub fn retry_after(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CALM: Moment =
        Moment { busy: false, quiet_for: Duration::MAX, short_for: Duration::ZERO, at_once_max: 2 };

    fn levels(wanted: usize, ready: usize, starting: usize) -> Levels {
        Levels { target: wanted, wanted, ready, starting }
    }

    #[test]
    fn failures_are_retried_ever_more_slowly() {
        assert_eq!(retry_after(1), RETRY_MIN);
        assert_eq!(retry_after(2), RETRY_MIN * 2);
        assert_eq!(retry_after(u32::MAX), RETRY_MAX);
    }

    #[test]
    fn demand_is_what_was_created_lately() {
        let (mut demand, start) = (Demand::default(), Instant::now());
        for second in 0..20 {
            demand.note(start + Duration::from_secs(second), 15);
        }
        let last = start + Duration::from_secs(19);
        assert_eq!(demand.recent(last), 11);
        assert_eq!(demand.recent(last + DEMAND_WINDOW), 1);
        assert_eq!(demand.recent(last + DEMAND_WINDOW * 2), 0);
    }

    #[test]
    fn a_pool_follows_demand_up_to_its_ceiling_and_falls_back_to_its_target() {
        assert_eq!(wanted(4, 0), 4);
        assert_eq!(wanted(4, 9), 9);
        assert_eq!(wanted(4, 1000), 16);
        assert_eq!(wanted(0, 1000), 0, "who wants no pool gets none");
    }

    #[test]
    fn several_pools_share_the_memory_that_there_is_once() {
        let total = 64 * MEMBER_LEN * RESERVE_PART;
        let room_for =
            |members: u64| Memory { total, available: total / RESERVE_PART + members * MEMBER_LEN };
        assert_eq!(share(&[4, 2, 1], 0, None), [4, 2, 1]);
        assert_eq!(share(&[4, 2, 1], 0, Some(room_for(5))), [4, 1, 0]);
        assert_eq!(share(&[4, 2, 1], 3, Some(room_for(3))), [4, 2, 0], "what they have counts");
    }

    #[test]
    fn a_member_is_not_made_in_the_moment_after_a_claim() {
        let claimed = Moment { quiet_for: Duration::from_millis(30), ..CALM };
        assert_eq!(refill(levels(4, 3, 0), claimed), Refill::Wait(Duration::from_millis(70)));
        assert_eq!(refill(levels(4, 3, 0), Moment { quiet_for: QUIET, ..CALM }), Refill::Start(1));
        assert_eq!(refill(levels(4, 1, 0), claimed), Refill::Start(2), "unless the pool is low");
    }

    #[test]
    fn a_host_that_is_always_busy_still_fills_its_pool() {
        let busy = Moment { busy: true, quiet_for: Duration::ZERO, ..CALM };
        assert_eq!(refill(levels(4, 2, 0), busy), Refill::Wait(PATIENCE));
        assert_eq!(refill(levels(4, 2, 0), Moment { short_for: PATIENCE, ..busy }), Refill::Start(1));
    }

    #[test]
    fn surplus_members_end_one_by_one_and_at_once_when_memory_is_short() {
        let grown = Levels { target: 4, wanted: 4, ready: 9, starting: 0 };
        assert_eq!(surplus(grown, None, CALM), 1);
        assert_eq!(surplus(grown, Some(SURPLUS_PAUSE / 2), CALM), 0);
        assert_eq!(surplus(grown, None, Moment { busy: true, ..CALM }), 0);
        assert_eq!(surplus(Levels { wanted: 2, ..grown }, Some(Duration::ZERO), CALM), 7);
    }

    #[test]
    fn a_member_is_replaced_when_it_is_old_and_the_pool_full() {
        assert!(is_too_old(levels(4, 4, 0), AGE_MAX, CALM));
        assert!(!is_too_old(levels(4, 4, 0), AGE_MAX / 2, CALM));
        assert!(!is_too_old(levels(4, 3, 1), AGE_MAX, CALM));
        assert!(!is_too_old(levels(4, 4, 0), AGE_MAX, Moment { busy: true, ..CALM }));
    }

    fn moment() -> impl Strategy<Value = Moment> {
        (any::<bool>(), 0_u64..200, 0_u64..3000, 1_usize..64).prop_map(
            |(busy, quiet_ms, short_ms, at_once_max)| Moment {
                busy,
                quiet_for: Duration::from_millis(quiet_ms),
                short_for: Duration::from_millis(short_ms),
                at_once_max,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_bounded_by_ceiling_and_memory(
            pools in prop::collection::vec((0_usize..1024, 0_usize..5000), 1..10), members in 0_usize..5000,
            total in 0_u64..1 << 40, part in 0_u64..=100
        ) {
            let memory = Memory { total, available: total / 100 * part };
            let each: Vec<usize> = pools.iter().map(|(target, creates)| wanted(*target, *creates)).collect();
            let shares = share(&each, members, Some(memory));
            for ((target, _), share) in pools.iter().zip(&shares) {
                prop_assert!(*share <= ceiling(*target));
            }
            let wanted: usize = shares.iter().sum();
            if wanted > members {
                let len = (wanted - members) as u64 * MEMBER_LEN;
                prop_assert!(memory.available >= total / RESERVE_PART + len);
            }
            prop_assert!(wanted <= members || memory.available >= total / RESERVE_PART);
        }

        #[test]
        fn a_pool_fills_to_what_is_wanted_and_no_further(
            size in 0_usize..200, ready in 0_usize..200, moment in moment()
        ) {
            let mut levels = levels(size, ready.min(size), 0);
            for _ in 0..=2 * size {
                match refill(levels, moment) {
                    Refill::Start(count) => {
                        prop_assert!(count > 0 && levels.starting + count <= moment.at_once_max.max(1));
                        levels.starting += count;
                        prop_assert!(levels.ready + levels.starting <= size);
                    }
                    Refill::Rest => {
                        levels.ready += levels.starting;
                        levels.starting = 0;
                    }
                    // Time passes, and at some point enough of it.
                    Refill::Wait(wait) => {
                        prop_assert!(wait <= PATIENCE && levels.ready * 2 >= size);
                        let later = Moment { short_for: moment.short_for + wait, ..moment };
                        let calmer = Moment { quiet_for: moment.quiet_for + wait, ..later };
                        prop_assert_eq!(refill(levels, calmer), Refill::Start(1));
                        levels.starting += 1;
                    }
                }
            }
            levels.ready += levels.starting;
            levels.starting = 0;
            prop_assert_eq!(levels.ready, size);
            prop_assert_eq!(refill(levels, moment), Refill::Rest);
        }

        #[test]
        fn only_members_beyond_what_is_wanted_end(
            target in 0_usize..50, wanted in 0_usize..50, ready in 0_usize..200, starting in 0_usize..50, moment in moment()
        ) {
            let ending = surplus(Levels { target, wanted, ready, starting }, None, moment);
            prop_assert!(ending <= ready);
            prop_assert!(ending == 0 || ready + starting - ending >= wanted);
        }
    }
}

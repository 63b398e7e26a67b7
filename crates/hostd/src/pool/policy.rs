//! How many sandboxes to make ready, and when to try again: pure.

use std::time::Duration;

/// Copies made at once: few, because they compete with the sandboxes that people wait for.
const STARTING_MAX: usize = 2;

const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    pub size: usize,
    pub ready: usize,
    pub starting: usize,
}

/// How many copies to start now. A pool that is half full is not in a hurry.
pub fn to_start(levels: Levels) -> usize {
    let missing = levels.size.saturating_sub(levels.ready + levels.starting);
    let at_once = if levels.ready * 2 >= levels.size { 1 } else { STARTING_MAX };
    missing.min(at_once.saturating_sub(levels.starting))
}

/// How long to wait after so many failures in a row.
pub fn retry_after(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_are_retried_ever_more_slowly() {
        assert_eq!(retry_after(1), RETRY_MIN);
        assert_eq!(retry_after(2), RETRY_MIN * 2);
        assert_eq!(retry_after(u32::MAX), RETRY_MAX);
    }

    proptest! {
        #[test]
        fn a_pool_fills_to_its_size_and_no_further(size in 0_usize..200, ready in 0_usize..200) {
            let mut levels = Levels { size, ready: ready.min(size), starting: 0 };
            for _ in 0..=size {
                let start = to_start(levels);
                prop_assert!(levels.starting + start <= STARTING_MAX);
                prop_assert!(levels.ready + levels.starting + start <= size);
                levels.ready += start;
            }
            prop_assert_eq!(levels.ready, size);
            prop_assert_eq!(to_start(levels), 0);
        }
    }
}

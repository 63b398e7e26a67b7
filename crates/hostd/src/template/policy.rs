//! Which variant makes room for a new one: pure.

use tokio::time::Instant;

/// A variant that may have to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) last_used: Instant,
    /// It boots, or a create waits for it or copies it.
    pub(super) in_use: bool,
}

/// What is to be done for one variant more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// That of this index has to go.
    Of(usize),
    /// All are in use.
    None,
}

/// At most `max` are kept; the one that was used longest ago goes.
pub(super) fn make_room(places: &[Place], max: usize) -> Room {
    if places.len() < max {
        return Room::Free;
    }
    let unused = places.iter().enumerate().filter(|(_, place)| !place.in_use);
    unused.min_by_key(|(_, place)| place.last_used).map_or(Room::None, |(index, _)| Room::Of(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn places(used: &[(u64, bool)]) -> Vec<Place> {
        let start = Instant::now();
        let place = |&(second, in_use)| Place { last_used: start + Duration::from_secs(second), in_use };
        used.iter().map(place).collect()
    }

    #[test]
    fn the_one_that_was_used_longest_ago_makes_room() {
        assert_eq!(make_room(&places(&[(1, false), (2, false)]), 3), Room::Free);
        assert_eq!(make_room(&places(&[(5, false), (2, false), (9, false)]), 3), Room::Of(1));
    }

    #[test]
    fn one_that_is_in_use_never_makes_room() {
        assert_eq!(make_room(&places(&[(5, false), (2, true), (9, false)]), 3), Room::Of(0));
        assert_eq!(make_room(&places(&[(5, true), (2, true)]), 2), Room::None);
    }

    proptest! {
        #[test]
        fn there_is_room_unless_all_are_in_use(
            used in prop::collection::vec((0_u64..100, any::<bool>()), 0..20), max in 1_usize..20
        ) {
            let places = places(&used);
            match make_room(&places, max) {
                Room::Free => prop_assert!(places.len() < max),
                Room::Of(index) => {
                    prop_assert!(!places[index].in_use);
                    let older = |place: &&Place| !place.in_use && place.last_used < places[index].last_used;
                    prop_assert!(places.iter().find(older).is_none());
                }
                Room::None => prop_assert!(places.len() >= max && places.iter().all(|place| place.in_use)),
            }
        }
    }
}

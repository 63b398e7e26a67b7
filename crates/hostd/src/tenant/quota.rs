//! How many of something a tenant has at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Debug)]
pub struct Quota {
    max: u32,
    taken: AtomicU32,
}

/// Parts of a quota, kept by holding them.
#[derive(Debug)]
pub struct Taken {
    quota: Arc<Quota>,
    count: u32,
}

/// There would be too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exceeded {
    pub max: u32,
    pub taken: u32,
}

impl Quota {
    pub fn new(max: u32) -> Arc<Quota> {
        Arc::new(Quota { max, taken: AtomicU32::new(0) })
    }

    pub fn take(self: &Arc<Quota>, count: u32) -> Result<Taken, Exceeded> {
        let add = |taken: u32| taken.checked_add(count).filter(|sum| *sum <= self.max);
        match self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Taken { quota: self.clone(), count }),
            Err(taken) => Err(Exceeded { max: self.max, taken }),
        }
    }

    /// Takes the place of another that is about to go, also where there are as many as there may be.
    pub fn replace(self: &Arc<Quota>) -> Taken {
        self.taken.fetch_add(1, Ordering::Relaxed);
        Taken { quota: self.clone(), count: 1 }
    }

    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }

    pub fn max(&self) -> u32 {
        self.max
    }
}

impl Taken {
    /// One of them, unless none is left.
    pub fn split_one(&mut self) -> Option<Taken> {
        self.count = self.count.checked_sub(1)?;
        Some(Taken { quota: self.quota.clone(), count: 1 })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.quota.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_comes_back() {
        let quota = Quota::new(3);
        let mut two = quota.take(2).unwrap();
        assert_eq!(quota.take(2).unwrap_err(), Exceeded { max: 3, taken: 2 });
        let one = two.split_one().unwrap();
        drop(two);
        assert_eq!(quota.taken(), 1);
        let heir = quota.replace();
        drop((one, quota.take(2).unwrap_err()));
        drop(heir);
        assert_eq!(quota.taken(), 0);
        assert!(quota.take(u32::MAX).is_err());
    }
}

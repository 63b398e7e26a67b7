//! Fake machines that were saved: a file says which.

use super::{Guest, World, lock};
use crate::vmm::{SavedFiles, Unusable, VmmError};
use podflare_wire::control::Fault;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

/// What each part is said to be written with.
const PART_LEN: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Saved {
    guests: Mutex<Vec<Guest>>,
    pub(super) time_ms: AtomicU32,
    pub(super) saves_to_fail: AtomicU32,
}

impl Saved {
    pub(super) fn keep(
        &self,
        files: &SavedFiles,
        base: Option<&SavedFiles>,
        guest: Guest,
    ) -> Result<(), VmmError> {
        if World::takes(&self.saves_to_fail) {
            return Err(unusable(Fault::Host, "No space left on device"));
        }
        base.map(|base| self.find(base)).transpose()?;
        let mut guests = lock(&self.guests);
        let number = u64::try_from(guests.len()).unwrap_or(u64::MAX);
        guests.push(guest);
        for part in files.parts() {
            part.write_all_at(&number.to_le_bytes(), 0).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    pub(super) fn find(&self, files: &SavedFiles) -> Result<Guest, VmmError> {
        let mut numbers = Vec::new();
        for part in files.parts() {
            let mut number = [0; PART_LEN];
            part.read_exact_at(&mut number, 0).map_err(|error| failed(&error))?;
            numbers.push(u64::from_le_bytes(number));
        }
        numbers.dedup();
        let [number] = numbers[..] else {
            return Err(unusable(Fault::Foreign, "the parts are of two saves"));
        };
        let guests = lock(&self.guests);
        let guest = usize::try_from(number).ok().and_then(|number| guests.get(number));
        guest.cloned().ok_or_else(|| unusable(Fault::Damaged, "it is damaged"))
    }
}

fn failed(error: &std::io::Error) -> VmmError {
    unusable(Fault::Host, &error.to_string())
}

fn unusable(fault: Fault, reason: &str) -> VmmError {
    Unusable { fault, reason: reason.to_owned() }.into()
}

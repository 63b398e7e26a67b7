//! Where the programs and the guest image are: the runner of the tests says so in the environment.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// A program of this project.
pub fn program(name: &str) -> PathBuf {
    directory("PODFLARE_BIN_DIR").join(name)
}

/// A file of the guest image.
pub fn image_file(name: &str) -> PathBuf {
    directory("PODFLARE_IMAGE_DIR").join(name)
}

/// The guest's root file system: a file, or a disk of the emulated host.
pub fn rootfs() -> PathBuf {
    variable("PODFLARE_ROOTFS").map_or_else(|| image_file("rootfs.ext4"), PathBuf::from)
}

fn directory(name: &str) -> PathBuf {
    #[expect(clippy::panic, reason = "a test that cannot run must fail")]
    variable(name)
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{name} is not set: run these tests with `make test`"))
}

#[expect(clippy::disallowed_methods, reason = "the one reader of the tests' settings")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where a test's random choices begin: `PODFLARE_TEST_SEED`, or the time.
#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
pub fn seed() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    variable("PODFLARE_TEST_SEED").map_or_else(now, |seed| seed.parse().unwrap())
}

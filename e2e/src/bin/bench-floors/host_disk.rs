//! A file of this machine, written as the guest's is: how long it takes until the kernel says that it is on the disk.

use crate::micros;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::Instant;

/// Where sandboxes' disks are in an emulated host, and on a machine that is set up for good.
const STATE: &str = "/var/lib/podflare";

const BLOCK_LEN: usize = 1 << 20;

/// A file without a name.
#[derive(Debug)]
pub(crate) struct HostDisk(File);

#[expect(clippy::unwrap_used, reason = "a floor that cannot be measured must fail the measurement")]
impl HostDisk {
    pub(crate) fn open() -> HostDisk {
        let state = Path::new(STATE);
        HostDisk(if state.is_dir() { tempfile::tempfile_in(state) } else { tempfile::tempfile() }.unwrap())
    }

    /// Writes so many bytes, block by block, and has them synced.
    pub(crate) fn write_us(&mut self, len: usize) -> f64 {
        // Not zeros, which a disk may pass over.
        let block = vec![0x5a; len.min(BLOCK_LEN)];
        self.0.rewind().unwrap();
        let start = Instant::now();
        for _ in 0..len.div_ceil(BLOCK_LEN) {
            self.0.write_all(&block).unwrap();
        }
        self.0.sync_all().unwrap();
        micros(start)
    }
}

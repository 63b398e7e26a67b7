//! The emulated host: a Linux under QEMU's software emulation whose `/dev/kvm` works, for machines whose own
//! does not.
//!
//! ```text
//! this machine                                    emulated host
//!   QEMU ── 9p: directories ────────────────────▶ the same absolute paths
//!        ── disks: guest root, state ───────────▶ /dev/guest-rootfs, /var/lib/podflare
//!        ◀─ virtio-serial: output, end of job ─── one job: hostd, or a test program
//!        ── 127.0.0.1:PORT ─────────────────────▶ 10.0.2.15:7070
//! ```
//!
//! It knows nothing of sandboxes or of what the job does.

pub mod job;
pub mod machine;
pub mod places;
pub mod probe;
pub mod process;
pub mod run;
pub mod service;

mod backlog;
mod launch;
mod qemu;

//! A stock distribution kernel with the real agent, as the image builder makes it.

use crate::agent::Agent;
use crate::place;
use crate::vmm::{Boot, Vmm};
use podflare_wire::control::{BootConfig, PageRun};
use std::fs::File;

const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init";

/// Boots it; the agent comes later.
///
/// # Panics
/// When an image file is missing.
#[expect(clippy::unwrap_used, reason = "a test without its guest must fail")]
pub fn boot(vcpus: u8, memory_mib: u32, huge_pages: bool) -> Vmm {
    let open = |path| File::open(path).unwrap();
    let vmm = Vmm::start();
    vmm.boot(&Boot {
        kernel: open(place::image_file("vmlinux")),
        initramfs: open(place::image_file("initramfs.cpio")),
        disk_base: open(place::rootfs()),
        config: BootConfig {
            vcpus,
            memory_mib,
            disk_bytes: 4 << 30,
            command_line: COMMAND_LINE.into(),
            huge_pages,
        },
    });
    vmm
}

/// The pages that a copy of this frozen guest touches until it has run Python.
pub fn hot_pages(template: &Vmm) -> Vec<PageRun> {
    let (trial, _) = template.fork();
    trial.thaw_recording();
    Agent::connect(&trial, 0).python("print(1)");
    trial.hot_pages()
}

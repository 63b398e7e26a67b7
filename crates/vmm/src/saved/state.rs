//! Everything of a machine but its memory and its disk.

use super::part::Digest;
use crate::devices::DevicesState;
use crate::kvm::processor::Processor;
use crate::kvm::state::MachineState;
use crate::machine::Body;
use podflare_wire::control::PageRun;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedState<M = MachineState> {
    /// The state of the machine that this one was compared with; none of one that is whole.
    pub(super) base: Option<Digest>,
    pub(super) memory: Digest,
    pub(super) disk: Digest,
    pub(super) vcpus: u8,
    pub(super) memory_mib: u32,
    pub(super) huge_pages: bool,
    pub(super) disk_bytes: u64,
    /// The length of the base disk.
    pub(super) image_bytes: u64,
    pub(super) processor: Processor,
    pub(super) hot_pages: Vec<PageRun>,
    pub(super) machine: M,
    pub(super) devices: DevicesState,
}

impl<'a> SavedState<&'a MachineState> {
    pub(super) fn of(
        body: &Body,
        machine: &'a MachineState,
        base: Option<Digest>,
        memory: Digest,
        disk: Digest,
    ) -> SavedState<&'a MachineState> {
        let (disk_bytes, image_bytes) = body.devices.with_disk(|disk| (disk.bytes(), disk.base_bytes()));
        SavedState {
            base,
            memory,
            disk,
            vcpus: body.vcpus,
            memory_mib: body.memory_mib,
            huge_pages: body.huge_pages,
            disk_bytes,
            image_bytes,
            processor: body.platform.processor(),
            hot_pages: body.hot_pages.runs().to_vec(),
            machine,
            devices: body.devices.state(),
        }
    }
}

//! Measures what this machine's kernel asks for the parts of a fork, with nothing of ours in between: what
//! `make bench` prints beside its figures. Prints JSON, times in microseconds.

#[expect(unsafe_code, reason = "fork(2) and madvise(2) are what is measured")]
mod bare_fork;
#[expect(unsafe_code, reason = "KVM is told where guest memory is")]
mod bare_vm;
mod host_disk;
mod machine;

use bare_fork::Touched;
use bare_vm::BareVm;
use host_disk::HostDisk;
use kvm_ioctls::Kvm;
use machine::Machine;
use podflare_e2e::agent::Agent;
use podflare_e2e::cost::ProcessMemory;
use podflare_e2e::linux_guest;
use serde::Serialize;
use std::time::Instant;

const ROUNDS: usize = 100;
const WARM_UP: usize = 3;
/// What is written to the disk at once, as in `podflare_bench/operations.py`, and how often.
const SYNC_LEN: usize = 4 << 10;
const WRITE_LEN: usize = 64 << 20;
const WRITE_ROUNDS: usize = 10;
/// hostd's defaults for a template.
const MEMORY_MIB: u32 = 1024;
const HUGE_PAGES: bool = true;

#[derive(Serialize)]
struct Report {
    machine: Machine,
    /// What the template holds in memory, and the process whose fork is measured.
    touched_kib: u64,
    vcpus: u8,
    fork_us: Vec<f64>,
    vm_created_us: Vec<f64>,
    vm_destroyed_us: Vec<f64>,
    disk_sync_us: Vec<f64>,
    disk_write_us: Vec<f64>,
}

#[expect(clippy::print_stdout, reason = "the report is this program's output")]
#[expect(clippy::unwrap_used, reason = "a floor that cannot be measured must fail the measurement")]
fn main() {
    let machine = Machine::this();
    // As hostd chooses it.
    let vcpus = if machine.processors > 1 { 2 } else { 1 };
    let touched_kib = template_kib(vcpus);
    let touched = Touched::new(MEMORY_MIB, touched_kib, HUGE_PAGES);
    let fork_us = sampled(ROUNDS, || touched.fork_us());
    // The VMM keeps it open, too.
    let kvm = Kvm::new().unwrap();
    let vms = sampled(ROUNDS, || vm_us(&kvm, &touched, vcpus));
    let (vm_created_us, vm_destroyed_us) = vms.into_iter().unzip();
    let mut disk = HostDisk::open();
    let disk_sync_us = sampled(ROUNDS, || disk.write_us(SYNC_LEN));
    let disk_write_us = sampled(WRITE_ROUNDS, || disk.write_us(WRITE_LEN));
    let report = Report {
        machine,
        touched_kib,
        vcpus,
        fork_us,
        vm_created_us,
        vm_destroyed_us,
        disk_sync_us,
        disk_write_us,
    };
    println!("{}", serde_json::to_string(&report).unwrap());
}

fn template_kib(vcpus: u8) -> u64 {
    let template = linux_guest::boot(vcpus, MEMORY_MIB, HUGE_PAGES);
    Agent::connect(&template, 0).python("print(1)");
    template.freeze();
    ProcessMemory::of(template.pid).anonymous
}

fn vm_us(kvm: &Kvm, touched: &Touched, vcpus: u8) -> (f64, f64) {
    let start = Instant::now();
    let vm = BareVm::create(kvm, touched.memory(), vcpus);
    let created = micros(start);
    let start = Instant::now();
    drop(vm);
    (created, micros(start))
}

fn sampled<T>(rounds: usize, mut measure: impl FnMut() -> T) -> Vec<T> {
    (0..WARM_UP).for_each(|_| drop(measure()));
    (0..rounds).map(|_| measure()).collect()
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

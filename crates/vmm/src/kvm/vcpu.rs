//! The vCPUs' threads: each runs the guest, serves its accesses to devices, and ends by returning the vCPU.

use crate::devices::Devices;
use crate::signals::Signals;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// A vCPU thread's stack: its call depth is small, its buffers are elsewhere.
const STACK_LEN: usize = 256 * 1024;

/// Why a vCPU stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// [`VcpuThreads::stop`] was called.
    Asked,
    /// The guest reset the machine.
    Reset,
    Failed(String),
}

/// The threads of all vCPUs of a machine. They end at the latest when this is dropped: no vCPU runs in
/// memory that its machine has given up.
#[derive(Debug, Default)]
pub(crate) struct VcpuThreads(Vec<VcpuThread>);

#[derive(Debug)]
struct VcpuThread {
    thread: JoinHandle<(VcpuFd, Stop)>,
    immediate_exit: ImmediateExit,
}

/// KVM's flag "return from the next run at once", in the page that a vCPU shares with KVM.
#[derive(Debug, Clone, Copy)]
struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointee is an atomic, and its page stays mapped while the vCPU lives, which its thread
// returns only when it ends.
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    fn of(vcpu: &mut VcpuFd) -> ImmediateExit {
        ImmediateExit((&raw mut vcpu.get_kvm_run().immediate_exit).cast())
    }

    fn get(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped while the vCPU lives (see `Send`), and no one makes a plain
        // reference to this byte while its thread runs.
        unsafe { &*self.0 }
    }
}

/// Must be called once, before the first vCPU thread: the signal only has to interrupt.
pub(crate) fn install_stop_signal() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore)
}

impl VcpuThreads {
    /// Runs all vCPUs, or none.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        signals: &Arc<Signals>,
        devices: &Arc<Devices>,
    ) -> std::io::Result<VcpuThreads> {
        let mut threads = VcpuThreads::default();
        for vcpu in vcpus {
            threads.0.push(VcpuThread::start(vcpu, signals.clone(), devices.clone())?);
        }
        Ok(threads)
    }

    /// Stops all vCPUs. Says of each why it has stopped; nothing of one whose thread has panicked.
    pub(crate) fn stop(&mut self) -> Vec<Option<(VcpuFd, Stop)>> {
        for thread in &self.0 {
            thread.stop();
        }
        self.0.drain(..).map(|thread| thread.thread.join().ok()).collect()
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl VcpuThread {
    /// Runs the vCPU until it is stopped, and tells if it stops by itself.
    fn start(mut vcpu: VcpuFd, signals: Arc<Signals>, devices: Arc<Devices>) -> std::io::Result<VcpuThread> {
        let immediate_exit = ImmediateExit::of(&mut vcpu);
        immediate_exit.get().store(0, Ordering::Release);
        let thread =
            std::thread::Builder::new().name("vcpu".into()).stack_size(STACK_LEN).spawn(move || {
                let stop = run(&mut vcpu, immediate_exit, &signals, &devices);
                if stop != Stop::Asked {
                    signals.vcpu_ended();
                }
                (vcpu, stop)
            })?;
        Ok(VcpuThread { thread, immediate_exit })
    }

    /// Asks the vCPU to stop.
    fn stop(&self) {
        // The flag covers the time before KVM_RUN, the signal the time inside it.
        self.immediate_exit.get().store(1, Ordering::Release);
        let sent = self.thread.kill(SIGRTMIN());
        debug_assert!(sent.is_ok(), "a thread that is not joined can be signalled: {sent:?}");
    }
}

fn run(vcpu: &mut VcpuFd, immediate_exit: ImmediateExit, signals: &Signals, devices: &Devices) -> Stop {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::MmioWrite(address, data)) => signals.settle(devices.mmio_write(address, data)),
            Ok(VcpuExit::MmioRead(address, data)) => devices.mmio_read(address, data),
            Ok(VcpuExit::IoOut(port, data)) => signals.settle(devices.port_write(port, data)),
            Ok(VcpuExit::IoIn(port, data)) => devices.port_read(port, data),
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => return Stop::Reset,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Stop::Failed(format!(
                    "the processor refused to enter the guest: {reason:#x} on {cpu}"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                return Stop::Failed("KVM could not emulate an instruction".into());
            }
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Stop::Failed(format!("KVM left the guest for an unknown reason: {other:?}")),
            // An interrupted run has finished its last I/O instruction: the state may be saved. EAGAIN is that
            // of a vCPU that another one has yet to start, or of a host that lacks a process for KVM's
            // worker: nothing has run.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if immediate_exit.get().load(Ordering::Acquire) == 1 {
                    return Stop::Asked;
                }
            }
            Err(error) => return Stop::Failed(format!("KVM could not run the vCPU: {error}")),
        }
    }
}

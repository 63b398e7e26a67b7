//! The vCPUs' threads: each runs the guest and serves its accesses to devices. A machine that is forked parks
//! them and wakes them again; they end with the machine.
//!
//! A thread that is parked owns nothing and holds no lock: it has handed over its vCPU and all that it needs to
//! run it. So a copy of the process, which has none of the threads, has all that they had. Threads are parked and
//! not ended because some kernels (before Linux 6.13) make a vCPU that comes to another thread wait for an RCU
//! grace period, which is milliseconds, before it runs.

use crate::devices::Devices;
use crate::signals::Signals;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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

/// The threads of all vCPUs of a machine. They end when this is dropped: no vCPU runs in memory that its machine
/// has given up.
#[derive(Debug, Default)]
pub(crate) struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
}

/// Where threads are parked.
#[derive(Debug, Default)]
struct Gate {
    places: Mutex<Vec<Place>>,
    stopped: Condvar,
    opened: Condvar,
}

/// What one thread is to do, or has done.
#[derive(Debug)]
enum Place {
    /// Its thread has not come here yet.
    Starting,
    Run(Work),
    Runs(ImmediateExit),
    Stopped(VcpuFd, Stop),
    Parked,
    End,
}

impl Place {
    /// Takes work back that its thread has yet to begin: it would begin it while others are being stopped, and
    /// nobody would tell it to stop.
    fn take_back(&mut self) {
        *self = match std::mem::replace(self, Place::Parked) {
            Place::Run(work) => Place::Stopped(work.vcpu, Stop::Asked),
            place => place,
        };
    }
}

/// What a thread needs to run a vCPU.
#[derive(Debug)]
struct Work {
    vcpu: VcpuFd,
    signals: Arc<Signals>,
    devices: Arc<Devices>,
}

/// KVM's flag "return from the next run at once", in the page that a vCPU shares with KVM.
#[derive(Debug, Clone, Copy)]
struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointee is an atomic, and its page stays mapped while the vCPU lives, which its thread gives away
// only together with this.
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
    /// Makes a thread for each vCPU, and runs all of them, or none.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        signals: &Arc<Signals>,
        devices: &Arc<Devices>,
    ) -> std::io::Result<VcpuThreads> {
        let mut threads = VcpuThreads::default();
        for index in 0..vcpus.len() {
            let gate = threads.gate.clone();
            gate.places().push(Place::Starting);
            let thread = std::thread::Builder::new().name("vcpu".into()).stack_size(STACK_LEN);
            threads.threads.push(thread.spawn(move || serve(&gate, index))?);
        }
        threads.gate.wait_for_all();
        threads.resume(vcpus, signals, devices);
        Ok(threads)
    }

    /// Stops all vCPUs and parks their threads. Says of each vCPU why it has stopped.
    pub(crate) fn stop(&mut self) -> Vec<(VcpuFd, Stop)> {
        let mut places = self.gate.places();
        for (place, thread) in places.iter_mut().zip(&self.threads) {
            place.take_back();
            if let Place::Runs(immediate_exit) = place {
                // The flag covers the time before KVM_RUN, the signal the time inside it.
                immediate_exit.get().store(1, Ordering::Release);
                let sent = thread.kill(SIGRTMIN());
                debug_assert!(sent.is_ok(), "a thread that is not joined can be signalled: {sent:?}");
            }
        }
        let stopping = |places: &mut Vec<Place>| places.iter().any(|place| matches!(place, Place::Runs(_)));
        places = self.gate.stopped.wait_while(places, stopping).unwrap_or_else(PoisonError::into_inner);
        let taken = places.iter_mut().map(|place| match std::mem::replace(place, Place::Parked) {
            Place::Stopped(vcpu, stop) => Some((vcpu, stop)),
            Place::Starting | Place::Run(_) | Place::Runs(_) | Place::Parked | Place::End => None,
        });
        taken.flatten().collect()
    }

    /// Wakes the parked threads with these vCPUs.
    pub(crate) fn resume(&self, vcpus: Vec<VcpuFd>, signals: &Arc<Signals>, devices: &Arc<Devices>) {
        let mut places = self.gate.places();
        for (place, vcpu) in places.iter_mut().zip(vcpus) {
            *place = Place::Run(Work { vcpu, signals: signals.clone(), devices: devices.clone() });
        }
        // Whoever is woken may take this thread's processor at once: it must not hold up the others then.
        drop(places);
        self.gate.opened.notify_all();
    }

    /// In a copy of the process, which has none of the parked threads: nothing is left to end. What the C
    /// library keeps of them, their stacks above all, stays.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop();
        self.gate.places().iter_mut().for_each(|place| *place = Place::End);
        self.gate.opened.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panics ends the process (see `main`).
            thread.join().ok();
        }
    }
}

impl Gate {
    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every thread has come here. One that is still being set up by the library may hold the allocator's
    /// lock, and a copy of the process would wait for it for ever.
    fn wait_for_all(&self) {
        let starting = |places: &mut Vec<Place>| places.iter().any(|place| matches!(place, Place::Starting));
        drop(self.stopped.wait_while(self.places(), starting));
    }

    fn arrive(&self, index: usize) {
        let mut places = self.places();
        if matches!(places[index], Place::Starting) {
            places[index] = Place::Parked;
        }
        drop(places);
        self.stopped.notify_one();
    }

    /// Parks the thread until there is work for it; none means that it is to end.
    fn next_work(&self, index: usize) -> Option<Work> {
        let mut places = self.places();
        loop {
            match std::mem::replace(&mut places[index], Place::Parked) {
                Place::Run(mut work) => {
                    let immediate_exit = ImmediateExit::of(&mut work.vcpu);
                    immediate_exit.get().store(0, Ordering::Release);
                    places[index] = Place::Runs(immediate_exit);
                    return Some(work);
                }
                Place::End => return None,
                place => places[index] = place,
            }
            places = self.opened.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands a vCPU over, with nothing else left in the thread's hands.
    fn hand_over(&self, index: usize, work: Work, stop: Stop) {
        let Work { vcpu, signals, devices } = work;
        drop((signals, devices));
        self.places()[index] = Place::Stopped(vcpu, stop);
        self.stopped.notify_one();
    }
}

/// Runs what the thread is given until it is to end; tells if a vCPU stops by itself.
fn serve(gate: &Gate, index: usize) {
    gate.arrive(index);
    while let Some(mut work) = gate.next_work(index) {
        let stop = run(&mut work);
        if stop != Stop::Asked {
            work.signals.vcpu_ended();
        }
        gate.hand_over(index, work, stop);
    }
}

fn run(work: &mut Work) -> Stop {
    let immediate_exit = ImmediateExit::of(&mut work.vcpu);
    let Work { vcpu, signals, devices } = work;
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

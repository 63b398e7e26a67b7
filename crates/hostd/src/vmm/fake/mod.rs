//! Machines in memory, for tests and for clients' tests on hosts without KVM.
//!
//! They keep the real ones' rules (what may be asked of a running and of a frozen machine, fork,
//! resets, endings) and serve the real guest protocols, with a toy language in place of Python and bash.
//! They prove nothing about time or memory.

mod agent;
mod files;
mod saved;
mod terminals;

use crate::headroom::Disk;
use crate::pool::policy::Memory;
use crate::vmm::{
    BootSpec, Ending, Fork, ForkTimes, GuestStream, LoadSpec, Machine, Pending, SavedFiles, ThawTimes, Vmm,
    VmmError,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use podflare_wire::control::{EndReason, PageRun};
use podflare_wire::files::{Event as FileEvent, FILES_PORT};
use podflare_wire::guest::Inherited;
use podflare_wire::terminal::TERMINAL_PORT;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;

/// Bytes that a stream to a fake guest holds on their way.
const STREAM_LEN: usize = 64 * 1024;

/// Events of files that a watch may be late by.
const FILE_EVENTS_MAX: usize = 64;

/// What a fork of a running machine is said to have cost it.
const PAUSE: Duration = Duration::from_millis(1);

/// What a fake guest reports at a time, in bytes.
const REPORT_LEN: u64 = 64 << 20;

/// Makes fake machines.
#[derive(Debug, Clone, Default)]
pub struct FakeVmm(Arc<World>);

/// What all machines of one [`FakeVmm`] share.
#[derive(Debug, Default)]
struct World {
    alive: watch::Sender<u32>,
    made: AtomicU32,
    newest: Mutex<Weak<Core>>,
    forks_to_die_in: AtomicU32,
    renewal_time_ms: AtomicU32,
    ending_time_ms: AtomicU32,
    renewals_to_refuse: AtomicU32,
    /// Machines whose renewals fail, by their numbers.
    refusing: Mutex<BTreeSet<u32>>,
    boots_to_fail: AtomicU32,
    boots: Mutex<Vec<BootSpec>>,
    boot_time_ms: AtomicU32,
    booting: AtomicU32,
    booting_max: AtomicU32,
    hot_pages: AtomicUsize,
    reports: AtomicU32,
    thaws_to_die_of: AtomicU32,
    renewals_to_stall_after: AtomicU32,
    renewals_to_leave_pending: AtomicU32,
    clocks_set: AtomicU32,
    pauses: AtomicU32,
    refuses_growth: AtomicBool,
    saved: saved::Saved,
    memory: Mutex<Option<Memory>>,
    disk: Mutex<Option<Disk>>,
}

impl FakeVmm {
    /// Machines that have not ended.
    pub fn alive(&self) -> u32 {
        *self.0.alive.borrow()
    }

    /// Machines that were ever made.
    pub fn made(&self) -> u32 {
        self.0.made.load(Ordering::SeqCst)
    }

    /// How often a renewed guest was told the time once more.
    pub fn clocks_set(&self) -> u32 {
        self.0.clocks_set.load(Ordering::SeqCst)
    }

    /// How often a running machine was brought to a stand to be copied.
    pub fn pauses(&self) -> u32 {
        self.0.pauses.load(Ordering::SeqCst)
    }

    /// What was ever booted.
    pub fn boots(&self) -> Vec<BootSpec> {
        lock(&self.0.boots).clone()
    }

    /// The most machines that were ever booting at once.
    pub fn booting_max(&self) -> u32 {
        self.0.booting_max.load(Ordering::SeqCst)
    }

    /// The next so many machines end when they are to be forked.
    pub fn die_in_forks(&self, count: u32) {
        self.0.forks_to_die_in.store(count, Ordering::SeqCst);
    }

    /// Ends the machine that was made last.
    pub fn kill_newest(&self) {
        if let Some(core) = lock(&self.0.newest).upgrade() {
            core.end(Ending::Killed { signal: 9 });
        }
    }

    /// Runs of pages that a frozen machine was last told to bring in.
    pub fn hot_pages(&self) -> usize {
        self.0.hot_pages.load(Ordering::SeqCst)
    }

    /// From now on machines boot with guests that report free memory, as often as this. Before, they do not report.
    pub fn report(&self, times: u32) {
        self.0.reports.store(times, Ordering::SeqCst);
    }

    /// From now on every renewal takes so long.
    pub fn set_renewal_time(&self, time: Duration) {
        store_ms(&self.0.renewal_time_ms, time);
    }

    /// From now on every boot takes so long.
    pub fn set_boot_time(&self, time: Duration) {
        store_ms(&self.0.boot_time_ms, time);
    }

    /// From now on something is left of every machine for so long after its end.
    pub fn set_ending_time(&self, time: Duration) {
        store_ms(&self.0.ending_time_ms, time);
    }

    /// The next so many renewals fail.
    pub fn refuse_renewals(&self, count: u32) {
        self.0.renewals_to_refuse.store(count, Ordering::SeqCst);
    }

    /// The renewal of the `nth` machine that is made from now on fails. A fork makes its twin first.
    pub fn refuse_renewal_of(&self, nth: u32) {
        lock(&self.0.refusing).insert(self.made() + nth);
    }

    /// The next so many machines end while they boot.
    pub fn fail_boots(&self, count: u32) {
        self.0.boots_to_fail.store(count, Ordering::SeqCst);
    }

    /// The next so many machines end as soon as they run.
    pub fn die_of_thaws(&self, count: u32) {
        self.0.thaws_to_die_of.store(count, Ordering::SeqCst);
    }

    /// The REPLs of the next so many renewed guests are too busy to be renewed with them.
    pub fn leave_renewals_pending(&self, count: u32) {
        self.0.renewals_to_leave_pending.store(count, Ordering::SeqCst);
    }

    /// From now on no guest's file system grows.
    pub fn refuse_growth(&self) {
        self.0.refuses_growth.store(true, Ordering::SeqCst);
    }

    /// From now on machines take so long to save.
    pub fn set_saving_time(&self, time: Duration) {
        store_ms(&self.0.saved.time_ms, time);
    }

    /// The next so many machines that are to be saved find the disk full.
    pub fn fill_disk_in_saves(&self, count: u32) {
        self.0.saved.saves_to_fail.store(count, Ordering::SeqCst);
    }

    /// From now on the host has so much memory. Before, nobody knows how much.
    pub fn set_memory(&self, memory: Memory) {
        *lock(&self.0.memory) = Some(memory);
    }

    /// From now on the host has so much disk. Before, nobody knows how much.
    pub fn set_disk(&self, disk: Disk) {
        *lock(&self.0.disk) = Some(disk);
    }

    /// The next so many guests stand still as soon as they are renewed.
    pub fn stall_after_renewals(&self, count: u32) {
        self.0.renewals_to_stall_after.store(count, Ordering::SeqCst);
    }
}

fn store_ms(place: &AtomicU32, time: Duration) {
    place.store(u32::try_from(time.as_millis()).unwrap_or(u32::MAX), Ordering::SeqCst);
}

/// Takes as long as was stored there.
async fn take_time(place: &AtomicU32) {
    let time_ms = place.load(Ordering::SeqCst);
    if time_ms > 0 {
        tokio::time::sleep(Duration::from_millis(time_ms.into())).await;
    }
}

impl World {
    /// One that has just booted.
    fn guest(&self) -> Guest {
        let reports_left = self.reports.load(Ordering::SeqCst);
        Guest { reports_left, reported_bytes: (reports_left > 0).then_some(0), ..Guest::default() }
    }

    /// Takes one of a counted fault.
    fn takes(fault: &AtomicU32) -> bool {
        fault.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
    }
}

impl Vmm for FakeVmm {
    fn boot(&self, boot: &BootSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError> {
        lock(&self.0.boots).push(boot.clone());
        let guest = Guest { vcpus: boot.config.vcpus, memory_mib: boot.config.memory_mib, ..self.0.guest() };
        let machine = FakeMachine::new(self.0.clone(), State::Running, guest);
        if World::takes(&self.0.boots_to_fail) {
            machine.core.end(Ending::Told {
                reason: EndReason::Reset,
                console_tail: b"Kernel panic - not syncing: no root disk".to_vec(),
            });
        }
        let booting = Booting::new(self.0.clone());
        let booted = async move {
            take_time(&booting.0.boot_time_ms).await;
            Ok(())
        };
        Ok((Arc::new(machine), booted.boxed()))
    }

    fn load(&self, load: &LoadSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError> {
        let loaded = self.0.saved.find(&load.files);
        let guest = loaded.as_ref().map_or_else(|_| Guest::default(), Clone::clone);
        let machine = FakeMachine::new(self.0.clone(), State::Frozen, guest);
        Ok((Arc::new(machine), ready(loaded.map(drop)).boxed()))
    }

    fn memory(&self) -> Option<Memory> {
        *lock(&self.0.memory)
    }

    fn disk(&self) -> Option<Disk> {
        *lock(&self.0.disk)
    }

    fn none_left(&self) -> BoxFuture<'static, ()> {
        let mut alive = self.0.alive.subscribe();
        async move {
            alive.wait_for(|alive| *alive == 0).await.ok();
        }
        .boxed()
    }
}

/// A boot, until it is over or given up.
struct Booting(Arc<World>);

impl Booting {
    fn new(world: Arc<World>) -> Booting {
        let booting = world.booting.fetch_add(1, Ordering::SeqCst) + 1;
        world.booting_max.fetch_max(booting, Ordering::SeqCst);
        Booting(world)
    }
}

impl Drop for Booting {
    fn drop(&mut self) {
        self.0.booting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct FakeMachine {
    core: Arc<Core>,
}

/// A machine as its own guest sees it, too.
#[derive(Debug)]
struct Core {
    world: Arc<World>,
    /// How many machines there had been when it was made, itself included.
    number: u32,
    state: watch::Sender<State>,
    guest: Mutex<Guest>,
    file_events: broadcast::Sender<FileEvent>,
    connections: Mutex<Vec<AbortHandle>>,
    /// Something has changed at a terminal.
    typed: watch::Sender<()>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Running,
    Frozen,
    Ended(Arc<Ending>),
}

/// What is copied with a machine.
#[derive(Debug, Clone, Default)]
struct Guest {
    vcpus: u8,
    memory_mib: u32,
    /// How often code has tried something that does not succeed at once.
    attempts: u32,
    variables: BTreeMap<String, String>,
    files: files::Files,
    /// Of a disk that has grown; its file system has as many when it was told to.
    disk_bytes: u64,
    file_system_bytes: u64,
    hostname: String,
    entropy: Vec<u8>,
    running: Option<Inherited>,
    terminals: Vec<terminals::Fake>,
    stands_still: bool,
    records: bool,
    reported_bytes: Option<u64>,
    /// One of them is made each time that somebody asks a running machine.
    reports_left: u32,
}

impl Guest {
    fn size(&self) -> String {
        format!("{} MiB, {} vCPUs\n", self.memory_mib, self.vcpus)
    }

    fn attempt(&mut self) -> u32 {
        self.attempts += 1;
        self.attempts
    }
}

async fn stand_still_if_so(core: &Core) {
    if core.guest().stands_still {
        std::future::pending::<()>().await;
    }
}

impl FakeMachine {
    fn new(world: Arc<World>, state: State, guest: Guest) -> FakeMachine {
        world.alive.send_modify(|alive| *alive += 1);
        let number = world.made.fetch_add(1, Ordering::SeqCst) + 1;
        let core = Core {
            world,
            number,
            state: watch::Sender::new(state),
            guest: Mutex::new(guest),
            file_events: broadcast::Sender::new(FILE_EVENTS_MAX),
            connections: Mutex::default(),
            typed: watch::Sender::new(()),
        };
        let core = Arc::new(core);
        *lock(&core.world.newest) = Arc::downgrade(&core);
        FakeMachine { core }
    }
}

impl Core {
    /// Moves between the two living states, or refuses.
    fn change(&self, from: &State, to: State) -> Result<(), VmmError> {
        let mut result = Ok(());
        self.state.send_if_modified(|state| {
            if state == from {
                *state = to;
                return true;
            }
            result = match state {
                State::Ended(_) => Err(VmmError::Ended),
                other => Err(VmmError::Refused { reason: format!("the machine is {other:?}") }),
            };
            false
        });
        result
    }

    fn end(&self, ending: Ending) {
        let ended = self.state.send_if_modified(|state| {
            let lives = !matches!(state, State::Ended(_));
            if lives {
                *state = State::Ended(Arc::new(ending));
            }
            lives
        });
        if ended {
            self.world.alive.send_modify(|alive| *alive -= 1);
            self.cut_connections();
        }
    }

    /// Whether it is one whose renewal is to fail.
    fn refuses_renewal(&self) -> bool {
        lock(&self.world.refusing).contains(&self.number) || World::takes(&self.world.renewals_to_refuse)
    }

    fn cut_connections(&self) {
        for connection in lock(&self.connections).drain(..) {
            connection.abort();
        }
    }

    fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        lock(&self.guest)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine for FakeMachine {
    fn fork(&self) -> Result<Fork, VmmError> {
        if World::takes(&self.core.world.forks_to_die_in) {
            self.core.end(Ending::Killed { signal: 9 });
        }
        if self.core.has_ended() {
            return Err(VmmError::Ended);
        }
        let guest = self.core.guest().clone();
        let copy = FakeMachine::new(self.core.world.clone(), State::Frozen, guest);
        let runs = *self.core.state.borrow() == State::Running;
        let pause = if runs { PAUSE } else { Duration::ZERO };
        self.core.world.pauses.fetch_add(u32::from(runs), Ordering::SeqCst);
        let times = ForkTimes { pause, ..ForkTimes::default() };
        Ok(Fork { copy: Arc::new(copy), done: ready(Ok(times)).boxed() })
    }

    fn thaw(&self, _: Option<BorrowedFd<'_>>) -> Pending<ThawTimes> {
        let thawed = self.core.change(&State::Frozen, State::Running).map(|()| ThawTimes::default());
        if thawed.is_ok() && World::takes(&self.core.world.thaws_to_die_of) {
            self.core.end(Ending::Told { reason: EndReason::Reset, console_tail: Vec::new() });
        }
        ready(thawed).boxed()
    }

    fn thaw_recording(&self) -> Pending<ThawTimes> {
        let thawed = self.thaw(None);
        self.core.guest().records = true;
        thawed
    }

    fn hot_pages(&self) -> Pending<Vec<PageRun>> {
        let records = self.core.guest().records;
        let pages = vec![PageRun { first: 1, count: 1, written: true }];
        let reason = || VmmError::Refused { reason: "the machine does not record".to_owned() };
        ready(if records { Ok(pages) } else { Err(reason()) }).boxed()
    }

    fn set_hot_pages(&self, pages: Vec<PageRun>) -> Pending<()> {
        self.core.world.hot_pages.store(pages.len(), Ordering::SeqCst);
        ready(Ok(())).boxed()
    }

    fn reported_bytes(&self) -> Pending<Option<u64>> {
        if self.core.has_ended() {
            return ready(Err(VmmError::Ended)).boxed();
        }
        let mut guest = self.core.guest();
        if *self.core.state.borrow() == State::Running && guest.reports_left > 0 {
            guest.reports_left -= 1;
            guest.reported_bytes = guest.reported_bytes.map(|bytes| bytes + REPORT_LEN);
        }
        ready(Ok(guest.reported_bytes)).boxed()
    }

    fn grow_disk(&self, bytes: u64) -> Pending<()> {
        let grown = match *self.core.state.borrow() {
            State::Running => Ok(()),
            State::Frozen => Err(VmmError::Refused { reason: "the machine is frozen".to_owned() }),
            State::Ended(_) => Err(VmmError::Ended),
        };
        if grown.is_ok() {
            self.core.guest().disk_bytes = bytes;
        }
        ready(grown).boxed()
    }

    fn freeze(&self) -> Pending<()> {
        let frozen = self.core.change(&State::Running, State::Frozen);
        if frozen.is_ok() {
            self.core.cut_connections();
        }
        ready(frozen).boxed()
    }

    fn save(&self, files: &SavedFiles, base: Option<&SavedFiles>) -> Pending<()> {
        let core = self.core.clone();
        let saved = match *core.state.borrow() {
            State::Frozen => core.world.saved.keep(files, base, core.guest().clone()),
            State::Running => Err(VmmError::Refused { reason: "the machine runs".to_owned() }),
            State::Ended(_) => Err(VmmError::Ended),
        };
        async move {
            take_time(&core.world.saved.time_ms).await;
            saved
        }
        .boxed()
    }

    fn overlay(&self, files: &SavedFiles) -> Pending<()> {
        let found = self.core.world.saved.find(files).map(|guest| *self.core.guest() = guest);
        ready(found).boxed()
    }

    fn connect(&self, port: u32) -> Result<Box<dyn GuestStream>, VmmError> {
        if self.core.has_ended() {
            return Err(VmmError::Ended);
        }
        let (ours, theirs) = tokio::io::duplex(STREAM_LEN);
        let core = self.core.clone();
        let connection = tokio::spawn(async move {
            let mut state = core.state.subscribe();
            if state.wait_for(|state| *state == State::Running).await.is_ok() {
                match port {
                    FILES_PORT => files::serve(theirs, &core).await,
                    TERMINAL_PORT => terminals::serve(theirs, &core).await,
                    _ => agent::serve(theirs, &core).await,
                }
            }
        });
        lock(&self.core.connections).push(connection.abort_handle());
        Ok(Box::new(ours))
    }

    fn console_tail(&self) -> Pending<Vec<u8>> {
        ready(Ok(b"fake console\n".to_vec())).boxed()
    }

    fn ended(&self) -> BoxFuture<'static, Arc<Ending>> {
        let mut state = self.core.state.subscribe();
        async move {
            match state.wait_for(|state| matches!(state, State::Ended(_))).await.as_deref() {
                Ok(State::Ended(ending)) => ending.clone(),
                _ => Arc::new(Ending::AskedFor),
            }
        }
        .boxed()
    }

    fn end(&self) -> BoxFuture<'static, ()> {
        self.core.end(Ending::AskedFor);
        let world = self.core.world.clone();
        async move { take_time(&world.ending_time_ms).await }.boxed()
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.core.end(Ending::AskedFor);
    }
}

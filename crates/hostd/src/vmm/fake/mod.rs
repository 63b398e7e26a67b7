//! Machines in memory, for tests and for clients' tests on hosts without KVM.
//!
//! They keep the real ones' rules (what may be asked of a running and of a frozen machine, fork,
//! resets, endings) and serve the real guest protocol, with a toy language in place of Python and bash.
//! They prove nothing about time or memory.

mod agent;

use crate::vmm::{
    BootSpec, Ending, Fork, ForkTimes, GuestStream, Machine, Pending, ThawTimes, Vmm, VmmError,
};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use podflare_wire::control::EndReason;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Bytes that a stream to a fake guest holds on their way.
const STREAM_LEN: usize = 64 * 1024;

/// Makes fake machines.
#[derive(Debug, Clone, Default)]
pub struct FakeVmm(Arc<World>);

/// What all machines of one [`FakeVmm`] share.
#[derive(Debug, Default)]
struct World {
    alive: AtomicU32,
    renewals_to_refuse: AtomicU32,
    boots_to_fail: AtomicU32,
    thaws_to_die_of: AtomicU32,
}

impl FakeVmm {
    /// Machines that have not ended.
    pub fn alive(&self) -> u32 {
        self.0.alive.load(Ordering::SeqCst)
    }

    /// The next so many renewals fail.
    pub fn refuse_renewals(&self, count: u32) {
        self.0.renewals_to_refuse.store(count, Ordering::SeqCst);
    }

    /// The next so many machines end while they boot.
    pub fn fail_boots(&self, count: u32) {
        self.0.boots_to_fail.store(count, Ordering::SeqCst);
    }

    /// The next so many machines end as soon as they run.
    pub fn die_of_thaws(&self, count: u32) {
        self.0.thaws_to_die_of.store(count, Ordering::SeqCst);
    }
}

impl World {
    /// Takes one of a counted fault.
    fn takes(fault: &AtomicU32) -> bool {
        fault.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
    }
}

impl Vmm for FakeVmm {
    fn boot(&self, _boot: &BootSpec) -> Result<(Arc<dyn Machine>, Pending<()>), VmmError> {
        let machine = FakeMachine::new(self.0.clone(), State::Running, Guest::default());
        if World::takes(&self.0.boots_to_fail) {
            machine.core.end(Ending::Told {
                reason: EndReason::Reset,
                console_tail: b"Kernel panic - not syncing: no root disk".to_vec(),
            });
        }
        Ok((Arc::new(machine), ready(Ok(())).boxed()))
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
    state: watch::Sender<State>,
    guest: Mutex<Guest>,
    connections: Mutex<Vec<AbortHandle>>,
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
    variables: BTreeMap<String, String>,
    hostname: String,
    entropy: Vec<u8>,
}

impl FakeMachine {
    fn new(world: Arc<World>, state: State, guest: Guest) -> FakeMachine {
        world.alive.fetch_add(1, Ordering::SeqCst);
        let core = Core {
            world,
            state: watch::Sender::new(state),
            guest: Mutex::new(guest),
            connections: Mutex::default(),
        };
        FakeMachine { core: Arc::new(core) }
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
            self.world.alive.fetch_sub(1, Ordering::SeqCst);
            self.cut_connections();
        }
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
        if self.core.has_ended() {
            return Err(VmmError::Ended);
        }
        let guest = self.core.guest().clone();
        let copy = FakeMachine::new(self.core.world.clone(), State::Frozen, guest);
        Ok(Fork { copy: Arc::new(copy), done: ready(Ok(ForkTimes::default())).boxed() })
    }

    fn thaw(&self) -> Pending<ThawTimes> {
        let thawed = self.core.change(&State::Frozen, State::Running).map(|()| ThawTimes::default());
        if thawed.is_ok() && World::takes(&self.core.world.thaws_to_die_of) {
            self.core.end(Ending::Told { reason: EndReason::Reset, console_tail: Vec::new() });
        }
        ready(thawed).boxed()
    }

    fn freeze(&self) -> Pending<()> {
        let frozen = self.core.change(&State::Running, State::Frozen);
        if frozen.is_ok() {
            self.core.cut_connections();
        }
        ready(frozen).boxed()
    }

    fn connect(&self, _port: u32) -> Result<Box<dyn GuestStream>, VmmError> {
        if self.core.has_ended() {
            return Err(VmmError::Ended);
        }
        let (ours, theirs) = tokio::io::duplex(STREAM_LEN);
        let core = self.core.clone();
        let connection = tokio::spawn(async move {
            let mut state = core.state.subscribe();
            if state.wait_for(|state| *state == State::Running).await.is_ok() {
                agent::serve(theirs, &core).await;
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
        ready(()).boxed()
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.core.end(Ending::AskedFor);
    }
}

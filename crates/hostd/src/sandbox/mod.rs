//! A sandbox: one machine, its guest's agent, and whatever runs in it.
//!
//! ```text
//!   fork of a template          claim                       end
//!  ────────────────────▶ pooled ─────▶ leased ──────────────────────▶ ended
//!   fork of a sandbox or a checkpoint,   ▲        deleted, idle, too old, frozen, replaced by a merge
//!   or of a Space                        │        or a restore, machine or agent lost, shutdown
//!  ──────────────────────────────────────┘
//! ```
//!
//! One task ([`task`]) owns the agent's stream, the executions and the lease; nobody else changes them.
//! [`Sandbox`] is the handle that others hold. It names no id of its own in its state machine: ids belong
//! to the [`registry`], which may give a machine another one (`merge_into`, `restore`). A [`checkpoint`] is a
//! frozen machine that is kept, with a task of its own.

pub mod admission;
pub mod agent;
pub mod call;
pub mod checkpoint;
pub mod copies;
pub mod create;
pub mod events;
pub mod execs;
pub mod execution;
pub mod extend;
pub mod files;
pub mod fork;
pub mod grow;
pub mod lines;
pub mod merge;
pub mod network;
pub mod ping;
pub mod pulse;
pub mod reconnect;
pub mod registry;
pub mod replay;
pub mod restore;
pub mod state;
pub mod task;
pub mod terminal;

use crate::network::egress::Egress;
use crate::network::{Interface, NetworkError};
use crate::slots::Slots;
use crate::space::base::Origin;
use crate::space::freeze::Wish;
use crate::template::Shape;
use crate::tenant::Tenant;
use crate::usage::meter::{Meter, Reading, Used};
use crate::vmm::Machine;
use bytes::Bytes;
use call::Call;
use copies::OwnCopy;
use execution::{Chunk, Place, Taken};
use podflare_api::exec::ExecView;
use podflare_api::id::{self, CheckpointId, SandboxId, SpaceId};
use podflare_api::sandbox::{SandboxState, SandboxView};
use podflare_wire::files::OPERATIONS_MAX;
use podflare_wire::guest::ExecId;
use podflare_wire::limits::{CODE_LEN_MAX, EXECS_MAX, TERMINAL_CONNECTIONS_MAX};
use replay::Replay;
use state::{EndCause, Terms};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use task::{Command, Task};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Bytes of code, and of all that goes with it, that may wait in one sandbox.
const CODE_QUEUED_LEN_MAX: usize = 2 * CODE_LEN_MAX;

/// A handle to a sandbox, which may have ended.
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Shared>);

/// What a sandbox comes from.
#[derive(Debug, Clone)]
pub struct Lineage {
    pub shape: Arc<Shape>,
    pub origin: Arc<Origin>,
    /// The Space that it was resumed from, if that is gone with it.
    pub space: Option<SpaceId>,
    pub parent: Option<SandboxId>,
    /// What its machine is a copy of, if that is not the parent's machine or the template.
    pub checkpoint: Option<CheckpointId>,
    /// Forks between the template and its machine.
    pub generation: u32,
}

/// Who a sandbox is for its clients. A merge or a restore gives it to another machine.
#[derive(Debug, Clone)]
pub struct Identity {
    pub id: SandboxId,
    pub parent: Option<SandboxId>,
    pub created_at_ms: u64,
    pub terms: Terms,
    pub started: Instant,
    /// Whose it is.
    pub tenant: Tenant,
}

#[derive(Debug)]
struct Shared {
    machine: Arc<dyn Machine>,
    /// Its machine's place in the network; none on a host without.
    interface: Option<Interface>,
    egress_turn: Arc<tokio::sync::Mutex<()>>,
    /// A plain mutex, as those below.
    meter: Mutex<Meter>,
    /// Unbounded, but what is sent is not: executions need a place, and all else is a few words.
    commands: mpsc::UnboundedSender<Command>,
    /// Plain mutexes: both are held for a few instructions, never across an await.
    replay: Mutex<Replay>,
    identity: Mutex<Identity>,
    lineage: Lineage,
    /// What it has instead of its lineage's shape, if its disk has grown.
    grown: OnceLock<Arc<Shape>>,
    forked_at_ms: u64,
    /// Known before `commands` is closed.
    end_cause: OnceLock<EndCause>,
    /// Whether everything in the guest that must not be as in its source has been made its own.
    renewed: AtomicBool,
    executions: AtomicU32,
    /// Somebody has asked for it to be frozen.
    freezing: AtomicBool,
    places: Arc<Semaphore>,
    code_room: Arc<Semaphore>,
    file_places: Arc<Semaphore>,
    terminal_places: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error(transparent)]
    Call(#[from] call::CallError),
    #[error(
        "Too many executions wait in this sandbox; the most is {EXECS_MAX}, or {CODE_QUEUED_LEN_MAX} bytes of code and input"
    )]
    Full,
    #[error(transparent)]
    Find(#[from] registry::FindError),
}

/// What became of a call.
#[derive(Debug)]
pub enum Begun {
    Reading(Reader),
    /// The sandbox has ended.
    Ended(Box<Call>),
}

/// A started execution's events, and what its reader owes.
#[derive(Debug)]
pub struct Reader {
    pub events: mpsc::UnboundedReceiver<Chunk>,
    pub id: id::ExecId,
    exec: ExecId,
    commands: mpsc::UnboundedSender<Command>,
    finished: bool,
    _place: Place,
}

impl Sandbox {
    /// A sandbox over a machine that is its own, and the task that must be run for it.
    pub fn new(
        copy: OwnCopy,
        identity: Identity,
        lineage: Lineage,
        wishes: mpsc::UnboundedSender<Wish>,
    ) -> (Sandbox, Task) {
        let OwnCopy { machine, agent, interface, forked_at_ms, .. } = copy;
        let (commands, receiver) = mpsc::unbounded_channel();
        let sandbox = Sandbox(Arc::new(Shared {
            machine,
            interface,
            egress_turn: Arc::default(),
            meter: Mutex::default(),
            commands,
            replay: Mutex::default(),
            identity: Mutex::new(identity),
            lineage,
            grown: OnceLock::new(),
            forked_at_ms,
            end_cause: OnceLock::new(),
            renewed: AtomicBool::new(agent.is_renewed()),
            executions: AtomicU32::new(0),
            freezing: AtomicBool::new(false),
            places: Arc::new(Semaphore::new(EXECS_MAX)),
            code_room: Arc::new(Semaphore::new(CODE_QUEUED_LEN_MAX)),
            file_places: Arc::new(Semaphore::new(OPERATIONS_MAX)),
            terminal_places: Arc::new(Semaphore::new(TERMINAL_CONNECTIONS_MAX)),
        }));
        let task = Task::new(sandbox.clone(), agent, receiver, wishes);
        (sandbox, task)
    }

    /// Starts the sandbox's lease; before, it waits in a pool. `slot` is its part of the host, and makes it its tenant's.
    pub fn lease(&self, terms: Terms, started: Instant, created_at_ms: u64, slot: Slots) {
        {
            let mut identity = self.identity();
            identity.terms = terms;
            identity.started = started;
            identity.created_at_ms = created_at_ms;
            identity.tenant = slot.tenant().clone();
            drop(identity);
            self.meter().start(Instant::now());
        }
        self.tell(Command::Lease { terms, started, slot });
    }

    /// What has been used of it since the last time; `None` if it is nobody's yet.
    pub fn read_meter(&self) -> Option<Used> {
        self.meter().read(Reading {
            now: Instant::now(),
            ram_mib: self.shape().memory_mib,
            executions: self.0.executions.load(Ordering::Relaxed),
        })
    }

    pub fn meter(&self) -> MutexGuard<'_, Meter> {
        self.0.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes its lease's terms, from its start on.
    pub fn set_terms(&self, terms: Terms) {
        let started = {
            let mut identity = self.identity();
            identity.terms = terms;
            identity.started
        };
        self.tell(Command::TakeOver { terms, started });
    }

    /// Runs code, or gives it back if the sandbox has ended.
    pub fn exec(&self, call: Box<Call>) -> Result<Begun, ExecError> {
        let len = u32::try_from(call.queued_len()).unwrap_or(u32::MAX);
        let shared = &self.0;
        let (Ok(place), Ok(room)) =
            (shared.places.clone().try_acquire_owned(), shared.code_room.clone().try_acquire_many_owned(len))
        else {
            return Err(ExecError::Full);
        };
        let exec = ExecId(shared.executions.fetch_add(1, Ordering::Relaxed));
        let (sender, events) = mpsc::unbounded_channel();
        let place = Arc::new(place);
        let order = call.order();
        let id = order.id.clone();
        let execution = execution::Execution::new(exec, order, Some(sender), place.clone(), room);
        match shared.commands.send(Command::Exec { execution, call }) {
            Err(SendError(Command::Exec { call, .. })) => Ok(Begun::Ended(call)),
            // Nothing else comes back than what was sent.
            Ok(()) | Err(SendError(_)) => {
                let commands = shared.commands.clone();
                Ok(Begun::Reading(Reader { events, id, exec, commands, finished: false, _place: place }))
            }
        }
    }

    /// What runs or waits, in the order of the requests; `None` if the sandbox has ended.
    pub async fn execs(&self) -> Option<Vec<ExecView>> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::List { answer });
        answered.await.ok()
    }

    /// Cancels an execution, unless it is over.
    pub fn cancel(&self, exec: id::ExecId) {
        self.tell(Command::Cancel { exec });
    }

    /// Asks the guest's agent for an answer; `None` if the sandbox has ended.
    pub async fn ping(&self) -> Option<Result<(), ping::PingError>> {
        let (answer, answered) = oneshot::channel();
        self.tell(Command::Ping { answer });
        answered.await.ok()
    }

    /// Ends the sandbox; the answer does not wait for it.
    pub fn end(&self, cause: EndCause) {
        self.tell(Command::End(cause));
    }

    /// Takes no more executions for as long as it is held; `None` if somebody freezes it already.
    pub fn begin_freeze(&self) -> Option<Freezing> {
        let is_free = !self.0.freezing.swap(true, Ordering::Relaxed);
        is_free.then(|| {
            self.tell(Command::FreezeBegun);
            Freezing(self.clone())
        })
    }

    /// Ends the sandbox, which goes on as a Space; unless it has ended, or has been used since.
    pub async fn end_frozen(&self, space: SpaceId, unused_since: Option<tokio::time::Instant>) -> bool {
        let (answer, answered) = oneshot::channel();
        let unused_since = unused_since.map(tokio::time::Instant::into_std);
        self.tell(Command::Frozen { space, unused_since, answer });
        answered.await.unwrap_or(false)
    }

    /// It could not be frozen, as its time was over.
    pub fn not_frozen(&self) {
        self.tell(Command::NotFrozen);
    }

    /// Keeps the sandbox from idling for as long as it is held.
    pub fn begin_use(&self) -> InUse {
        self.tell(Command::UseBegun);
        InUse(self.clone())
    }

    /// Keeps the sandbox from idling, and asks its guest whether it lives, for as long as somebody is at one of its
    /// terminals.
    pub fn attach(&self) -> Attached {
        self.tell(Command::Attached);
        Attached(self.clone())
    }

    /// A place among the sandbox's file operations, unless all are taken.
    pub fn file_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.file_places.clone().try_acquire_owned().ok()
    }

    /// A place among the clients at the sandbox's terminals, unless all are taken.
    pub fn terminal_place(&self) -> Option<OwnedSemaphorePermit> {
        self.0.terminal_places.clone().try_acquire_owned().ok()
    }

    /// Lives on under another sandbox's identity.
    pub fn take_over(&self, identity: Identity) {
        let (terms, started) = (identity.terms, identity.started);
        *self.identity() = identity;
        self.tell(Command::TakeOver { terms, started });
    }

    pub fn has_ended(&self) -> bool {
        self.0.commands.is_closed()
    }

    /// Resolves when the sandbox has ended.
    pub async fn ended(&self) {
        self.0.commands.closed().await;
    }

    pub fn end_cause(&self) -> Option<&EndCause> {
        self.0.end_cause.get()
    }

    pub fn machine(&self) -> &Arc<dyn Machine> {
        &self.0.machine
    }

    pub fn interface(&self) -> Option<&Interface> {
        self.0.interface.as_ref()
    }

    /// What it may reach: nothing on a host without a network.
    pub fn egress(&self) -> Egress {
        self.interface().map_or(Egress::Off, Interface::egress)
    }

    /// Holds for every packet from the answer on. On a host without a network nothing is reached in any case.
    pub async fn set_egress(&self, egress: &Egress) -> Result<(), NetworkError> {
        match self.interface() {
            Some(interface) => interface.set_egress(egress).await,
            None => Ok(()),
        }
    }

    /// Held while what it may reach is changed or handed over: no change is lost between the two.
    pub(super) fn egress_turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.0.egress_turn.clone()
    }

    pub fn identity(&self) -> MutexGuard<'_, Identity> {
        self.0.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn tenant(&self) -> Tenant {
        self.identity().tenant.clone()
    }

    /// What its machine is made of.
    pub fn shape(&self) -> &Arc<Shape> {
        self.0.grown.get().unwrap_or(&self.0.lineage.shape)
    }

    /// Its disk has grown, which happens once, before it is handed out.
    fn set_disk_gib(&self, disk_gib: u32) {
        let grown = Shape { disk_gib, ..Shape::clone(&self.0.lineage.shape) };
        self.0.grown.set(Arc::new(grown)).ok();
    }

    pub fn lineage(&self) -> &Lineage {
        &self.0.lineage
    }

    /// The most recent events, oldest first.
    pub fn replay(&self) -> Vec<Bytes> {
        self.replay_mut().events()
    }

    pub fn view(&self) -> SandboxView {
        let identity = self.identity().clone();
        let Lineage { checkpoint, generation, .. } = &self.0.lineage;
        let shape = self.shape();
        SandboxView {
            id: identity.id,
            state: SandboxState::Ready,
            template: shape.template.clone(),
            ram_mib: shape.memory_mib,
            rootfs_gb: shape.disk_gib,
            vcpus: shape.vcpus,
            created_at_ms: identity.created_at_ms,
            parent: identity.parent,
            checkpoint: checkpoint.clone(),
            generation: *generation,
            forked_at_ms: self.0.forked_at_ms,
            renewed: self.0.renewed.load(Ordering::Relaxed),
            executions: u64::from(self.0.executions.load(Ordering::Relaxed)),
            timeout_seconds: identity.terms.life.as_secs(),
            idle_timeout_seconds: identity.terms.idle.as_secs(),
            persistent: identity.terms.persistent,
            egress: self.egress().view(),
        }
    }

    pub fn is(&self, other: &Sandbox) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn set_renewed(&self, renewed: bool) {
        self.0.renewed.store(renewed, Ordering::Relaxed);
    }

    fn replay_mut(&self) -> MutexGuard<'_, Replay> {
        self.0.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox that has ended need not be told.
    fn tell(&self, command: Command) {
        self.0.commands.send(command).ok();
    }
}

/// A freeze that somebody has asked for, under way.
#[derive(Debug)]
pub struct Freezing(Sandbox);

impl Drop for Freezing {
    fn drop(&mut self) {
        self.0.0.freezing.store(false, Ordering::Relaxed);
        self.0.tell(Command::FreezeEnded);
    }
}

/// A fork or a file operation under way.
#[derive(Debug)]
pub struct InUse(Sandbox);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.tell(Command::UseEnded);
    }
}

/// Somebody at a terminal.
#[derive(Debug)]
pub struct Attached(Sandbox);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.tell(Command::Detached);
    }
}

impl Reader {
    /// Reports what has been taken, so that the execution may send more.
    pub fn report(&self, taken: Taken) {
        self.commands.send(Command::Taken { exec: self.exec, taken }).ok();
    }

    /// All events have been taken.
    pub fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.finished {
            self.commands.send(Command::ReaderGone { exec: self.exec }).ok();
        }
    }
}

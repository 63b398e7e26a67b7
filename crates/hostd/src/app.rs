//! Every long-lived part of the daemon, wired in one place, and its life from start to shutdown.

use crate::config::Settings;
use crate::headroom::Headroom;
use crate::http;
use crate::http::limits::{FOLLOWERS_MAX, LONG_BODIES_MAX, TERMINAL_CLIENTS_MAX};
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::network::egress::Egress;
use crate::pool;
use crate::pool::activity::Activity;
use crate::pool::policy::Memory;
use crate::records::Records;
use crate::sandbox::admission::Admission;
use crate::sandbox::agent::GuestIdentity;
use crate::sandbox::copies::{self, CopyError, CopyTimes, Limits, Means, OwnCopy};
use crate::sandbox::registry::Registry;
use crate::sandbox::state::EndCause;
use crate::sandbox::{Identity, Lineage, Sandbox};
use crate::slots::Room;
use crate::space::{self, Spaces};
use crate::template::boot::{self, BootError};
use crate::template::kept::Ingredients;
use crate::template::shelf::Shelf;
use crate::template::variant::Variant;
use crate::template::{DEFAULT, Template, folder, keep};
use crate::tenant::{Keys, Tenant};
use crate::traces::Traces;
use crate::usage::Usage;
use crate::vmm::{Machine, Vmm};
use crate::webhook::Webhooks;
use podflare_api::event::Happening;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout};

/// Machines that are ended at once, for each processor. Ending one costs CPU time that running ones would miss.
const ENDINGS_PER_PROCESSOR: usize = 1;

/// Sandboxes that are written to the disk at once, for each processor. The writing is comparing and hashing, mostly.
const FREEZES_PER_PROCESSOR: usize = 1;

/// How long a machine that nobody needs any more may wait for a moment in which its end disturbs nobody.
const ENDING_PATIENCE: Duration = Duration::from_secs(2);

/// How long the network's upkeep may wait for such a moment.
const NETWORK_PATIENCE: Duration = Duration::from_secs(2);

/// How long one of them may hold up the next.
const ENDING_TURN: Duration = Duration::from_secs(5);

/// How long shutdown waits for machines, and then for clients to take their last events. Machines that
/// are left end when hostd's side of their channels does.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct App {
    pub settings: Settings,
    pub registry: Registry,
    pub templates: Shelf,
    /// What somebody waits for, creates included.
    pub activity: Activity,
    pub admission: Admission,
    pub network: Network,
    pub keys: Keys,
    pub journal: Arc<Journal>,
    pub webhooks: Arc<Webhooks>,
    pub usage: Usage,
    pub metrics: Metrics,
    pub traces: Traces,
    pub room: Room,
    pub spaces: Arc<Spaces>,
    /// One permit for each sandbox that is being written to the disk.
    pub(crate) freezes: Semaphore,
    /// One permit for each client that may follow the events.
    pub followers: Arc<Semaphore>,
    /// One permit for each client that may be attached to a terminal or wait for its output.
    pub terminal_clients: Arc<Semaphore>,
    /// One permit for each long request body that may be in memory.
    pub long_bodies: Semaphore,
    vmm: Arc<dyn Vmm>,
    endings: Semaphore,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("Could not boot the template")]
    Boot(#[from] BootError),
    #[error("Could not serve HTTP")]
    Serve(#[source] JoinError),
}

/// Serves until `shutdown` resolves.
pub async fn run(
    listener: TcpListener,
    settings: Settings,
    vmm: Arc<dyn Vmm>,
    network: Network,
    records: Records,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let app = App::new(settings, vmm, network, records);
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(http::serve(listener, http::router(app.clone()), async {
        // An error means that the sender is gone, which is a reason to stop, too.
        stopped.await.ok();
    }));
    let kept = app.clone();
    let mut keeper = tokio::spawn(async move { kept.keep().await });
    let result = tokio::select! {
        () = shutdown => Ok(()),
        kept = &mut keeper => {
            #[expect(clippy::expect_used, reason = "a panic in the keeper must not leave a host that makes nothing")]
            let error = kept.expect("the keeper does not panic");
            Err(RunError::Boot(error))
        }
        served = &mut server => served.map_err(RunError::Serve),
    };
    drop(stop);
    stop_keeping(keeper).await;
    app.close().await;
    if !server.is_finished() && timeout(SHUTDOWN_TIMEOUT, server).await.is_err() {
        tracing::warn!("Clients that had not taken their last answers were cut off");
    }
    result
}

/// Whatever the keeper was making is gone, or in its place, when this returns.
async fn stop_keeping(keeper: JoinHandle<BootError>) {
    keeper.abort();
    // One that has finished has been asked for its result already.
    if !keeper.is_finished() {
        keeper.await.ok();
    }
}

impl App {
    /// Looks for templates in their folder.
    pub fn new(settings: Settings, vmm: Arc<dyn Vmm>, network: Network, records: Records) -> Arc<App> {
        let admission = Admission::of_this_host();
        let folder = settings.template_dir.as_deref();
        let templates = folder.map_or_else(Vec::new, |folder| folder::read_all(folder, settings.sizes));
        let names: Vec<&str> = templates.iter().map(|template| template.name.as_str()).collect();
        records.spaces.forget_templates(|name| name != DEFAULT && !names.contains(&name));
        Arc::new(App {
            registry: Registry::default(),
            templates: Shelf::new(&settings, templates),
            activity: Activity::new(),
            room: Room::new(settings.sandboxes_max, Headroom::new(vmm.clone(), settings.reserves)),
            spaces: records.spaces,
            freezes: Semaphore::new(FREEZES_PER_PROCESSOR * admission.processors()),
            vmm,
            network,
            keys: records.keys,
            journal: records.journal,
            webhooks: records.webhooks,
            usage: records.usage,
            metrics: Metrics::default(),
            traces: Traces::new(settings.collector.as_ref()),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            terminal_clients: Arc::new(Semaphore::new(TERMINAL_CLIENTS_MAX)),
            endings: Semaphore::new(ENDINGS_PER_PROCESSOR * admission.processors()),
            admission,
            long_bodies: Semaphore::new(LONG_BODIES_MAX),
            settings,
        })
    }

    /// Keeps the default template available and all pools filled. Returns if that template does not boot at first.
    pub async fn keep(self: &Arc<App>) -> BootError {
        let quiet = || self.quiet(NETWORK_PATIENCE);
        tokio::select! {
            error = keep::keep_always(self) => error,
            never = pool::keep_filled(self) => match never {},
            never = self.network.keep(quiet) => match never {},
            never = self.journal.keep() => match never {},
            never = self.webhooks.tell(&self.journal) => match never {},
            never = self.usage.keep(self) => match never {},
            never = space::freeze::keep(self) => match never {},
        }
    }

    /// Resolves when there is a moment in which little disturbs nobody, but no later than this.
    pub(crate) async fn quiet(&self, patience: Duration) {
        self.activity.quiet(self.admission.processors(), Instant::now() + patience).await;
    }

    pub(crate) fn vmm(&self) -> &dyn Vmm {
        &*self.vmm
    }

    /// The host's memory; `None` if it is not known.
    pub fn memory(&self) -> Option<Memory> {
        self.vmm.memory()
    }

    pub(crate) async fn boot_template(
        &self,
        variant: &Variant,
        turn: Option<SemaphorePermit<'_>>,
    ) -> Result<Template, BootError> {
        let Variant { definition, shape, .. } = variant;
        let network = self.network.template_identity();
        let ingredients = Ingredients::of(&self.settings, network, definition, shape).await;
        if let Some(ingredients) = &ingredients {
            let identity = GuestIdentity { hostname: boot::HOSTNAME.to_owned(), network };
            if let Some(kept) = self.spaces.kept_template(self.vmm(), ingredients, shape, identity).await {
                return Ok(kept);
            }
        }
        boot::boot(&*self.vmm, &self.settings, network, definition, shape.clone(), ingredients, turn).await
    }

    /// What copies are made with that may reach so much.
    pub fn means<'a>(&'a self, egress: &'a Egress) -> Means<'a> {
        Means { admission: &self.admission, network: &self.network, egress }
    }

    /// A new sandbox without a lease.
    pub async fn copy_template(
        self: &Arc<App>,
        template: &Template,
        egress: &Egress,
        limits: Limits,
    ) -> Result<(Sandbox, CopyTimes), CopyError> {
        let (copy, times) = copies::copy_one(&*template.machine, limits, self.means(egress)).await?;
        let shape = template.shape.clone();
        let origin = template.origin.clone();
        let lineage = Lineage { shape, origin, space: None, parent: None, checkpoint: None, generation: 1 };
        Ok((self.launch(copy, lineage), times))
    }

    /// Makes a copy a sandbox and sees it to its end.
    pub fn launch(self: &Arc<App>, copy: OwnCopy, lineage: Lineage) -> Sandbox {
        let identity = Identity {
            id: copy.id.clone(),
            parent: lineage.parent.clone(),
            created_at_ms: 0,
            terms: self.settings.terms.default,
            started: Instant::now().into_std(),
            tenant: Tenant::operator(),
        };
        let (sandbox, task) = Sandbox::new(copy, identity, lineage, self.spaces.wishes.clone());
        let (app, handle) = (self.clone(), sandbox.clone());
        tokio::spawn(async move {
            let (cause, slot) = task.run().await;
            app.registry.retire(&handle, &cause);
            app.templates.forget(&handle);
            app.usage.count_last(&handle);
            // What was never given out was nobody's.
            if slot.is_some() && !cause.is_replacement() {
                app.metrics.count_end(&cause);
                app.journal.record(&handle.tenant(), ended(&handle, &cause));
            }
            if let Some(space) = &handle.lineage().space {
                app.spaces.sandbox_ended(space, &cause).await;
            }
            app.end_machine(&handle, &cause).await;
            drop(slot);
        });
        sandbox
    }

    async fn end_machine(&self, sandbox: &Sandbox, cause: &EndCause) {
        let id = sandbox.identity().id.clone();
        match cause {
            EndCause::MachineEnded(_) | EndCause::AgentLost(_) => {
                tracing::warn!(%id, %cause, "A sandbox ended");
            }
            _ => tracing::debug!(%id, %cause, "A sandbox ended"),
        }
        self.tear_down(id.as_str(), &**sandbox.machine(), cause).await;
    }

    /// Ends a machine in its turn, off every path. Returns when nothing is left of it. What waits here holds its slot, so
    /// it is never more than there may be sandboxes and checkpoints, and what the pool has let go.
    pub(crate) async fn tear_down(&self, id: &str, machine: &dyn Machine, cause: &EndCause) {
        let is_awaited = match cause {
            EndCause::MachineEnded(_) | EndCause::AgentLost(_) | EndCause::Shutdown => true,
            _ => self.room.is_full(),
        };
        let patience = if is_awaited { Duration::ZERO } else { ENDING_PATIENCE };
        let deadline = Instant::now() + patience;
        // The semaphore is never closed.
        let turn = self.endings.acquire().await.ok();
        self.activity.quiet(self.admission.processors(), deadline).await;
        let mut ending = machine.end();
        if timeout(ENDING_TURN, &mut ending).await.is_err() {
            tracing::warn!(%id, "A machine takes long to end; the next no longer wait for it");
            drop(turn);
            ending.await;
        }
    }

    async fn close(self: &Arc<App>) {
        space::freeze::freeze_all(self, self.settings.freeze_timeout).await;
        self.room.close();
        let (sandboxes, checkpoints) = self.registry.close();
        self.templates.close();
        for sandbox in sandboxes {
            sandbox.end(EndCause::Shutdown);
        }
        for checkpoint in checkpoints {
            checkpoint.end(EndCause::Shutdown);
        }
        self.spaces.close().await;
        // Copies that are still being made are machines, too.
        if timeout(SHUTDOWN_TIMEOUT, self.vmm.none_left()).await.is_err() {
            tracing::warn!("Some machines had not ended when the host shut down");
        }
        self.journal.finish().await;
        self.usage.note().await;
        let app = self.clone();
        // It does not panic, and is cancelled only with the runtime.
        tokio::task::spawn_blocking(move || app.traces.finish()).await.ok();
    }
}

fn ended(sandbox: &Sandbox, cause: &EndCause) -> Happening {
    let sandbox = sandbox.identity().id.clone();
    match cause {
        EndCause::Frozen(space) => Happening::Frozen { sandbox, space: space.clone() },
        _ => Happening::Closed { sandbox, reason: cause.to_string() },
    }
}

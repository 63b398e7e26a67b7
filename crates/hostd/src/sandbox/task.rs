//! The one task that owns a sandbox: everything that can happen to it is an arm of one loop.

use super::Sandbox;
use super::agent::{AgentConnection, AgentError, GuestIdentity};
use super::call::Call;
use super::copies::hostname;
use super::execution::{Execution, OutputError, Taken};
use super::lines::LINE_LEN_MAX;
use super::ping::{self, Pings};
use super::pulse::{Due, PATIENCE, Pulse, SILENCE_ATTACHED, SILENCE_POOLED, SILENCE_RUNNING};
use super::reconnect::{Agent, Said};
use super::state::{EndCause, Lease, Terms};
use crate::chain::chain;
use crate::network::Interface;
use crate::slots::Slots;
use crate::space::freeze::Wish;
use crate::vmm::Ending;
use podflare_api::exec::ExecView;
use podflare_api::id::{self, SpaceId};
use podflare_wire::guest::{Event, ExecEnd, ExecId, Inherited, Language, Request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// How long to wait for the end of an agent's stream when its machine has ended, and for the machine's
/// word on why when the stream has.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of unfinished lines in one sandbox, after which a line is cut where it is.
const UNFINISHED_LINES_LEN_MAX: usize = 4 * LINE_LEN_MAX;

/// What executions are told that were lost with an agent.
const AGENT_RESTARTED: &str =
    "the agent in the sandbox was killed and has been restarted; the Python REPL's variables are lost";

/// What executions are told that come while somebody freezes the sandbox.
const BEING_FROZEN: &str = "the sandbox is being frozen";

/// What others ask of a sandbox.
#[derive(Debug)]
pub enum Command {
    Lease {
        terms: Terms,
        started: std::time::Instant,
        slot: Slots,
    },
    Exec {
        execution: Execution,
        call: Box<Call>,
    },
    List {
        answer: oneshot::Sender<Vec<ExecView>>,
    },
    Cancel {
        exec: id::ExecId,
    },
    Taken {
        exec: ExecId,
        taken: Taken,
    },
    ReaderGone {
        exec: ExecId,
    },
    Ping {
        answer: ping::Answer,
    },
    UseBegun,
    UseEnded,
    Attached,
    Detached,
    TakeOver {
        terms: Terms,
        started: std::time::Instant,
    },
    /// Somebody has it frozen, or does so no more.
    FreezeBegun,
    FreezeEnded,
    /// All of it is on the disk.
    Frozen {
        space: SpaceId,
        unused_since: Option<std::time::Instant>,
        answer: oneshot::Sender<bool>,
    },
    /// It could not be written when its time was over.
    NotFrozen,
    End(EndCause),
}

#[derive(Debug)]
pub struct Task {
    sandbox: Sandbox,
    agent: Agent,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Executions that wait, run, or have events for a slow reader, in the order of their requests.
    executions: Vec<Execution>,
    pulse: Pulse,
    pings: Pings,
    lease: Option<Lease>,
    wishes: mpsc::UnboundedSender<Wish>,
    /// Its time is over, for this reason, and it is being frozen.
    over: Option<EndCause>,
    is_being_frozen: bool,
    /// Its part of the host, given back when nothing is left of the machine.
    slot: Option<Slots>,
}

impl Task {
    pub(super) fn new(
        sandbox: Sandbox,
        mut agent: AgentConnection,
        commands: mpsc::UnboundedReceiver<Command>,
        wishes: mpsc::UnboundedSender<Wish>,
    ) -> Task {
        let executions = agent.take_inherited().and_then(|inherited| adopt(&sandbox, &inherited));
        let hostname = hostname(&sandbox.identity().id);
        let network = sandbox.interface().map(Interface::identity);
        let agent = Agent::new(sandbox.machine().clone(), GuestIdentity { hostname, network }, agent);
        let (executions, pulse) = (executions.into_iter().collect(), Pulse::new(now()));
        Task {
            sandbox,
            agent,
            commands,
            executions,
            pulse,
            pings: Pings::default(),
            lease: None,
            wishes,
            over: None,
            is_being_frozen: false,
            slot: None,
        }
    }

    /// Runs the sandbox to its end. Its machine is left to be ended, and holds its part of the host.
    pub async fn run(mut self) -> (EndCause, Option<Slots>) {
        let mut ended = self.sandbox.machine().ended();
        let cause = loop {
            let end = self.lease.as_ref().filter(|_| self.over.is_none()).map(Lease::end);
            let pulse = self.silence().map(|silence| self.pulse.next(silence));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::End(cause)) => break cause,
                    Some(Command::Frozen { space, unused_since, answer }) => {
                        let is_unused = self.is_unused_since(unused_since);
                        // Whoever asked waits.
                        answer.send(is_unused).ok();
                        if is_unused { break EndCause::Frozen(space) }
                    }
                    Some(Command::NotFrozen) => if let Some(cause) = self.go_on() { break cause },
                    Some(command) => self.take_command(command),
                    None => break EndCause::Shutdown,
                },
                said = self.agent.next() => match said {
                    Ok(Said::Event(event)) => if let Err(cause) = self.take_event(event) { break cause },
                    Ok(Said::Restarted { renewed }) => {
                        self.sandbox.set_renewed(renewed);
                        self.abort_forgotten();
                    }
                    Err(error) => break why_lost(error, ended).await,
                },
                ending = &mut ended => {
                    self.take_last_events().await;
                    break EndCause::MachineEnded(ending.to_string());
                }
                cause = reached(end) => if let Some(cause) = self.freeze_instead(cause) { break cause },
                due = reached(pulse) => match due {
                    Due::Ask => self.ask(),
                    Due::GiveUp => break EndCause::AgentLost(unanswered()),
                },
            }
        };
        self.finish(&cause);
        (cause, self.slot)
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Lease { terms, started, slot } => {
                self.lease = Some(Lease::new(terms, started));
                self.slot = Some(slot);
                self.count_executions();
            }
            Command::Exec { execution, call } => self.execute(execution, *call),
            Command::List { answer } => {
                let open = self.executions.iter().filter(|execution| !execution.has_exited());
                // Whoever asked may have gone.
                answer.send(open.map(Execution::view).collect()).ok();
            }
            Command::Cancel { exec } => self.cancel(|execution| execution.order().id == exec),
            Command::Taken { exec, taken } => {
                self.with_execution(exec, |execution, replay| execution.taken(taken, replay));
            }
            Command::Ping { answer } => {
                if let Some(token) = self.pings.begin(answer) {
                    self.agent.send(Request::Ping { token });
                }
            }
            Command::ReaderGone { exec } => {
                self.with_execution(exec, Execution::reader_gone);
                self.cancel(|execution| execution.id == exec && execution.order().cancel_on_disconnect);
            }
            Command::UseBegun => {
                if let Some(lease) = &mut self.lease {
                    lease.begin_use(now());
                }
            }
            Command::UseEnded => {
                if let Some(lease) = &mut self.lease {
                    lease.end_use(now());
                }
            }
            Command::Attached => {
                if self.silence().is_none() {
                    self.pulse.restart(now());
                }
                if let Some(lease) = &mut self.lease {
                    lease.attach(now());
                }
            }
            Command::Detached => {
                if let Some(lease) = &mut self.lease {
                    lease.detach(now());
                }
            }
            Command::TakeOver { terms, started } => {
                if let Some(lease) = &mut self.lease {
                    lease.take_over(terms, started, now());
                }
            }
            Command::FreezeBegun => self.is_being_frozen = true,
            Command::FreezeEnded => self.is_being_frozen = false,
            Command::End(_) | Command::Frozen { .. } | Command::NotFrozen => {}
        }
    }

    /// Asks for a sandbox whose time is over to be frozen, if it is to be. Otherwise, this is its end.
    fn freeze_instead(&mut self, cause: EndCause) -> Option<EndCause> {
        let is_persistent = self.sandbox.identity().terms.persistent;
        let wish = Wish { sandbox: self.sandbox.clone(), cause: cause.clone() };
        if !is_persistent || self.wishes.send(wish).is_err() {
            return Some(cause);
        }
        self.over = Some(cause);
        None
    }

    /// Goes on after it could not be frozen. A lifetime is over in any case.
    fn go_on(&mut self) -> Option<EndCause> {
        let over = self.over.take();
        if let Some(lease) = &mut self.lease {
            lease.renew(now());
        }
        over.filter(|cause| matches!(cause, EndCause::LifeOver(_)))
    }

    fn is_unused_since(&self, then: Option<std::time::Instant>) -> bool {
        let is_used = |then| self.lease.as_ref().is_some_and(|lease| lease.is_used_since(then));
        !then.is_some_and(is_used)
    }

    fn execute(&mut self, mut execution: Execution, call: Call) {
        execution.incarnation = self.agent.incarnation();
        if self.executions.is_empty() {
            self.pulse.restart(now());
        }
        let announce = self.executions.iter().any(|execution| !execution.has_exited());
        if !announce {
            execution.start();
        }
        if self.is_being_frozen {
            return execution.abort(BEING_FROZEN, &mut self.sandbox.replay_mut());
        }
        let Call { language, code, context, .. } = call;
        self.agent.send(Request::Exec { exec: execution.id, language, code, context, announce });
        self.executions.push(execution);
        self.count_executions();
    }

    /// Has the guest cancel an execution that is not over. Its end is told as any other.
    fn cancel(&mut self, is_meant: impl Fn(&Execution) -> bool) {
        let meant = self.executions.iter().find(|execution| !execution.has_exited() && is_meant(execution));
        if let Some(exec) = meant.map(|execution| execution.id) {
            self.agent.send(Request::Cancel { exec });
        }
    }

    /// For how long the guest may say nothing. One that nothing is asked of may sleep for as long as it likes.
    fn silence(&self) -> Option<Duration> {
        match &self.lease {
            _ if !self.executions.is_empty() => Some(SILENCE_RUNNING),
            None => Some(SILENCE_POOLED),
            Some(lease) => lease.is_attached().then_some(SILENCE_ATTACHED),
        }
    }

    fn ask(&mut self) {
        self.agent.send(Request::Ping { token: 0 });
        self.pulse.asked(now());
    }

    fn take_event(&mut self, event: Event) -> Result<(), EndCause> {
        self.pulse.restart(now());
        match event {
            Event::Output { exec, stream, data } => {
                let mut outcome = Err(OutputError::NotRunning);
                self.with_execution(exec, |execution, replay| {
                    outcome = execution.output(stream, data, replay);
                });
                self.limit_unfinished_lines(exec);
                outcome.map_err(|error| {
                    EndCause::AgentLost(format!("its agent does not keep to the protocol: {error}"))
                })
            }
            Event::Exited { exec, exit_code, end } => {
                let has_run = end == ExecEnd::Finished;
                let mut is_own_python = false;
                self.with_execution(exec, |execution, replay| {
                    is_own_python =
                        execution.order().language == Language::Python && !execution.order().inherited;
                    execution.exited(exit_code, end, replay);
                });
                if has_run && is_own_python {
                    // A REPL that was too busy to be renewed is renewed before it runs anything.
                    self.sandbox.set_renewed(true);
                }
                Ok(())
            }
            Event::Started { exec } => {
                self.with_execution(exec, |execution, _| execution.start());
                Ok(())
            }
            Event::Pong { token } => {
                self.pings.answered(token);
                Ok(())
            }
            Event::Hello { .. } | Event::Renewed { .. } | Event::ClockSet | Event::Failed { .. } => Ok(()),
        }
    }

    /// Ends the executions that the agent before this one was asked for.
    fn abort_forgotten(&mut self) {
        tracing::warn!(id = %self.sandbox.identity().id, "The agent in a sandbox died and was started again");
        self.pulse.restart(now());
        self.pings.forget();
        let incarnation = self.agent.incarnation();
        let is_forgotten =
            |execution: &mut Execution| execution.incarnation < incarnation && !execution.has_exited();
        for execution in self.executions.extract_if(.., is_forgotten) {
            execution.abort(AGENT_RESTARTED, &mut self.sandbox.replay_mut());
        }
        self.count_executions();
    }

    /// Takes what a machine that is gone had sent, up to the end of its stream.
    async fn take_last_events(&mut self) {
        let events = async {
            while let Ok(Said::Event(event)) = self.agent.next().await {
                if self.take_event(event).is_err() {
                    return;
                }
            }
        };
        // Without an end, what has come must do.
        timeout(ENDING_TIMEOUT, events).await.ok();
    }

    /// Many executions may be open at once when their readers are slow, each with lines in the making.
    fn limit_unfinished_lines(&mut self, exec: ExecId) {
        let len: usize = self.executions.iter().map(Execution::unfinished_len).sum();
        if len > UNFINISHED_LINES_LEN_MAX {
            self.with_execution(exec, Execution::cut_lines);
        }
    }

    /// Does something with an execution that may be over, then what follows from it.
    fn with_execution(&mut self, exec: ExecId, act: impl FnOnce(&mut Execution, &mut super::Replay)) {
        let Some(index) = self.executions.iter().position(|execution| execution.id == exec) else { return };
        let execution = &mut self.executions[index];
        act(execution, &mut self.sandbox.replay_mut());
        if execution.is_finished() {
            self.executions.remove(index);
            self.count_executions();
        } else if let Some(bytes) = execution.take_grant() {
            self.agent.send(Request::Grant { exec, bytes });
        }
    }

    fn count_executions(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.set_executions(self.executions.len(), now());
        }
    }

    /// Tells every reader, also of executions that were asked for at the last moment.
    fn finish(&mut self, cause: &EndCause) {
        // Only here.
        self.sandbox.0.end_cause.set(cause.clone()).ok();
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Exec { execution, .. } => self.executions.push(execution),
                Command::Lease { slot, .. } => self.slot = Some(slot),
                _ => {}
            }
        }
        let reason = format!("the sandbox has ended: {cause}");
        for execution in self.executions.drain(..) {
            execution.abort(&reason, &mut self.sandbox.replay_mut());
        }
    }
}

/// What has run in a machine since before it was copied. It takes a place as any other, of which none is taken yet.
fn adopt(sandbox: &Sandbox, inherited: &Inherited) -> Option<Execution> {
    let place = sandbox.0.places.clone().try_acquire_owned().ok()?;
    let code_room = sandbox.0.code_room.clone().try_acquire_many_owned(0).ok()?;
    Some(Execution::inherited(inherited, Arc::new(place), code_room))
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Resolves at its time; never if there is none.
async fn reached<T>(appointment: Option<(std::time::Instant, T)>) -> T {
    match appointment {
        Some((at, what)) => {
            sleep_until(Instant::from_std(at)).await;
            what
        }
        None => std::future::pending().await,
    }
}

fn unanswered() -> String {
    format!("it has not answered for {} s", PATIENCE.as_secs())
}

/// An agent's stream ends when its machine does, and the machine knows more.
async fn why_lost(error: AgentError, ended: impl Future<Output = Arc<Ending>>) -> EndCause {
    match timeout(ENDING_TIMEOUT, ended).await {
        Ok(ending) => EndCause::MachineEnded(ending.to_string()),
        Err(_) => EndCause::AgentLost(chain(&error)),
    }
}

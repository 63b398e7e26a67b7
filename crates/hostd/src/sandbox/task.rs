//! The one task that owns a sandbox: everything that can happen to it is an arm of one loop.

use super::Sandbox;
use super::agent::{AgentConnection, AgentError};
use super::execution::{Execution, Taken};
use super::lines::LINE_LEN_MAX;
use super::state::{EndCause, Lease, Terms};
use crate::chain::chain;
use crate::vmm::Ending;
use podflare_wire::guest::{Event, ExecId, Language, Request};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

/// How long to wait for the end of an agent's stream when its machine has ended, and for the machine's
/// word on why when the stream has.
const ENDING_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of unfinished lines in one sandbox, after which a line is cut where it is.
const UNFINISHED_LINES_LEN_MAX: usize = 4 * LINE_LEN_MAX;

/// What others ask of a sandbox.
#[derive(Debug)]
pub enum Command {
    Lease { terms: Terms, started: std::time::Instant, slot: OwnedSemaphorePermit },
    Exec { execution: Execution, language: Language, code: String },
    Taken { exec: ExecId, taken: Taken },
    ReaderGone { exec: ExecId },
    Touch,
    TakeOver { terms: Terms, started: std::time::Instant },
    End(EndCause),
}

#[derive(Debug)]
pub struct Task {
    sandbox: Sandbox,
    agent: AgentConnection,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Executions that wait, run, or have events for a slow reader, in the order of their requests.
    executions: VecDeque<Execution>,
    lease: Option<Lease>,
    /// Its part of the host, given back when the task ends.
    slot: Option<OwnedSemaphorePermit>,
}

impl Task {
    pub(super) fn new(
        sandbox: Sandbox,
        agent: AgentConnection,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Task {
        Task { sandbox, agent, commands, executions: VecDeque::new(), lease: None, slot: None }
    }

    /// Runs the sandbox to its end. Its machine is left to be ended.
    pub async fn run(mut self) -> EndCause {
        let mut ended = self.sandbox.machine().ended();
        let cause = loop {
            let end = self.lease.as_ref().map(Lease::end);
            let due = Instant::from_std(end.as_ref().map_or_else(std::time::Instant::now, |(at, _)| *at));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::End(cause)) => break cause,
                    Some(command) => self.take_command(command),
                    None => break EndCause::Shutdown,
                },
                event = self.agent.next_event() => match event {
                    Ok(event) => if let Err(cause) = self.take_event(event) { break cause },
                    Err(error) => break why_lost(error, ended).await,
                },
                ending = &mut ended => {
                    self.take_last_events().await;
                    break EndCause::MachineEnded(ending.to_string());
                }
                () = sleep_until(due), if end.is_some() => {
                    if let Some((_, cause)) = end { break cause }
                }
            }
        };
        self.finish(&cause);
        cause
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Lease { terms, started, slot } => {
                self.lease = Some(Lease::new(terms, started));
                self.slot = Some(slot);
            }
            Command::Exec { execution, language, code } => {
                self.agent.send(&Request::Exec { exec: execution.id, language, code });
                self.executions.push_back(execution);
                self.count_executions();
            }
            Command::Taken { exec, taken } => {
                self.with_execution(exec, |execution, replay| execution.taken(taken, replay));
            }
            Command::ReaderGone { exec } => self.with_execution(exec, Execution::reader_gone),
            Command::Touch => {
                if let Some(lease) = &mut self.lease {
                    lease.touch(now());
                }
            }
            Command::TakeOver { terms, started } => {
                if let Some(lease) = &mut self.lease {
                    lease.take_over(terms, started, now());
                }
            }
            Command::End(_) => {}
        }
    }

    fn take_event(&mut self, event: Event) -> Result<(), EndCause> {
        match event {
            Event::Output { exec, stream, data } => {
                let mut outcome = Ok(());
                self.with_execution(exec, |execution, replay| {
                    outcome = execution.output(stream, data, replay);
                });
                self.limit_unfinished_lines(exec);
                outcome.map_err(|error| {
                    EndCause::AgentLost(format!("its agent does not keep to the protocol: {error}"))
                })
            }
            Event::Exited { exec, exit_code, end } => {
                self.with_execution(exec, |execution, replay| execution.exited(exit_code, end, replay));
                Ok(())
            }
            Event::Failed { message } => Err(EndCause::AgentLost(message)),
            Event::Hello { .. } | Event::Renewed { .. } | Event::Pong { .. } => Ok(()),
        }
    }

    /// Takes what a machine that is gone had sent, up to the end of its stream.
    async fn take_last_events(&mut self) {
        let events = async {
            while let Ok(event) = self.agent.next_event().await {
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
            self.agent.send(&Request::Grant { exec, bytes });
        }
    }

    fn count_executions(&mut self) {
        if let Some(lease) = &mut self.lease {
            lease.set_executions(self.executions.len(), now());
        }
    }

    /// Tells every reader, also of executions that were asked for at the last moment.
    fn finish(&mut self, cause: &EndCause) {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Exec { execution, .. } = command {
                self.executions.push_back(execution);
            }
        }
        let reason = cause.to_string();
        for execution in self.executions.drain(..) {
            execution.abort(&reason, &mut self.sandbox.replay_mut());
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// An agent's stream ends when its machine does, and the machine knows more.
async fn why_lost(error: AgentError, ended: impl Future<Output = Arc<Ending>>) -> EndCause {
    match timeout(ENDING_TIMEOUT, ended).await {
        Ok(ending) => EndCause::MachineEnded(ending.to_string()),
        Err(_) => EndCause::AgentLost(chain(&error)),
    }
}

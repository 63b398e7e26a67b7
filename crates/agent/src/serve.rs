//! The agent proper: one loop that takes hostd's requests, runs code and sends its output.
//!
//! ```text
//!   Connected ──Renew──▶ Renewing ──REPL renewed, or too busy──▶ Serving
//!       └─────────────────────┴──────── anything wrong ──────────┴─────▶ Closing
//! ```
//!
//! Each turn waits for one thing to happen, lets it take effect, starts what can be started and
//! writes all that came of it at once. The loop owns everything, so nothing is locked.

use crate::connection::{Connection, Gone, Listener, ReadBuffer, Stream};
use crate::console::say;
use crate::exec::bash::{Bash, BashEvent};
use crate::exec::repl::{Cell, Repl, ReplEvent, SEED_LEN};
use crate::exec::{Workplace, exit_code};
use crate::renew::{Machine, renew, set_clock};
use crate::session::{EXIT_CODE_CANCELLED, EXIT_CODE_TIMED_OUT, Job, Reader, Session};
use podflare_wire::guest::{
    Event, ExecEnd, Inherited, Language, OutputStream, PROTOCOL, Renewal, ReplRenewal, Request, excerpt,
};
use rustix::process::Signal;
use std::convert::Infallible;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long a renewal waits for a REPL that is busy.
const REPL_RENEWAL_TIME: Duration = Duration::from_secs(1);

/// How long interrupted code has before it is interrupted more widely, and before it is killed.
const INTERRUPT_ALL_AFTER: Duration = Duration::from_secs(1);
const KILL_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("Could not accept a connection")]
    Accept(#[source] io::Error),
    #[error("Could not watch a process")]
    Watch(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Agent<M> {
    machine: M,
    workplace: Arc<Workplace>,
    session: Session,
    repl: Repl,
    current: Option<Current>,
    link: Option<Link>,
    read_buffer: ReadBuffer,
}

/// What the running execution of the session is.
#[derive(Debug)]
struct Current {
    code: Code,
    excerpt: String,
    started: Instant,
    timeout: Option<Duration>,
    cancelling: Option<Cancelling>,
}

#[derive(Debug)]
enum Code {
    Python,
    Bash(Box<Bash>),
}

#[derive(Debug)]
struct Cancelling {
    /// None after SIGKILL: then there is nothing to do but to wait.
    next: Option<(Signal, Instant)>,
    kill_at: Instant,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connected,
    Renewing { until: Instant },
    Serving,
    Closing,
}

enum Happening {
    Connected(Box<dyn Stream>),
    Received(Result<(), Gone>),
    Repl(ReplEvent),
    Bash(BashEvent),
    TimeIsUp,
}

/// Serves connections until something fails that only a new process can repair.
pub(crate) async fn serve(
    listener: &Listener,
    machine: impl Machine,
    workplace: Arc<Workplace>,
) -> Result<Infallible, ServeError> {
    let mut agent = Agent {
        machine,
        workplace,
        session: Session::default(),
        repl: Repl::new(),
        current: None,
        link: None,
        read_buffer: ReadBuffer::new(),
    };
    if let Err(error) = agent.repl.start(&agent.workplace) {
        say(&format!("{error}; the next Python call tries again"));
    }
    loop {
        match agent.next(listener).await? {
            Happening::Connected(stream) => agent.connect(stream),
            Happening::Received(Ok(())) => {}
            Happening::Received(Err(Gone)) => agent.disconnect(),
            Happening::Repl(event) => agent.on_repl(event),
            Happening::Bash(event) => agent.on_bash(event),
            Happening::TimeIsUp => agent.on_time(Instant::now()),
        }
        agent.proceed();
        agent.flush().await;
    }
}

impl<M: Machine> Agent<M> {
    async fn next(&mut self, listener: &Listener) -> Result<Happening, ServeError> {
        let deadline = self.deadline();
        let has_room = self.session.room() > 0;
        let Agent { repl, current, link, read_buffer, .. } = self;
        let link = link.as_mut().filter(|link| link.phase != Phase::Closing);
        let bash = match current.as_mut().map(|current| &mut current.code) {
            Some(Code::Bash(bash)) => Some(bash),
            Some(Code::Python) | None => None,
        };
        // While bash runs, the REPL's output belongs to no call, and is kept without anybody's leave.
        let repl_has_room = has_room || bash.is_some();
        tokio::select! {
            biased;
            event = repl.event(repl_has_room) => event.map(Happening::Repl).map_err(ServeError::Watch),
            event = if_some(bash.map(|bash| bash.event(has_room))) => {
                event.map(Happening::Bash).map_err(ServeError::Watch)
            }
            received = if_some(link.map(|link| link.connection.received(read_buffer))) => Ok(Happening::Received(received)),
            stream = listener.accept() => stream.map(Happening::Connected).map_err(ServeError::Accept),
            () = if_some(deadline.map(sleep_until)) => Ok(Happening::TimeIsUp),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let current = self.current.as_ref().and_then(Current::deadline);
        let renewing = match self.link {
            Some(Link { phase: Phase::Renewing { until }, .. }) => Some(until),
            _ => None,
        };
        current.into_iter().chain(renewing).min()
    }

    fn connect(&mut self, stream: Box<dyn Stream>) {
        self.disconnect();
        let connection = Connection::new(stream, &Event::Hello { protocol: PROTOCOL });
        self.link = Some(Link { connection, phase: Phase::Connected });
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.session.detach();
        self.leave_bash();
    }

    /// Lets a bash whose reader is gone run on in the background, so that a copy of the machine does
    /// not wait for what its source runs. One that is being cancelled has but a moment left.
    fn leave_bash(&mut self) {
        let is_left =
            |current: &mut Current| current.cancelling.is_none() && matches!(current.code, Code::Bash(_));
        if let Some(current) = self.current.take_if(is_left) {
            let times_out = current.times_out();
            if let Code::Bash(bash) = current.code {
                bash.leave(times_out, KILL_AFTER);
            }
            self.session.end(0, ExecEnd::Finished);
        }
    }

    /// Says why, and closes as soon as that is sent.
    fn fail(&mut self, message: String) {
        self.session.detach();
        self.leave_bash();
        if let Some(link) = &mut self.link {
            link.connection.send(&Event::Failed { message });
            link.phase = Phase::Closing;
        }
    }

    /// Everything that is possible now: requests that have arrived, and the next execution.
    fn proceed(&mut self) {
        self.finish_renewal();
        while let Some(request) = self.next_request() {
            self.on_request(request);
            self.finish_renewal();
        }
        while let Some(job) = self.session.start_next() {
            self.start(job);
        }
    }

    /// The next request, unless those that have arrived must wait for a renewal.
    fn next_request(&mut self) -> Option<Request> {
        let link = self.link.as_mut()?;
        if !matches!(link.phase, Phase::Connected | Phase::Serving) {
            return None;
        }
        match link.connection.next_request() {
            Ok(request) => request,
            Err(error) => {
                self.fail(error.to_string());
                None
            }
        }
    }

    fn on_request(&mut self, request: Request) {
        let is_renewed = self.link.as_ref().is_some_and(|link| link.phase == Phase::Serving);
        match request {
            Request::Renew(renewal) if !is_renewed => self.renew(&renewal),
            Request::Renew(_) => self.fail("A connection is renewed once".into()),
            _ if !is_renewed => self.fail("The first request of a connection must be Renew".into()),
            Request::Exec { exec, language, code, context, announce } => {
                let job = Job { exec, language, code, context, announce };
                if let Err(error) = self.session.submit(job) {
                    self.fail(error.to_string());
                }
            }
            Request::Cancel { exec } => {
                if self.session.cancel(exec) {
                    self.interrupt(EXIT_CODE_CANCELLED);
                }
            }
            Request::Grant { exec, bytes } => self.session.grant(exec, bytes),
            Request::SetClock { unix_time_ns } => match set_clock(&mut self.machine, unix_time_ns) {
                Ok(()) => self.send(&Event::ClockSet),
                Err(error) => self.fail(error.to_string()),
            },
            Request::Ping { token } => self.send(&Event::Pong { token }),
        }
    }

    fn send(&mut self, event: &Event) {
        if let Some(link) = &mut self.link {
            link.connection.send(event);
        }
    }

    fn renew(&mut self, renewal: &Renewal) {
        if let Err(error) = renew(&mut self.machine, renewal) {
            return self.fail(error.to_string());
        }
        // From the renewed kernel, so that user code which reads its own seed learns nothing of it.
        let mut seed = [0; SEED_LEN];
        if let Err(error) = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()) {
            return self.fail(format!("Could not draw fresh random numbers: {error}"));
        }
        if let Err(error) = self.repl.renew(&seed) {
            return self.fail(error.to_string());
        }
        if let Some(link) = &mut self.link {
            link.phase = Phase::Renewing { until: Instant::now() + REPL_RENEWAL_TIME };
        }
    }

    fn finish_renewal(&mut self) {
        if let Some(renewal) = self.repl.renewal() {
            self.confirm_renewal(renewal);
        }
    }

    fn confirm_renewal(&mut self, repl: ReplRenewal) {
        if let Some(link) = &mut self.link
            && matches!(link.phase, Phase::Renewing { .. })
        {
            link.phase = Phase::Serving;
            let current = self.current.as_ref().filter(|_| self.session.inherit());
            let inherited = current.map(Current::describe);
            link.connection.send(&Event::Renewed { repl, inherited });
        }
    }

    fn start(&mut self, job: Job) {
        let Job { language, code, context, .. } = job;
        let excerpt = excerpt(&code).to_owned();
        let timeout = context.timeout_ms.map(Duration::from_millis);
        let started = match language {
            Language::Bash => Bash::start(&code, &context, &self.workplace)
                .map(|bash| Code::Bash(Box::new(bash)))
                .map_err(|error| error.to_string()),
            Language::Python => self.start_python(Cell { code, context }).map(|()| Code::Python),
        };
        match started {
            Ok(code) => {
                let started = Instant::now();
                self.current = Some(Current { code, excerpt, started, timeout, cancelling: None });
            }
            Err(message) => self.session.end_not_started(message),
        }
    }

    fn start_python(&mut self, cell: Cell) -> Result<(), String> {
        self.tell_backlog();
        // Python enters it itself. That it can is known here, where it is told best.
        self.workplace.within(&cell.context, |_| ()).map_err(|error| error.to_string())?;
        self.repl.run(cell, &self.workplace).map_err(|error| error.to_string())
    }

    fn tell_backlog(&mut self) {
        let (backlog, loss) = self.repl.take_backlog();
        for (stream, data) in backlog {
            self.session.output(stream, data);
        }
        if let Some(status) = loss {
            self.session.output(OutputStream::Stderr, loss_notice(status));
        }
    }

    /// Interrupts what runs. `exit_code` is for code that has not begun.
    fn interrupt(&mut self, exit_code: i32) {
        let Some(current) = &mut self.current else { return };
        let now = Instant::now();
        let kill_at = now + KILL_AFTER;
        current.cancelling = Some(match &current.code {
            Code::Bash(bash) => {
                bash.signal(Signal::TERM);
                Cancelling { next: Some((Signal::KILL, kill_at)), kill_at }
            }
            Code::Python if self.repl.withdraw() => {
                return self.end(exit_code, ExecEnd::Cancelled);
            }
            Code::Python => {
                self.repl.interrupt();
                Cancelling { next: Some((Signal::INT, now + INTERRUPT_ALL_AFTER)), kill_at }
            }
        });
    }

    fn on_time(&mut self, now: Instant) {
        if let Some(Link { phase: Phase::Renewing { until }, .. }) = self.link
            && until <= now
        {
            self.confirm_renewal(ReplRenewal::Pending);
        }
        let is_over = |current: &Current| current.times_out().is_some_and(|times_out| times_out <= now);
        if self.current.as_ref().is_some_and(is_over) && self.session.time_out() {
            return self.interrupt(EXIT_CODE_TIMED_OUT);
        }
        let Some(current) = &mut self.current else { return };
        if let Some(signal) = current.cancelling.as_mut().and_then(|cancelling| cancelling.due(now)) {
            match &current.code {
                Code::Bash(bash) => bash.signal(signal),
                Code::Python => self.repl.signal_all(signal),
            }
        }
    }

    fn end(&mut self, exit_code: i32, end: ExecEnd) {
        self.current = None;
        self.session.end(exit_code, end);
    }

    fn python_runs(&self) -> bool {
        matches!(self.current, Some(Current { code: Code::Python, .. }))
    }

    fn on_repl(&mut self, event: ReplEvent) {
        match event {
            ReplEvent::Progress => {}
            ReplEvent::Output if self.python_runs() => self.take_python_output(self.session.room()),
            ReplEvent::Output => self.repl.take_idle_output(),
            ReplEvent::Done(exit_code) => {
                self.take_python_output(usize::MAX);
                self.end(exit_code, ExecEnd::Finished);
            }
            ReplEvent::Ended(status) => self.replace_repl(status),
        }
    }

    fn take_python_output(&mut self, room: usize) {
        if let Some(capture) = self.repl.capture() {
            capture.take(room, |stream, data| self.session.output(stream, data));
        }
    }

    fn replace_repl(&mut self, status: ExitStatus) {
        let in_call = self.python_runs();
        if in_call {
            self.take_python_output(usize::MAX);
        } else {
            self.repl.take_idle_output();
        }
        let Some(remains) = self.repl.bury() else { return };
        remains.capture.abandon();
        if remains.never_ready {
            if in_call {
                self.current = None;
                let message = format!("The Python process ended before it was ready ({})", describe(status));
                self.session.end_not_started(message);
            }
            return;
        }
        if let Some(cell) = remains.waiting_cell {
            self.repl.remember_loss(status);
            if let Err(message) = self.start_python(cell) {
                self.current = None;
                self.session.end_not_started(message);
            }
            return;
        }
        self.report_loss(status);
        if in_call {
            self.end(exit_code(status), end_of(status));
        }
        if let Err(error) = self.repl.start(&self.workplace) {
            say(&format!("{error}; the next Python call tries again"));
        }
    }

    /// Who learns that the variables are gone: one call, once.
    fn report_loss(&mut self, status: ExitStatus) {
        match (self.session.reader(), end_of(status)) {
            _ if !self.python_runs() => self.repl.remember_loss(status),
            (None | Some(Reader::Gone | Reader::Inherited), _) => self.repl.remember_loss(status),
            // That it was killed is told with its end.
            (Some(Reader::Reading), ExecEnd::Killed { .. }) => {}
            (Some(Reader::Reading | Reader::Leaving), _) => {
                self.session.output(OutputStream::Stderr, loss_notice(status));
            }
        }
    }

    fn on_bash(&mut self, event: BashEvent) {
        let Some(Current { code: Code::Bash(bash), .. }) = &mut self.current else { return };
        match event {
            BashEvent::Output => {
                let room = self.session.room();
                bash.capture().take(room, |stream, data| self.session.output(stream, data));
            }
            BashEvent::Ended(status) => {
                bash.capture().take(usize::MAX, |stream, data| self.session.output(stream, data));
                if let Some(Current { code: Code::Bash(bash), .. }) = self.current.take() {
                    bash.leave(None, KILL_AFTER);
                }
                self.session.end(exit_code(status), end_of(status));
            }
        }
    }

    async fn flush(&mut self) {
        let events = self.session.take_events();
        let Some(link) = &mut self.link else { return };
        for event in events {
            link.connection.send(&event);
        }
        let result = link.connection.flush().await;
        let closed = link.phase == Phase::Closing && link.connection.unsent() == 0;
        if result.is_err() || closed {
            self.disconnect();
        }
    }
}

impl Cancelling {
    /// The signal to send now.
    fn due(&mut self, now: Instant) -> Option<Signal> {
        let (signal, _) = self.next.take_if(|(_, at)| *at <= now)?;
        self.next = (signal != Signal::KILL).then_some((Signal::KILL, self.kill_at));
        Some(signal)
    }
}

impl Current {
    /// When its time is over, unless it is being ended already.
    fn times_out(&self) -> Option<Instant> {
        self.timeout.filter(|_| self.cancelling.is_none()).map(|timeout| self.started + timeout)
    }

    /// When something is to be done about it.
    fn deadline(&self) -> Option<Instant> {
        match &self.cancelling {
            Some(cancelling) => cancelling.next.map(|(_, at)| at),
            None => self.times_out(),
        }
    }

    fn describe(&self) -> Inherited {
        let language = match self.code {
            Code::Python => Language::Python,
            Code::Bash(_) => Language::Bash,
        };
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Inherited {
            language,
            excerpt: self.excerpt.clone(),
            ran_ms: ms(self.started.elapsed()),
            timeout_ms: self.timeout.map(ms),
        }
    }
}

async fn if_some<F: Future>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn end_of(status: ExitStatus) -> ExecEnd {
    status.signal().map_or(ExecEnd::Finished, |signal| ExecEnd::Killed { signal })
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", exit_code(status)),
    }
}

fn loss_notice(status: ExitStatus) -> Vec<u8> {
    let how = describe(status);
    format!("The Python process ended ({how}); it was restarted and its variables are lost.\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_been_killed_is_waited_for_and_not_asked_after() {
        let started = Instant::now();
        let kill_at = started + KILL_AFTER;
        let mut current = Current {
            code: Code::Python,
            excerpt: String::new(),
            started,
            timeout: Some(Duration::ZERO),
            cancelling: None,
        };
        assert_eq!(current.deadline(), Some(started));
        let mut cancelling = Cancelling { next: Some((Signal::INT, started)), kill_at };
        assert_eq!(cancelling.due(started), Some(Signal::INT));
        assert_eq!(cancelling.due(started), None);
        assert_eq!(cancelling.due(kill_at), Some(Signal::KILL));
        current.cancelling = Some(cancelling);
        assert_eq!(current.deadline(), None);
    }
}

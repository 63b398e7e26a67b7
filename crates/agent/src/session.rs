//! The executions of one guest: their queue, and how much output each may still send.
//!
//! Decides and accounts only. What runs them is `serve`; nothing here does I/O or knows the time.

use podflare_wire::guest::{Event, ExecContext, ExecEnd, ExecId, Language, OutputStream};
use podflare_wire::limits::{CODE_LEN_MAX, EXECS_MAX, OUTPUT_CHUNK_LEN_MAX, OUTPUT_WINDOW_LEN};
use std::collections::VecDeque;

/// Exit code of an execution that could not be started, as shells say it.
const EXIT_CODE_NOT_STARTED: i32 = 127;
/// Exit codes of executions that were ended before they began: of an interrupted one, and as timeout(1) says it.
pub(crate) const EXIT_CODE_CANCELLED: i32 = 130;
pub(crate) const EXIT_CODE_TIMED_OUT: i32 = 124;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Execution {} was requested twice on one connection", .0.0)]
pub(crate) struct DuplicateExec(ExecId);

/// Code that waits for its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) exec: ExecId,
    pub(crate) language: Language,
    pub(crate) code: String,
    pub(crate) context: ExecContext,
    /// Its reader wants to know when it starts.
    pub(crate) announce: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    waiting: VecDeque<Job>,
    running: Option<Account>,
    /// Ended, but with output that its reader has not granted room for. They delay no other execution.
    ended: Vec<Ended>,
    events: Vec<Event>,
}

#[derive(Debug)]
struct Ended {
    account: Account,
    event: Event,
}

/// One execution's output on its way to its reader.
#[derive(Debug)]
struct Account {
    exec: ExecId,
    reader: Reader,
    /// Why it does not run to its end of itself: the first reason.
    cut: Option<ExecEnd>,
    /// Bytes that may be sent before the reader grants more.
    room: usize,
    /// What did not fit. Bounded by what pipes hold, because nothing more is read meanwhile.
    held: VecDeque<(OutputStream, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Reading,
    /// The execution is being cancelled: output beyond its room is dropped, so that a full window does
    /// not keep the process from ending.
    Leaving,
    /// Its connection is gone: all output is dropped.
    Gone,
    /// It has run since before this connection, which is told its end and no more.
    Inherited,
}

impl Session {
    /// Takes an execution into the queue, or ends it at once when it breaks a limit.
    pub(crate) fn submit(&mut self, job: Job) -> Result<(), DuplicateExec> {
        if self.knows(job.exec) {
            return Err(DuplicateExec(job.exec));
        }
        let refusal = if self.len() >= EXECS_MAX {
            format!("{EXECS_MAX} executions already wait or run in this sandbox")
        } else if job.code.len() > CODE_LEN_MAX {
            format!("The code has {} bytes, the limit is {CODE_LEN_MAX}", job.code.len())
        } else {
            self.waiting.push_back(job);
            return Ok(());
        };
        self.events.push(not_started(job.exec, refusal));
        Ok(())
    }

    /// The next execution, if none runs. It counts as running until [`Session::end`].
    pub(crate) fn start_next(&mut self) -> Option<Job> {
        if self.running.is_some() {
            return None;
        }
        let job = self.waiting.pop_front()?;
        self.running = Some(Account::new(job.exec));
        if job.announce {
            self.events.push(Event::Started { exec: job.exec });
        }
        Some(job)
    }

    /// The running execution's.
    pub(crate) fn reader(&self) -> Option<Reader> {
        self.running.as_ref().map(|account| account.reader)
    }

    /// How many bytes of the running execution's output may be read from it now.
    pub(crate) fn room(&self) -> usize {
        self.running.as_ref().map_or(usize::MAX, Account::room)
    }

    /// Output of the running execution. More than its room is held until there is room.
    pub(crate) fn output(&mut self, stream: OutputStream, data: Vec<u8>) {
        if let Some(account) = &mut self.running {
            account.send(stream, data, &mut self.events);
        }
    }

    /// The running execution has ended. Its last event follows the output that is still held.
    pub(crate) fn end(&mut self, exit_code: i32, end: ExecEnd) {
        let Some(account) = self.running.take() else { return };
        if account.reader == Reader::Gone {
            return;
        }
        let end = account.cut.clone().unwrap_or(end);
        let event = Event::Exited { exec: account.exec, exit_code, end };
        if account.held.is_empty() {
            self.events.push(event);
        } else {
            self.ended.push(Ended { account, event });
        }
    }

    /// The running execution turned out to be impossible to start.
    pub(crate) fn end_not_started(&mut self, message: String) {
        self.end(EXIT_CODE_NOT_STARTED, ExecEnd::NotStarted { message });
    }

    /// The reader has taken `bytes` of an execution's output. One that has ended meanwhile is no error.
    pub(crate) fn grant(&mut self, exec: ExecId, bytes: u32) {
        let ended = self.ended.iter_mut().map(|ended| &mut ended.account);
        if let Some(account) = self.running.iter_mut().chain(ended).find(|account| account.is_of(exec)) {
            account.grant(bytes as usize, &mut self.events);
        }
        let done = self.ended.extract_if(.., |ended| ended.account.held.is_empty());
        self.events.extend(done.map(|ended| ended.event));
    }

    /// True if the execution runs and must now be interrupted. One that waits, or that only waits for
    /// its reader, ends at once.
    pub(crate) fn cancel(&mut self, exec: ExecId) -> bool {
        if let Some(account) = self.running.as_mut().filter(|account| account.is_of(exec)) {
            return account.cut_off(ExecEnd::Cancelled);
        }
        if let Some(place) = self.waiting.iter().position(|job| job.exec == exec) {
            self.waiting.remove(place);
            let end = ExecEnd::Cancelled;
            self.events.push(Event::Exited { exec, exit_code: EXIT_CODE_CANCELLED, end });
        }
        let dropped = self.ended.extract_if(.., |ended| ended.account.is_of(exec));
        self.events.extend(dropped.map(|ended| ended.event));
        false
    }

    /// The running execution's time is over. True if it must now be interrupted.
    pub(crate) fn time_out(&mut self) -> bool {
        self.running.as_mut().is_some_and(|account| account.cut_off(ExecEnd::TimedOut))
    }

    /// A new connection is told of what runs without a reader, if anything does.
    pub(crate) fn inherit(&mut self) -> bool {
        let Some(account) = self.running.as_mut().filter(|account| account.reader == Reader::Gone) else {
            return false;
        };
        account.exec = ExecId::INHERITED;
        account.reader = Reader::Inherited;
        true
    }

    /// The connection is gone. What runs goes on without a reader; what only waits is dropped, so
    /// that a copy of the machine does not run what its source had yet to start.
    pub(crate) fn detach(&mut self) {
        self.waiting.clear();
        self.ended.clear();
        self.events.clear();
        if let Some(account) = &mut self.running {
            account.reader = Reader::Gone;
            account.held.clear();
        }
    }

    /// What the reader is to be told, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some()) + self.ended.len()
    }

    fn knows(&self, exec: ExecId) -> bool {
        self.waiting.iter().any(|job| job.exec == exec)
            || self.running.as_ref().is_some_and(|account| account.is_of(exec))
            || self.ended.iter().any(|ended| ended.account.is_of(exec))
    }
}

impl Account {
    fn new(exec: ExecId) -> Account {
        let room = OUTPUT_WINDOW_LEN as usize;
        Account { exec, reader: Reader::Reading, cut: None, room, held: VecDeque::new() }
    }

    fn is_of(&self, exec: ExecId) -> bool {
        self.exec == exec && self.reader != Reader::Gone
    }

    /// True if there was no reason before this one.
    fn cut_off(&mut self, why: ExecEnd) -> bool {
        self.held.clear();
        if self.reader == Reader::Reading {
            self.reader = Reader::Leaving;
        }
        let is_first = self.cut.is_none();
        self.cut.get_or_insert(why);
        is_first
    }

    fn room(&self) -> usize {
        match self.reader {
            Reader::Reading if self.held.is_empty() => self.room,
            Reader::Reading => 0,
            Reader::Leaving | Reader::Gone | Reader::Inherited => usize::MAX,
        }
    }

    fn send(&mut self, stream: OutputStream, mut data: Vec<u8>, events: &mut Vec<Event>) {
        if matches!(self.reader, Reader::Gone | Reader::Inherited) {
            return;
        }
        while self.held.is_empty() && self.room > 0 && !data.is_empty() {
            let rest = data.split_off(data.len().min(self.room).min(OUTPUT_CHUNK_LEN_MAX));
            self.room -= data.len();
            events.push(Event::Output { exec: self.exec, stream, data });
            data = rest;
        }
        if !data.is_empty() && self.reader == Reader::Reading {
            self.held.push_back((stream, data));
        }
    }

    fn grant(&mut self, bytes: usize, events: &mut Vec<Event>) {
        self.room = self.room.saturating_add(bytes).min(OUTPUT_WINDOW_LEN as usize);
        for (stream, data) in std::mem::take(&mut self.held) {
            self.send(stream, data, events);
        }
    }
}

fn not_started(exec: ExecId, message: String) -> Event {
    Event::Exited { exec, exit_code: EXIT_CODE_NOT_STARTED, end: ExecEnd::NotStarted { message } }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = OUTPUT_WINDOW_LEN as usize;

    fn job(exec: u32) -> Job {
        let context = ExecContext::default();
        Job { exec: ExecId(exec), language: Language::Python, code: String::new(), context, announce: false }
    }

    fn session_running(execs: u32) -> Session {
        let mut session = Session::default();
        for exec in 0..execs {
            session.submit(job(exec)).unwrap();
        }
        assert_eq!(session.start_next().unwrap().exec, ExecId(0));
        session
    }

    fn output_len(events: &[Event]) -> usize {
        let len = |event: &Event| if let Event::Output { data, .. } = event { data.len() } else { 0 };
        events.iter().map(len).sum()
    }

    fn ends(events: &[Event]) -> Vec<(u32, ExecEnd)> {
        let end = |event: &Event| match event {
            Event::Exited { exec, end, .. } => Some((exec.0, end.clone())),
            _ => None,
        };
        events.iter().filter_map(end).collect()
    }

    #[test]
    fn one_execution_runs_at_a_time_in_the_order_of_requests() {
        let mut session = session_running(3);
        assert_eq!(session.start_next(), None);
        session.end(0, ExecEnd::Finished);
        assert_eq!(session.start_next().unwrap().exec, ExecId(1));
        session.end(0, ExecEnd::Finished);
        assert_eq!(session.start_next().unwrap().exec, ExecId(2));
    }

    #[test]
    fn executions_over_the_limit_end_at_once_and_the_others_stay() {
        let mut session = session_running(u32::try_from(EXECS_MAX).unwrap());
        session.submit(job(1000)).unwrap();
        assert!(matches!(ends(&session.take_events())[..], [(1000, ExecEnd::NotStarted { .. })]));
        assert_eq!(session.len(), EXECS_MAX);
    }

    #[test]
    fn an_execution_asked_for_twice_is_an_error() {
        let mut session = session_running(2);
        assert_eq!(session.submit(job(0)), Err(DuplicateExec(ExecId(0))));
        assert_eq!(session.submit(job(1)), Err(DuplicateExec(ExecId(1))));
    }

    #[test]
    fn output_stops_at_the_window_and_goes_on_with_a_grant() {
        let mut session = session_running(1);
        session.output(OutputStream::Stdout, vec![b'x'; WINDOW + 5]);
        let events = session.take_events();
        assert_eq!(output_len(&events), WINDOW);
        for event in &events {
            assert!(matches!(event, Event::Output { data, .. } if data.len() <= OUTPUT_CHUNK_LEN_MAX));
        }
        assert_eq!(session.room(), 0);

        session.grant(ExecId(0), 3);
        assert_eq!((output_len(&session.take_events()), session.room()), (3, 0));
        session.grant(ExecId(0), 3);
        assert_eq!((output_len(&session.take_events()), session.room()), (2, 1));
    }

    #[test]
    fn the_end_follows_held_output_and_delays_no_other_execution() {
        let mut session = session_running(2);
        session.output(OutputStream::Stdout, vec![b'x'; WINDOW + 5]);
        session.end(0, ExecEnd::Finished);
        assert_eq!(ends(&session.take_events()), []);
        assert_eq!(session.start_next().unwrap().exec, ExecId(1));

        session.grant(ExecId(0), 5);
        let events = session.take_events();
        assert_eq!((output_len(&events), ends(&events)), (5, vec![(0, ExecEnd::Finished)]));
        assert!(matches!(events.last(), Some(Event::Exited { .. })));
    }

    #[test]
    fn a_grant_never_opens_more_than_the_window() {
        let mut session = session_running(1);
        session.grant(ExecId(0), u32::MAX);
        assert_eq!(session.room(), WINDOW);
    }

    #[test]
    fn a_waiting_execution_is_cancelled_at_once_and_a_running_one_only_interrupted_once() {
        let mut session = session_running(2);
        assert!(!session.cancel(ExecId(1)));
        assert_eq!(ends(&session.take_events()), [(1, ExecEnd::Cancelled)]);
        assert!(session.cancel(ExecId(0)));
        assert!(!session.cancel(ExecId(0)));
        session.end(0, ExecEnd::Finished);
        assert_eq!(ends(&session.take_events()), [(0, ExecEnd::Cancelled)]);
    }

    #[test]
    fn the_first_reason_to_end_an_execution_is_the_one_that_is_told() {
        let mut session = session_running(1);
        assert!(session.time_out());
        assert!(!session.time_out());
        assert!(!session.cancel(ExecId(0)));
        session.end(0, ExecEnd::Finished);
        assert_eq!(ends(&session.take_events()), [(0, ExecEnd::TimedOut)]);
    }

    #[test]
    fn only_an_execution_that_is_to_be_announced_tells_its_start() {
        let mut session = session_running(1);
        session.submit(Job { announce: true, ..job(1) }).unwrap();
        assert_eq!(session.take_events(), []);
        session.end(0, ExecEnd::Finished);
        session.take_events();
        session.start_next();
        assert_eq!(session.take_events(), [Event::Started { exec: ExecId(1) }]);
    }

    #[test]
    fn an_inherited_execution_can_be_cancelled_and_tells_its_end_only() {
        let mut session = session_running(1);
        assert!(!session.inherit(), "it has a reader");
        session.detach();
        assert!(session.inherit());
        session.output(OutputStream::Stdout, vec![b'x'; 5]);
        assert!(!session.cancel(ExecId(0)), "that name was another connection's");
        assert!(session.cancel(ExecId::INHERITED));
        session.end(130, ExecEnd::Finished);
        let end = Event::Exited { exec: ExecId::INHERITED, exit_code: 130, end: ExecEnd::Cancelled };
        assert_eq!(session.take_events(), [end]);
    }

    #[test]
    fn a_cancelled_execution_is_never_held_up_by_its_window() {
        let mut session = session_running(1);
        session.output(OutputStream::Stdout, vec![b'x'; WINDOW + 5]);
        session.cancel(ExecId(0));
        assert_eq!(session.room(), usize::MAX);
        session.output(OutputStream::Stdout, vec![b'x'; 5]);
        session.end(130, ExecEnd::Finished);
        let events = session.take_events();
        assert_eq!((output_len(&events), ends(&events)), (WINDOW, vec![(0, ExecEnd::Cancelled)]));
    }

    #[test]
    fn cancelling_what_only_waits_for_its_reader_ends_it_with_its_own_end() {
        let mut session = session_running(1);
        session.output(OutputStream::Stdout, vec![b'x'; WINDOW + 5]);
        session.end(3, ExecEnd::Finished);
        session.cancel(ExecId(0));
        assert_eq!(ends(&session.take_events()), [(0, ExecEnd::Finished)]);
    }

    #[test]
    fn without_its_connection_an_execution_goes_on_silently_and_the_queue_is_dropped() {
        let mut session = session_running(2);
        session.detach();
        assert_eq!(session.room(), usize::MAX);
        session.output(OutputStream::Stdout, vec![b'x'; 2 * WINDOW]);

        session.submit(job(0)).unwrap();
        session.grant(ExecId(0), 1);
        session.cancel(ExecId(7));
        session.end(0, ExecEnd::Finished);
        assert_eq!(session.take_events(), []);
        assert_eq!(session.start_next().unwrap().exec, ExecId(0));
    }
}

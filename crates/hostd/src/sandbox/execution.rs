//! One execution as hostd sees it: its output turned into events, and how much more it may send.
//!
//! Output is granted back to the guest when the reader has taken it, or at once when there is none. A
//! slow reader therefore stops its own execution and no other. Lines can be much longer as events than
//! as output, so what waits for the reader is also bounded as events: output over that is held back raw.

use super::events::{EventWriter, unix_time_ms};
use super::lines::Lines;
use super::replay::Replay;
use bytes::Bytes;
use podflare_api::exec::{self, ExecEventKind, ExecState, ExecView, ExitReason};
use podflare_api::id;
use podflare_wire::guest::{ExecEnd, ExecId, Inherited, Language, OutputStream};
use podflare_wire::limits::OUTPUT_WINDOW_LEN;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes after which a grant or a report is worth a message.
pub const GRANT_BATCH_LEN: u32 = OUTPUT_WINDOW_LEN / 4;

/// Bytes of events that may wait for a reader before output is held back.
const QUEUED_EVENTS_LEN_MAX: usize = OUTPUT_WINDOW_LEN as usize;

/// The exit code of an execution whose sandbox or agent ended under it, as after SIGKILL.
pub const EXIT_ABORTED: i32 = 137;
const EXIT_CANCELLED: i32 = 130;
/// As timeout(1) says it.
const EXIT_TIMED_OUT: i32 = 124;
const EXIT_NOT_STARTED: i32 = 127;
const EXIT_SIGNAL_BASE: i32 = 128;

/// Whole events for a reader.
#[derive(Debug)]
pub struct Chunk {
    pub events: Bytes,
    /// Bytes of output that the reader has taken with this.
    pub output_len: u32,
}

/// What was asked for, as those see it who look at what runs.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: id::ExecId,
    pub language: Language,
    pub excerpt: String,
    pub requested_at_ms: u64,
    pub timeout_ms: Option<u64>,
    pub cancel_on_disconnect: bool,
    /// It has run since before the machine was copied.
    pub inherited: bool,
}

/// What an execution's reader has taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    pub output_len: u32,
    pub events_len: usize,
}

/// A place among the executions of a sandbox. Its reader holds it too: events that nobody reads take memory
/// when the execution has long ended.
pub type Place = Arc<OwnedSemaphorePermit>;

/// What an agent may not do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    #[error("it sent more output than it may")]
    WindowOverrun,
    #[error("it sent output of an execution that does not run")]
    NotRunning,
}

#[derive(Debug)]
pub struct Execution {
    pub id: ExecId,
    /// The agent that was asked for it, counted within the sandbox.
    pub incarnation: u32,
    order: Order,
    started_at_ms: Option<u64>,
    writer: EventWriter,
    stdout: Lines,
    stderr: Lines,
    reader: Option<mpsc::UnboundedSender<Chunk>>,
    /// Output that has arrived and has not been granted again.
    on_way_len: u32,
    /// The part of it that can be granted as soon as there is enough.
    grantable_len: u32,
    /// Events that the reader has not taken yet, in bytes.
    queued_len: usize,
    held: VecDeque<Happening>,
    exited: bool,
    /// Why, if it has not ended by itself.
    reason: Option<ExitReason>,
    _place: Place,
    _code_room: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Happening {
    Output(OutputStream, Vec<u8>),
    Exited(i32, ExecEnd),
}

impl Execution {
    pub fn new(
        id: ExecId,
        order: Order,
        reader: Option<mpsc::UnboundedSender<Chunk>>,
        place: Place,
        code_room: OwnedSemaphorePermit,
    ) -> Execution {
        Execution {
            id,
            incarnation: 0,
            order,
            started_at_ms: None,
            writer: EventWriter::default(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            reader,
            on_way_len: 0,
            grantable_len: 0,
            queued_len: 0,
            held: VecDeque::new(),
            exited: false,
            reason: None,
            _place: place,
            _code_room: code_room,
        }
    }

    /// What still runs in a machine that has just been copied. It has no reader and leaves no history: that is its
    /// source's.
    pub fn inherited(inherited: &Inherited, place: Place, code_room: OwnedSemaphorePermit) -> Execution {
        let started_at_ms = unix_time_ms().saturating_sub(inherited.ran_ms);
        let order = Order {
            id: id::ExecId::random(),
            language: inherited.language,
            excerpt: podflare_wire::guest::excerpt(&inherited.excerpt).to_owned(),
            requested_at_ms: started_at_ms,
            timeout_ms: inherited.timeout_ms,
            cancel_on_disconnect: false,
            inherited: true,
        };
        let execution = Execution::new(ExecId::INHERITED, order, None, place, code_room);
        Execution { started_at_ms: Some(started_at_ms), ..execution }
    }

    pub fn order(&self) -> &Order {
        &self.order
    }

    /// It runs from now on.
    pub fn start(&mut self) {
        self.started_at_ms.get_or_insert_with(unix_time_ms);
    }

    pub fn view(&self) -> ExecView {
        let language = match self.order.language {
            Language::Python => exec::Language::Python,
            Language::Bash => exec::Language::Bash,
        };
        let state = if self.started_at_ms.is_some() { ExecState::Running } else { ExecState::Queued };
        ExecView {
            id: self.order.id.clone(),
            language,
            state,
            code: self.order.excerpt.clone(),
            requested_at_ms: self.order.requested_at_ms,
            started_at_ms: self.started_at_ms,
            timeout_ms: self.order.timeout_ms,
            inherited: self.order.inherited,
        }
    }

    /// It has ended in the guest.
    pub fn has_exited(&self) -> bool {
        self.exited
    }

    /// All its events have been given to the reader.
    pub fn is_finished(&self) -> bool {
        self.exited && self.held.is_empty()
    }

    /// Takes output, unless the guest has sent more than it may.
    pub fn output(
        &mut self,
        stream: OutputStream,
        data: Vec<u8>,
        replay: &mut Replay,
    ) -> Result<(), OutputError> {
        if self.exited {
            return Err(OutputError::NotRunning);
        }
        let len = u32::try_from(data.len()).map_err(|_| OutputError::WindowOverrun)?;
        self.on_way_len = self.on_way_len.checked_add(len).ok_or(OutputError::WindowOverrun)?;
        if self.on_way_len > OUTPUT_WINDOW_LEN {
            return Err(OutputError::WindowOverrun);
        }
        self.happen(Happening::Output(stream, data), replay);
        Ok(())
    }

    /// Takes the exit, once.
    pub fn exited(&mut self, exit_code: i32, end: ExecEnd, replay: &mut Replay) {
        if self.exited {
            return;
        }
        self.exited = true;
        self.happen(Happening::Exited(exit_code, end), replay);
    }

    /// Bytes of lines that have not ended yet.
    pub fn unfinished_len(&self) -> usize {
        self.stdout.partial_len() + self.stderr.partial_len()
    }

    /// Ends the unfinished lines where they are, but for a character that has only begun.
    pub fn cut_lines(&mut self, replay: &mut Replay) {
        let mut kinds = Vec::new();
        self.stdout.cut(|line| kinds.push(kind(OutputStream::Stdout, line)));
        self.stderr.cut(|line| kinds.push(kind(OutputStream::Stderr, line)));
        self.emit(kinds, 0, replay);
    }

    /// The reader has taken events, so that more can follow.
    pub fn taken(&mut self, taken: Taken, replay: &mut Replay) {
        self.grantable_len += taken.output_len;
        self.queued_len = self.queued_len.saturating_sub(taken.events_len);
        self.release(replay);
    }

    /// Nobody reads any more; the events still go into the history.
    pub fn reader_gone(&mut self, replay: &mut Replay) {
        self.reader = None;
        self.queued_len = 0;
        self.release(replay);
        self.grantable_len = self.on_way_len;
    }

    /// Bytes to grant to the guest now, if a message is worth it.
    pub fn take_grant(&mut self) -> Option<u32> {
        if self.exited || self.grantable_len < GRANT_BATCH_LEN {
            return None;
        }
        self.on_way_len -= self.grantable_len;
        Some(std::mem::take(&mut self.grantable_len))
    }

    /// Gives all that is held to the reader, however slow it is, and ends with `reason` what has not ended.
    pub fn abort(mut self, reason: &str, replay: &mut Replay) {
        while let Some(happening) = self.held.pop_front() {
            self.show(happening, replay);
        }
        if self.exited {
            return;
        }
        let mut kinds = Vec::new();
        self.finish_lines(&mut kinds);
        kinds.push(ExecEventKind::Stderr(reason.to_owned()));
        kinds.push(ExecEventKind::Exit(EXIT_ABORTED));
        self.reason = Some(ExitReason::SandboxEnded);
        self.emit(kinds, 0, replay);
    }

    fn happen(&mut self, happening: Happening, replay: &mut Replay) {
        self.held.push_back(happening);
        self.release(replay);
    }

    /// Turns what is held into events, as far as the reader keeps up.
    fn release(&mut self, replay: &mut Replay) {
        while self.queued_len <= QUEUED_EVENTS_LEN_MAX {
            let Some(happening) = self.held.pop_front() else { return };
            self.show(happening, replay);
        }
    }

    /// Turns what has happened into events.
    fn show(&mut self, happening: Happening, replay: &mut Replay) {
        let output_len = u32::try_from(happening.output_len()).unwrap_or(u32::MAX);
        let mut kinds = Vec::new();
        match happening {
            Happening::Output(stream, data) => {
                let lines = match stream {
                    OutputStream::Stdout => &mut self.stdout,
                    OutputStream::Stderr => &mut self.stderr,
                };
                lines.push(&data, |line| kinds.push(kind(stream, line)));
            }
            Happening::Exited(exit_code, end) => {
                self.finish_lines(&mut kinds);
                self.reason = reason(&end);
                kinds.extend(explain(&end, &self.order).map(ExecEventKind::Stderr));
                kinds.push(ExecEventKind::Exit(final_code(exit_code, &end)));
            }
        }
        self.emit(kinds, output_len, replay);
    }

    fn finish_lines(&mut self, kinds: &mut Vec<ExecEventKind>) {
        self.stdout.finish(|line| kinds.push(kind(OutputStream::Stdout, line)));
        self.stderr.finish(|line| kinds.push(kind(OutputStream::Stderr, line)));
    }

    fn emit(&mut self, kinds: Vec<ExecEventKind>, output_len: u32, replay: &mut Replay) {
        if kinds.is_empty() || self.order.inherited {
            // An unfinished line waits here, not at the reader. What is inherited is told to nobody.
            self.grantable_len += output_len;
            return;
        }
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(kinds.len());
        for kind in kinds {
            match kind {
                ExecEventKind::Exit(code) => {
                    self.writer.write_exit(code, &self.order.id, self.reason, &mut text);
                }
                output => self.writer.write(output, &mut text),
            }
            ends.push(text.len());
        }
        let events = Bytes::from(text);
        if let [_] = ends[..] {
            replay.push(events.clone());
        } else {
            let mut start = 0;
            for end in ends {
                // A slice would keep the whole chunk in memory for one short line.
                replay.push(Bytes::copy_from_slice(&events[start..end]));
                start = end;
            }
        }
        let events_len = events.len();
        let chunk = Chunk { events, output_len };
        if self.reader.as_ref().is_some_and(|reader| reader.send(chunk).is_ok()) {
            self.queued_len += events_len;
        } else {
            self.grantable_len += output_len;
        }
    }
}

impl Happening {
    fn output_len(&self) -> usize {
        match self {
            Happening::Output(_, data) => data.len(),
            Happening::Exited(..) => 0,
        }
    }
}

fn kind(stream: OutputStream, line: &str) -> ExecEventKind {
    match stream {
        OutputStream::Stdout => ExecEventKind::Stdout(line.to_owned()),
        OutputStream::Stderr => ExecEventKind::Stderr(line.to_owned()),
    }
}

/// What the reader is told beside the exit code.
fn explain(end: &ExecEnd, order: &Order) -> Option<String> {
    match (end, order.language) {
        (ExecEnd::Finished, _) => None,
        (ExecEnd::Cancelled, _) => Some("the execution was cancelled".to_owned()),
        (ExecEnd::TimedOut, _) => {
            let timeout_ms = order.timeout_ms.unwrap_or_default();
            Some(format!("the execution was cancelled: its timeout_ms of {timeout_ms} was over"))
        }
        (ExecEnd::Killed { signal }, Language::Python) => Some(format!(
            "the Python REPL was killed by signal {signal} and has been restarted; its variables are lost"
        )),
        (ExecEnd::Killed { signal }, Language::Bash) => Some(format!("bash was killed by signal {signal}")),
        (ExecEnd::NotStarted { message }, _) => Some(format!("the execution was not started: {message}")),
    }
}

fn reason(end: &ExecEnd) -> Option<ExitReason> {
    match end {
        ExecEnd::Finished => None,
        ExecEnd::Cancelled => Some(ExitReason::Cancelled),
        ExecEnd::TimedOut => Some(ExitReason::Timeout),
        ExecEnd::Killed { .. } => Some(ExitReason::Killed),
        ExecEnd::NotStarted { .. } => Some(ExitReason::NotStarted),
    }
}

fn final_code(exit_code: i32, end: &ExecEnd) -> i32 {
    match end {
        ExecEnd::Finished => exit_code,
        ExecEnd::Cancelled => EXIT_CANCELLED,
        ExecEnd::TimedOut => EXIT_TIMED_OUT,
        ExecEnd::Killed { signal } => EXIT_SIGNAL_BASE.saturating_add(*signal),
        ExecEnd::NotStarted { .. } => EXIT_NOT_STARTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_api::exec::ExecEvent;
    use tokio::sync::Semaphore;

    fn order() -> Order {
        Order {
            id: id::ExecId::random(),
            language: Language::Python,
            excerpt: String::new(),
            requested_at_ms: 0,
            timeout_ms: Some(7),
            cancel_on_disconnect: false,
            inherited: false,
        }
    }

    fn execution() -> (Execution, mpsc::UnboundedReceiver<Chunk>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let execution = Execution::new(ExecId(1), order(), Some(sender), Arc::new(permit()), permit());
        (execution, receiver)
    }

    fn events(reader: &mut mpsc::UnboundedReceiver<Chunk>) -> Vec<ExecEventKind> {
        let mut kinds = Vec::new();
        while let Ok(chunk) = reader.try_recv() {
            for line in std::str::from_utf8(&chunk.events).unwrap().lines() {
                kinds.push(serde_json::from_str::<ExecEvent>(line).unwrap().kind);
            }
        }
        kinds
    }

    fn ended_with(end: ExecEnd) -> Vec<ExecEventKind> {
        let (mut execution, mut reader) = execution();
        execution.exited(5, end, &mut Replay::default());
        assert!(execution.is_finished());
        events(&mut reader)
    }

    #[test]
    fn an_unfinished_line_comes_before_the_exit() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.output(OutputStream::Stdout, b"one\ntw".to_vec(), &mut replay).unwrap();
        execution.output(OutputStream::Stderr, b"bad".to_vec(), &mut replay).unwrap();
        execution.output(OutputStream::Stdout, b"o".to_vec(), &mut replay).unwrap();
        execution.exited(0, ExecEnd::Finished, &mut replay);
        let expected = [
            ExecEventKind::Stdout("one".into()),
            ExecEventKind::Stdout("two".into()),
            ExecEventKind::Stderr("bad".into()),
            ExecEventKind::Exit(0),
        ];
        assert_eq!(events(&mut reader), expected);
        assert_eq!(replay.events().len(), 4);
    }

    #[test]
    fn every_end_has_an_exit_code_and_a_reason() {
        assert_eq!(ended_with(ExecEnd::Finished), [ExecEventKind::Exit(5)]);
        for (end, code, word) in [
            (ExecEnd::Cancelled, 130, "cancelled"),
            (ExecEnd::TimedOut, 124, "timeout_ms of 7"),
            (ExecEnd::Killed { signal: 9 }, 137, "variables are lost"),
            (ExecEnd::NotStarted { message: "no memory".into() }, 127, "no memory"),
        ] {
            let events = ended_with(end);
            assert!(matches!(&events[0], ExecEventKind::Stderr(text) if text.contains(word)), "{events:?}");
            assert_eq!(events[1..], [ExecEventKind::Exit(code)]);
        }
    }

    #[test]
    fn a_guest_that_overruns_its_window_is_found_out() {
        let (mut execution, _reader) = execution();
        let mut replay = Replay::default();
        let window = vec![b'\n'; OUTPUT_WINDOW_LEN as usize];
        execution.output(OutputStream::Stdout, window, &mut replay).unwrap();
        assert_eq!(
            execution.output(OutputStream::Stdout, vec![b'x'], &mut replay),
            Err(OutputError::WindowOverrun)
        );
    }

    #[test]
    fn nothing_follows_an_exit() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.exited(0, ExecEnd::Finished, &mut replay);
        execution.exited(1, ExecEnd::Finished, &mut replay);
        let late = execution.output(OutputStream::Stdout, b"late\n".to_vec(), &mut replay);
        assert_eq!(late, Err(OutputError::NotRunning));
        assert_eq!(events(&mut reader), [ExecEventKind::Exit(0)]);
    }

    #[test]
    fn a_cut_line_is_two() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.output(OutputStream::Stdout, b"one\xe2\x82".to_vec(), &mut replay).unwrap();
        assert_eq!(execution.unfinished_len(), 5);
        execution.cut_lines(&mut replay);
        assert_eq!(execution.unfinished_len(), 2);
        execution.output(OutputStream::Stdout, b"\xactwo\n".to_vec(), &mut replay).unwrap();
        let lines = [ExecEventKind::Stdout("one".into()), ExecEventKind::Stdout("€two".into())];
        assert_eq!(events(&mut reader), lines);
    }

    #[test]
    fn a_remembered_line_keeps_no_others_in_memory() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.output(OutputStream::Stdout, vec![b'\n'; 1000], &mut replay).unwrap();
        let chunk = reader.try_recv().unwrap().events.as_ptr_range();
        assert!(replay.events().iter().all(|event| !chunk.contains(&event.as_ptr())));
    }

    #[test]
    fn output_is_granted_when_the_reader_has_taken_it() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        let mut line = vec![b'x'; GRANT_BATCH_LEN as usize];
        *line.last_mut().unwrap() = b'\n';
        execution.output(OutputStream::Stdout, line, &mut replay).unwrap();
        assert_eq!(execution.take_grant(), None);
        let chunk = reader.try_recv().unwrap();
        let taken = Taken { output_len: chunk.output_len, events_len: chunk.events.len() };
        execution.taken(taken, &mut replay);
        assert_eq!(execution.take_grant(), Some(GRANT_BATCH_LEN));
        assert_eq!(execution.take_grant(), None);
    }

    #[test]
    fn an_unfinished_line_and_output_without_a_reader_are_granted_at_once() {
        let (mut execution, reader) = execution();
        let mut replay = Replay::default();
        let part = vec![b'x'; GRANT_BATCH_LEN as usize];
        execution.output(OutputStream::Stdout, part.clone(), &mut replay).unwrap();
        assert_eq!(execution.take_grant(), Some(GRANT_BATCH_LEN));
        drop(reader);
        execution.reader_gone(&mut replay);
        let lines = vec![b'\n'; GRANT_BATCH_LEN as usize];
        execution.output(OutputStream::Stdout, lines, &mut replay).unwrap();
        assert_eq!(execution.take_grant(), Some(GRANT_BATCH_LEN));
    }

    #[test]
    fn events_that_nobody_reads_in_time_are_held_back_raw() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        send_many_lines(&mut execution, &mut replay);
        execution.exited(0, ExecEnd::Finished, &mut replay);
        assert!(!execution.is_finished(), "most is still held");
        let mut kinds = Vec::new();
        while let Ok(chunk) = reader.try_recv() {
            assert!(execution.queued_len < 3 * QUEUED_EVENTS_LEN_MAX);
            let taken = Taken { output_len: chunk.output_len, events_len: chunk.events.len() };
            execution.taken(taken, &mut replay);
            kinds.extend(std::str::from_utf8(&chunk.events).unwrap().lines().map(str::to_owned));
        }
        assert!(execution.is_finished());
        assert_eq!(kinds.len(), MANY_LINES + 1);
    }

    /// More than a reader that reads nothing is given.
    const MANY_LINES: usize = 16 * 16 * 1024;

    fn send_many_lines(execution: &mut Execution, replay: &mut Replay) {
        for _ in 0..16 {
            execution.output(OutputStream::Stdout, vec![b'\n'; MANY_LINES / 16], replay).unwrap();
        }
        assert!(!execution.held.is_empty());
    }

    #[test]
    fn an_execution_that_is_aborted_is_told_why_after_all_its_output() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        send_many_lines(&mut execution, &mut replay);
        execution.output(OutputStream::Stdout, b"so far".to_vec(), &mut replay).unwrap();
        execution.abort("the sandbox has ended: it was deleted", &mut replay);
        let expected = [
            ExecEventKind::Stdout("so far".into()),
            ExecEventKind::Stderr("the sandbox has ended: it was deleted".into()),
            ExecEventKind::Exit(EXIT_ABORTED),
        ];
        let events = events(&mut reader);
        assert_eq!(events.len(), MANY_LINES + 3);
        assert_eq!(events[MANY_LINES..], expected);
    }

    #[test]
    fn an_execution_that_has_ended_before_its_sandbox_keeps_its_own_end() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        send_many_lines(&mut execution, &mut replay);
        execution.exited(-1, ExecEnd::Cancelled, &mut replay);
        execution.abort("the sandbox has ended: it was deleted", &mut replay);
        let expected = [
            ExecEventKind::Stderr("the execution was cancelled".into()),
            ExecEventKind::Exit(EXIT_CANCELLED),
        ];
        assert_eq!(events(&mut reader)[MANY_LINES..], expected);
    }
}

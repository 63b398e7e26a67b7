//! One execution as hostd sees it: its output turned into events, and how much more it may send.
//!
//! Output is granted back to the guest when the reader has taken it, or at once when there is none. A
//! slow reader therefore stops its own execution and no other. Lines can be much longer as events than
//! as output, so what waits for the reader is also bounded as events: output over that is held back raw.

use super::events::EventWriter;
use super::lines::Lines;
use super::replay::Replay;
use bytes::Bytes;
use podflare_api::exec::ExecEventKind;
use podflare_wire::guest::{ExecEnd, ExecId, Language, OutputStream};
use podflare_wire::limits::OUTPUT_WINDOW_LEN;
use std::collections::VecDeque;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Bytes after which a grant or a report is worth a message.
pub const GRANT_BATCH_LEN: u32 = OUTPUT_WINDOW_LEN / 4;

/// Bytes of events that may wait for a reader before output is held back.
const QUEUED_EVENTS_LEN_MAX: usize = OUTPUT_WINDOW_LEN as usize;

/// The exit code of an execution whose sandbox ended under it, as after SIGKILL.
pub const EXIT_SANDBOX_ENDED: i32 = 137;
const EXIT_CANCELLED: i32 = 130;
const EXIT_NOT_STARTED: i32 = 127;
const EXIT_SIGNAL_BASE: i32 = 128;

/// Whole events for a reader.
#[derive(Debug)]
pub struct Chunk {
    pub events: Bytes,
    /// Bytes of output that the reader has taken with this.
    pub output_len: u32,
}

/// What an execution's reader has taken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    pub output_len: u32,
    pub events_len: usize,
}

/// A place among the executions of a sandbox, and room for its code.
#[derive(Debug)]
pub struct Place(pub OwnedSemaphorePermit, pub OwnedSemaphorePermit);

/// What an agent may not do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    #[error("it sent more output than it may")]
    WindowOverrun,
    #[error("it sent output of an execution that has ended")]
    AfterExit,
}

#[derive(Debug)]
pub struct Execution {
    pub id: ExecId,
    language: Language,
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
    _place: Place,
}

#[derive(Debug)]
enum Happening {
    Output(OutputStream, Vec<u8>),
    Exited(i32, ExecEnd),
}

impl Execution {
    pub fn new(
        id: ExecId,
        language: Language,
        reader: mpsc::UnboundedSender<Chunk>,
        place: Place,
    ) -> Execution {
        Execution {
            id,
            language,
            writer: EventWriter::default(),
            stdout: Lines::default(),
            stderr: Lines::default(),
            reader: Some(reader),
            on_way_len: 0,
            grantable_len: 0,
            queued_len: 0,
            held: VecDeque::new(),
            exited: false,
            _place: place,
        }
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
            return Err(OutputError::AfterExit);
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

    /// Ends the unfinished lines where they are.
    pub fn cut_lines(&mut self, replay: &mut Replay) {
        let mut kinds = Vec::new();
        self.finish_lines(&mut kinds);
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

    /// The sandbox has ended: says so as the execution's last words.
    pub fn abort(mut self, reason: &str, replay: &mut Replay) {
        let held_exit = self.held.iter().find_map(|happening| match happening {
            Happening::Exited(exit_code, _) => Some(*exit_code),
            Happening::Output(..) => None,
        });
        let lost_len: usize = self.held.iter().map(Happening::output_len).sum();
        let mut kinds = Vec::new();
        self.finish_lines(&mut kinds);
        if lost_len > 0 {
            let text = format!("{lost_len} bytes of output that were not read in time are lost");
            kinds.push(ExecEventKind::Stderr(text));
        }
        if held_exit.is_none() {
            kinds.push(ExecEventKind::Stderr(format!("the sandbox has ended: {reason}")));
        }
        kinds.push(ExecEventKind::Exit(held_exit.unwrap_or(EXIT_SANDBOX_ENDED)));
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
                    kinds.extend(explain(&end, self.language).map(ExecEventKind::Stderr));
                    kinds.push(ExecEventKind::Exit(final_code(exit_code, &end)));
                }
            }
            self.emit(kinds, output_len, replay);
        }
    }

    fn finish_lines(&mut self, kinds: &mut Vec<ExecEventKind>) {
        self.stdout.finish(|line| kinds.push(kind(OutputStream::Stdout, line)));
        self.stderr.finish(|line| kinds.push(kind(OutputStream::Stderr, line)));
    }

    fn emit(&mut self, kinds: Vec<ExecEventKind>, output_len: u32, replay: &mut Replay) {
        if kinds.is_empty() {
            // An unfinished line waits here, not at the reader.
            self.grantable_len += output_len;
            return;
        }
        let mut text = Vec::new();
        let mut ends = Vec::with_capacity(kinds.len());
        for kind in kinds {
            self.writer.write(kind, &mut text);
            ends.push(text.len());
        }
        let events = Bytes::from(text);
        let mut start = 0;
        for end in ends {
            replay.push(events.slice(start..end));
            start = end;
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
fn explain(end: &ExecEnd, language: Language) -> Option<String> {
    match (end, language) {
        (ExecEnd::Finished, _) => None,
        (ExecEnd::Cancelled, _) => Some("the execution was cancelled".to_owned()),
        (ExecEnd::Killed { signal }, Language::Python) => Some(format!(
            "the Python REPL was killed by signal {signal} and has been restarted; its variables are lost"
        )),
        (ExecEnd::Killed { signal }, Language::Bash) => Some(format!("bash was killed by signal {signal}")),
        (ExecEnd::NotStarted { message }, _) => Some(format!("the execution was not started: {message}")),
    }
}

fn final_code(exit_code: i32, end: &ExecEnd) -> i32 {
    match end {
        ExecEnd::Finished => exit_code,
        ExecEnd::Cancelled => EXIT_CANCELLED,
        ExecEnd::Killed { signal } => EXIT_SIGNAL_BASE.saturating_add(*signal),
        ExecEnd::NotStarted { .. } => EXIT_NOT_STARTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podflare_api::exec::ExecEvent;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn execution() -> (Execution, mpsc::UnboundedReceiver<Chunk>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let place = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (Execution::new(ExecId(1), Language::Python, sender, Place(place(), place())), receiver)
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
        assert_eq!(late, Err(OutputError::AfterExit));
        assert_eq!(events(&mut reader), [ExecEventKind::Exit(0)]);
    }

    #[test]
    fn a_cut_line_is_two() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.output(OutputStream::Stdout, b"one".to_vec(), &mut replay).unwrap();
        assert_eq!(execution.unfinished_len(), 3);
        execution.cut_lines(&mut replay);
        assert_eq!(execution.unfinished_len(), 0);
        execution.output(OutputStream::Stdout, b"two\n".to_vec(), &mut replay).unwrap();
        let lines = [ExecEventKind::Stdout("one".into()), ExecEventKind::Stdout("two".into())];
        assert_eq!(events(&mut reader), lines);
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
        for _ in 0..16 {
            execution.output(OutputStream::Stdout, vec![b'\n'; 16 * 1024], &mut replay).unwrap();
        }
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
        assert_eq!(kinds.len(), 16 * 16 * 1024 + 1);
    }

    #[test]
    fn a_sandbox_that_ends_is_told_with_its_reason_and_what_was_lost() {
        let (mut execution, mut reader) = execution();
        let mut replay = Replay::default();
        execution.output(OutputStream::Stdout, b"so far".to_vec(), &mut replay).unwrap();
        execution.abort("it was deleted", &mut replay);
        let expected = [
            ExecEventKind::Stdout("so far".into()),
            ExecEventKind::Stderr("the sandbox has ended: it was deleted".into()),
            ExecEventKind::Exit(EXIT_SANDBOX_ENDED),
        ];
        assert_eq!(events(&mut reader), expected);
    }
}

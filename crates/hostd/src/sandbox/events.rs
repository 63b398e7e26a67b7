//! Events as lines of JSON: an execution's, and others that have no numbers.
//!
//! U+0085, U+2028 and U+2029 are escaped: JSON need not, but clients that split text into lines by
//! Unicode's rules (the published SDK does) would cut an event in two.

use bytes::Bytes;
use podflare_api::exec::{ExecEvent, ExecEventKind, ExitReason};
use podflare_api::id::ExecId;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Numbers one execution's events and writes them.
#[derive(Debug, Default)]
pub struct EventWriter {
    seq: u64,
}

impl EventWriter {
    /// Appends one event of output and its newline.
    pub fn write(&mut self, kind: ExecEventKind, text: &mut Vec<u8>) {
        self.append(kind, None, None, text);
    }

    /// Appends the exit event of an execution and its newline.
    pub fn write_exit(&mut self, code: i32, of: &ExecId, reason: Option<ExitReason>, text: &mut Vec<u8>) {
        self.append(ExecEventKind::Exit(code), Some(of.clone()), reason, text);
    }

    fn append(
        &mut self,
        kind: ExecEventKind,
        exec_id: Option<ExecId>,
        reason: Option<ExitReason>,
        text: &mut Vec<u8>,
    ) {
        let event = ExecEvent { kind, seq: self.seq, ts: unix_time_ms(), exec_id, reason };
        self.seq += 1;
        append(&event, text);
    }
}

/// One event as a line of its own.
pub fn line(event: &impl Serialize) -> Bytes {
    let mut text = Vec::new();
    append(event, &mut text);
    Bytes::from(text)
}

fn append(event: &impl Serialize, text: &mut Vec<u8>) {
    #[expect(clippy::expect_used, reason = "plain text and numbers encode, and a vector takes all")]
    event.serialize(&mut Serializer::with_formatter(&mut *text, OneLine)).expect("an event encodes");
    text.push(b'\n');
}

/// Appends a value that is plain text and numbers, and its newline.
pub fn write_line(value: &impl Serialize, text: &mut Vec<u8>) {
    #[expect(clippy::expect_used, reason = "plain text and numbers encode, and a vector takes all")]
    value.serialize(&mut Serializer::with_formatter(&mut *text, OneLine)).expect("a line encodes");
    text.push(b'\n');
}

/// Milliseconds since 1970-01-01 UTC.
pub fn unix_time_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Compact JSON without any character that ends a line in Unicode.
struct OneLine;

const LINE_ENDS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

impl Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(LINE_ENDS) {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut characters = from.chars();
            if let Some(line_end) = characters.next() {
                write!(writer, "\\u{:04x}", u32::from(line_end))?;
            }
            rest = characters.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_by_anyones_rules() {
        let data = "a\u{85}b\u{2028}c\u{2029}d\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}e € \"q\"";
        let mut text = Vec::new();
        EventWriter::default().write(ExecEventKind::Stdout(data.to_owned()), &mut text);
        let text = String::from_utf8(text).unwrap();
        let line = text.strip_suffix('\n').unwrap();
        // Every character at which Python's str.splitlines cuts.
        let cuts = "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}";
        assert!(!line.contains(|c| cuts.contains(c)), "{line:?}");
        let event: ExecEvent = serde_json::from_str(line).unwrap();
        assert_eq!(event.kind, ExecEventKind::Stdout(data.to_owned()));
    }

    #[test]
    fn events_are_numbered_from_zero() {
        let mut writer = EventWriter::default();
        let mut text = Vec::new();
        writer.write(ExecEventKind::Stderr(String::new()), &mut text);
        writer.write_exit(3, &ExecId::random(), Some(ExitReason::Killed), &mut text);
        let events: Vec<ExecEvent> = std::str::from_utf8(&text)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(events[1].kind, ExecEventKind::Exit(3));
    }
}

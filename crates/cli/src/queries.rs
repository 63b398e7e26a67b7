//! Takes out of a terminal's former output what would ask the terminal here for an answer. The program that has asked is no longer
//! waiting, and would take the answer for keys.
//!
//! The sequences are those of ECMA-48 and xterm's `ctlseqs`.

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
/// Asks for the answerback message.
const ENQ: u8 = 0x05;

/// These break a sequence off, as every ESC does.
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;

/// A sequence that is longer than this is passed on as it comes.
const SEQUENCE_LEN_MAX: usize = 4096;

/// Reports of the window: `ESC [ Ps t`.
const WINDOW_REPORTS: [&[u8]; 9] = [b"11", b"13", b"14", b"15", b"16", b"18", b"19", b"20", b"21"];

/// Output comes in pieces that may end within a sequence.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    begun: Vec<u8>,
}

impl Filter {
    /// What of this, and of what was kept before, may be shown.
    pub(crate) fn pass(&mut self, output: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(output.len());
        for &byte in output {
            if self.begun.is_empty() && byte != ESC {
                if byte != ENQ {
                    shown.push(byte);
                }
                continue;
            }
            self.begun.push(byte);
            // What an ESC breaks off is no sequence; what begins with the ESC may be one.
            while let State::BrokenOff { by } = state(&self.begun) {
                shown.extend(self.begun.drain(..by));
            }
            match state(&self.begun) {
                State::Begun if self.begun.len() < SEQUENCE_LEN_MAX => {}
                State::Query => self.begun.clear(),
                State::Begun | State::Other | State::BrokenOff { .. } => shown.append(&mut self.begun),
            }
        }
        shown
    }

    /// What was kept for the rest of its sequence.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.begun
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Begun,
    Query,
    Other,
    /// By the ESC at this place.
    BrokenOff {
        by: usize,
    },
}

fn state(sequence: &[u8]) -> State {
    match sequence {
        [ESC] => State::Begun,
        [.., CAN | SUB] => State::Other,
        [ESC, ESC] => State::BrokenOff { by: 1 },
        [ESC, b'Z'] => State::Query,
        [ESC, b'[', .., ESC] => State::BrokenOff { by: sequence.len() - 1 },
        [ESC, b'[', rest @ ..] => control(rest),
        [ESC, b']' | b'P', .., ESC] => State::Begun,
        [ESC, b']' | b'P', .., ESC, last] if *last != b'\\' => State::BrokenOff { by: sequence.len() - 2 },
        [ESC, b']', rest @ ..] => string(rest, |content| content.windows(2).any(|pair| pair == b";?")),
        [ESC, b'P', rest @ ..] => {
            string(rest, |content| content.starts_with(b"$q") || content.starts_with(b"+q"))
        }
        _ => State::Other,
    }
}

/// What is behind `ESC [`: parameters, intermediates, and a final byte.
fn control(rest: &[u8]) -> State {
    let Some((&last, before)) = rest.split_last() else { return State::Begun };
    match last {
        0x20..=0x3f => return State::Begun,
        0x40..=0x7e => {}
        _ => return State::Other,
    }
    let is_query = match last {
        b'c' | b'n' | b'x' => true,
        b'p' => before.ends_with(b"$"),
        b'q' => before.starts_with(b">"),
        b'u' | b'S' => before.starts_with(b"?"),
        b't' => WINDOW_REPORTS.contains(&before.split(|byte| *byte == b';').next().unwrap_or_default()),
        _ => false,
    };
    if is_query { State::Query } else { State::Other }
}

/// A string up to BEL or `ESC \`.
fn string(rest: &[u8], asks: impl Fn(&[u8]) -> bool) -> State {
    let ([content @ .., BEL] | [content @ .., ESC, b'\\']) = rest else { return State::Begun };
    if asks(content) { State::Query } else { State::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(output: &[u8]) -> String {
        let mut filter = Filter::default();
        let mut shown = filter.pass(output);
        shown.extend(filter.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn what_asks_for_an_answer_is_left_out_and_all_else_stays() {
        for query in [
            "\x1b[c",
            "\x1b[>c",
            "\x1b[>0c",
            "\x1b[=c",
            "\x1b[5n",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[1x",
            "\x1b[?2026$p",
            "\x1b[>q",
            "\x1b[18t",
            "\x1b[14;2t",
            "\x1b[?u",
            "\x1b]11;?\x07",
            "\x1b]4;1;?\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1bZ",
            "\x05",
        ] {
            assert_eq!(shown(format!("a{query}b").as_bytes()), "ab", "{query:?}");
        }
        for other in [
            "\x1b[1;31mred\x1b[0m",
            "\x1b[2J\x1b[H",
            "\x1b]0;title?\x07",
            "\x1b[?1049h",
            "\x1b[!p",
            "\x1b[ q",
            "\x1b[8;24;80t",
            "\x1b7\x1b8",
            "\x1b[u",
            "\x1bP1$r0m\x1b\\",
            "\x1b]8;;http://x/?a\x1b\\",
            "ünïcode",
        ] {
            assert_eq!(shown(other.as_bytes()), other, "{other:?}");
        }
    }

    #[test]
    fn a_sequence_in_pieces_is_one_sequence() {
        let mut filter = Filter::default();
        let pieces: [&[u8]; 4] = [b"a\x1b", b"[", b"6", b"nb\x1b[1"];
        let shown: Vec<u8> = pieces.iter().flat_map(|piece| filter.pass(piece)).collect();
        assert_eq!(shown, b"ab");
        assert_eq!(filter.finish(), b"\x1b[1");
    }

    #[test]
    fn a_query_behind_a_sequence_that_is_broken_off_is_a_query() {
        for begun in
            ["\x1b", "\x1b[", "\x1b[1;3", "\x1b]0;title", "\x1b]11;?", "\x1bP+q", "\x1b[2\x18", "\x1b]0;\x1a"]
        {
            assert_eq!(shown(format!("{begun}\x1b[6nb").as_bytes()), format!("{begun}b"), "{begun:?}");
            assert_eq!(shown(format!("{begun}\x1b]11;?\x07b").as_bytes()), format!("{begun}b"), "{begun:?}");
        }
        assert_eq!(shown(b"\x1b[1\x1b[2Jb"), "\x1b[1\x1b[2Jb");
        assert_eq!(shown(b"\x1b]0;title\x1bZb"), "\x1b]0;titleb");
        assert_eq!(shown(b"\x1b]0;title\x1b\x1b[cb"), "\x1b]0;title\x1bb");
    }

    #[test]
    fn a_string_without_an_end_is_shown_sooner_or_later() {
        let endless = [b"\x1b]".to_vec(), vec![b'x'; 3 * SEQUENCE_LEN_MAX]].concat();
        assert_eq!(shown(&endless).len(), endless.len());
        assert!(Filter::default().pass(&endless).len() > SEQUENCE_LEN_MAX);
    }
}

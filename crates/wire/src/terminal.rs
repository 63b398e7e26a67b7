//! hostd ↔ agent: terminals. One vsock stream for each operation, and for each attachment.
//!
//! hostd connects to [`TERMINAL_PORT`], sends one [`Request`] and reads [`Event`]s until the agent closes the stream. Only
//! for guests whose renewal is confirmed. The agent keeps the terminals and their output, so that a copy of the machine
//! has its own of both; a stream that is cut ends nothing.

use serde::{Deserialize, Serialize};

/// The vsock port of the agent's terminals.
pub const TERMINAL_PORT: u32 = 5557;

/// hostd → agent: the only message of a stream. `terminal` is a name that hostd has chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by `Ready`, then as `Attach`.
    Create { terminal: String, program: Program },
    /// Answered by `Ready`, the output that is kept, what comes, and `Exited`.
    Attach { terminal: String },
    /// Answered by `Chunk`: output from that place on, as soon as there is any.
    Read { terminal: String, since_seq: u64, len_max: u32, timeout_ms: u32 },
    /// Answered by `Done` when the terminal has taken it. At most `limits::TERMINAL_INPUT_LEN_MAX` bytes.
    Input { terminal: String, data: Vec<u8> },
    /// Answered by `Done`.
    Resize { terminal: String, size: Size },
    /// SIGKILL. Answered by `Done`, also when the program has ended.
    Kill { terminal: String },
    /// Answered by `Terminals`.
    List,
}

/// What runs in a terminal, and in what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub command: Command,
    pub size: Size,
    /// Names and values, beside those that a login has.
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Under `bash -lc`.
    Shell(String),
    /// Executed as it is; not empty.
    Argv(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

/// agent → hostd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    Ready,
    /// `seq` is the number of bytes that the terminal had put out before these; more than the last event's end where a
    /// slow reader has missed some. At most `limits::OUTPUT_CHUNK_LEN_MAX` bytes.
    Output {
        seq: u64,
        data: Vec<u8>,
    },
    /// The last event of an attachment.
    Exited {
        exit_code: i32,
    },
    Chunk(Chunk),
    Terminals(Vec<Terminal>),
    Done,
    /// The last event of any stream.
    Failed {
        cause: Cause,
        message: String,
    },
}

/// Output of a terminal from a place on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub data: Vec<u8>,
    /// Where the next one begins.
    pub next_seq: u64,
    /// Told with the last output.
    pub exit_code: Option<i32>,
    /// Output between `since_seq` and `data` is no longer kept.
    pub truncated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    pub terminal: String,
    /// The command's beginning, at most `limits::CODE_EXCERPT_LEN_MAX` bytes.
    pub label: String,
    pub created_at_ms: u64,
    pub exit_code: Option<i32>,
}

/// Why something was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    NotFound,
    /// A limit of the guest.
    TooMany,
    /// The program has ended.
    Exited,
    /// What was asked for cannot be.
    Invalid,
    /// The guest could not do it.
    Unable,
    /// The program does not read what is typed, and the terminal holds no more of it.
    Unread,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use crate::limits::{
        CODE_EXCERPT_LEN_MAX, TERMINAL_EVENT_LEN_MAX, TERMINAL_INPUT_LEN_MAX, TERMINAL_READ_LEN_MAX,
        TERMINAL_REQUEST_LEN_MAX, TERMINALS_MAX,
    };
    use proptest::prelude::*;

    #[test]
    fn the_longest_messages_fit_into_a_frame() {
        let name = || "pty_0f8fad5bd9cb469fa16570867728950e".to_owned();
        let input = Request::Input { terminal: name(), data: vec![0; TERMINAL_INPUT_LEN_MAX] };
        assert!(encode(&input).len() <= TERMINAL_REQUEST_LEN_MAX);
        let data = vec![0; TERMINAL_READ_LEN_MAX as usize];
        let chunk = Chunk { data, next_seq: u64::MAX, exit_code: Some(i32::MIN), truncated: true };
        assert!(encode(&Event::Chunk(chunk)).len() <= TERMINAL_EVENT_LEN_MAX);
        let label = "x".repeat(CODE_EXCERPT_LEN_MAX);
        let terminal =
            Terminal { terminal: name(), label, created_at_ms: u64::MAX, exit_code: Some(i32::MIN) };
        assert!(encode(&Event::Terminals(vec![terminal; TERMINALS_MAX])).len() <= TERMINAL_EVENT_LEN_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(decode::<Event>(&bytes));
            drop(decode::<Request>(&bytes));
        }
    }
}

//! hostd ↔ agent: frames on one vsock stream per sandbox.
//!
//! hostd connects to [`AGENT_PORT`] and sends [`Request::Renew`]; the agent answers with [`Event::Hello`]
//! and [`Event::Renewed`]. Only then is anything else served: a copy is never silently a twin. A newer
//! connection replaces an older one; executions go on without their reader.

use crate::limits::CODE_EXCERPT_LEN_MAX;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The agent's vsock port.
pub const AGENT_PORT: u32 = 5555;

/// Changes with every change of this file, `files.rs` or `terminal.rs`; hostd refuses an agent of another version.
pub const PROTOCOL: u32 = 7;

/// Bytes of fresh entropy that a renewal carries.
pub const ENTROPY_LEN: usize = 64;

/// hostd's name for one execution, unique on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecId(pub u32);

impl ExecId {
    /// What the agent calls Python code that has run since before its machine was copied. hostd asks for nothing
    /// under this name, but may cancel it.
    pub const INHERITED: ExecId = ExecId(u32::MAX);
}

/// hostd → agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Makes this copy its own. Must be the first request of a connection.
    Renew(Renewal),
    /// Runs code. Executions are served one at a time, in the order of their requests. The agent may
    /// send `limits::OUTPUT_WINDOW_LEN` bytes of output before it needs `Grant`.
    Exec {
        exec: ExecId,
        language: Language,
        code: String,
        context: ExecContext,
        /// The agent is to tell when it starts. hostd asks for it where others may be before it: one that starts at
        /// once needs no message of its own.
        announce: bool,
    },
    /// Interrupts an execution, or takes it out of the queue. It still ends with `Exited`.
    Cancel {
        exec: ExecId,
    },
    /// The reader has taken that many bytes of an execution's output; as many more may be sent.
    Grant {
        exec: ExecId,
        bytes: u32,
    },
    /// Tells a renewed copy the time once more, because its renewal was long on the way.
    SetClock {
        unix_time_ns: u64,
    },
    Ping {
        token: u64,
    },
}

/// What a copy gets of its own before it is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Credited to the kernel's entropy pool; user-space generators are reseeded from it.
    /// `ENTROPY_LEN` bytes.
    pub entropy: Vec<u8>,
    /// Wall clock, nanoseconds since 1970-01-01 UTC. It is late by as long as this message travels.
    pub unix_time_ns: u64,
    pub hostname: String,
    /// The copy's place in the network; `None` where the host has no network for its sandboxes.
    pub network: Option<NetworkIdentity>,
}

/// What a guest is in the network. It reaches nobody but its gateway, which also answers its DNS questions, and
/// whoever the gateway lets it reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkIdentity {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
    pub gateway: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Language {
    /// The sandbox's one Python REPL; its variables stay.
    Python,
    /// A new `bash -c` for each execution.
    Bash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// What one execution has beside its code. hostd has checked it: within `limits`, no NUL, no `=` in names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecContext {
    /// Names and values, for this execution only.
    pub env: Vec<(String, String)>,
    /// An absolute path, for this execution only.
    pub cwd: Option<String>,
    /// Empty is no input at all.
    pub stdin: Vec<u8>,
    /// How long it may run, from its start. After that it is cancelled.
    pub timeout_ms: Option<u64>,
}

/// agent → hostd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// First on every connection, and sent with the next event, whatever that is.
    Hello {
        protocol: u32,
    },
    Renewed {
        repl: ReplRenewal,
        /// Code that still runs since before the copy. It ends with `Exited`, too, as [`ExecId::INHERITED`].
        inherited: Option<Inherited>,
    },
    /// An execution that was to be announced has started.
    Started {
        exec: ExecId,
    },
    /// Part of an execution's output, as it was written; at most `limits::OUTPUT_CHUNK_LEN_MAX` bytes.
    Output {
        exec: ExecId,
        stream: OutputStream,
        data: Vec<u8>,
    },
    /// An execution's last event.
    Exited {
        exec: ExecId,
        exit_code: i32,
        end: ExecEnd,
    },
    ClockSet,
    Pong {
        token: u64,
    },
    /// The connection's request could not be served; the agent closes the connection after this.
    Failed {
        message: String,
    },
}

/// What became of the REPL's own generators (`random`, numpy, OpenSSL) in a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplRenewal {
    Done,
    /// The REPL is in code that a signal does not bring back to Python (a long computation in C,
    /// `os.system`); it renews as soon as that returns, and before it runs anything new.
    Pending,
}

/// An execution that was asked for on another machine, or by another host daemon, and whose output nobody reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub language: Language,
    /// The code's beginning, at most `limits::CODE_EXCERPT_LEN_MAX` bytes.
    pub excerpt: String,
    pub ran_ms: u64,
    pub timeout_ms: Option<u64>,
}

/// The beginning of code, for people who look at what runs.
pub fn excerpt(code: &str) -> &str {
    let ends = code.char_indices().map(|(at, character)| at + character.len_utf8());
    let len = ends.take_while(|end| *end <= CODE_EXCERPT_LEN_MAX).last().unwrap_or(0);
    &code[..len]
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEnd {
    /// It ran to its end; `exit_code` is its own.
    Finished,
    Cancelled,
    /// It was cancelled because its time was over.
    TimedOut,
    /// Its process was killed by a signal. For Python: the REPL was restarted and its variables are lost.
    Killed {
        signal: i32,
    },
    /// It could not be started.
    NotStarted {
        message: String,
    },
}

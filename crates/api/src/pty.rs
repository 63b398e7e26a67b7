//! Terminals: programs of a sandbox that have a pseudo-terminal each, and the NDJSON stream of their output.
//!
//! The names are those of the published SDK, the odd `shellCmd` included. Output travels as base64, for it is bytes; `seq`
//! counts the bytes that a terminal has put out, from 0.

use crate::id::PtyId;
use serde::{Deserialize, Serialize};

/// `POST /v1/sandboxes/{id}/pty`: one of `shellCmd` and `argv`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatePty {
    /// Run under `bash -lc`; at most 64 KiB.
    #[serde(rename = "shellCmd", default, skip_serializing_if = "Option::is_none")]
    pub shell_cmd: Option<String>,
    /// A program and its arguments, executed as they are; at most 256, and 64 KiB together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Columns, 1 to 1,000.
    #[serde(default = "cols")]
    #[schema(default = 80, minimum = 1, maximum = 1000)]
    pub cols: u16,
    /// Rows, 1 to 1,000.
    #[serde(default = "rows")]
    #[schema(default = 24, minimum = 1, maximum = 1000)]
    pub rows: u16,
    /// Pairs of name and value, beside those of a login; at most 256, and 64 KiB together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Vec<String>>)]
    pub env: Vec<(String, String)>,
    /// The directory to start in, an absolute path; otherwise `/root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

fn cols() -> u16 {
    80
}

fn rows() -> u16 {
    24
}

/// `POST …/pty/{pty}/input`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtyInput {
    /// What is typed, in base64; at most 32 KiB of bytes.
    pub data_b64: String,
}

/// `POST …/pty/{pty}/resize`. The program in the foreground gets SIGWINCH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtyResize {
    #[schema(minimum = 1, maximum = 1000)]
    pub cols: u16,
    #[schema(minimum = 1, maximum = 1000)]
    pub rows: u16,
}

/// `POST …/pty/{pty}/read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtyRead {
    /// Where to begin: 0, or the `next_seq` of the last answer.
    #[serde(default)]
    pub since_seq: u64,
    /// 1 to 262,144.
    #[serde(default = "max_bytes")]
    #[schema(default = 65_536, minimum = 1, maximum = 262_144)]
    pub max_bytes: u32,
    /// How long to wait for output, if there is none yet; what is over 30,000 is lowered to that.
    #[serde(default = "timeout_ms")]
    #[schema(default = 10_000)]
    pub timeout_ms: u64,
}

fn max_bytes() -> u32 {
    65_536
}

fn timeout_ms() -> u64 {
    10_000
}

/// Output of a terminal from a place on. None when the time was over first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtyChunk {
    pub data_b64: String,
    /// Where the next read begins.
    pub next_seq: u64,
    /// The program's exit code, told with its last output; null before that.
    pub exit_code: Option<i32>,
    /// Output between `since_seq` and this is no longer kept: the last 1 MiB is.
    pub truncated: bool,
}

/// One terminal of a list. It stays listed after its program's end, until another takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PtyInfo {
    pub pty_id: PtyId,
    /// The command's beginning, at most 256 bytes.
    pub cmd_label: String,
    /// Milliseconds since 1970-01-01 UTC, by the sandbox's clock.
    pub created_at_ms: u64,
    /// Null while the program runs; 128 and the signal's number where a signal has ended it.
    pub exit_code: Option<i32>,
}

/// One line of a terminal's stream. Blank lines between events are heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyEvent {
    /// The first event of a new terminal.
    PtyReady { session_id: PtyId },
    /// `seq` is the number of bytes that the terminal had put out before these. Where it is more than the end of the
    /// event before, the reader was too slow, and what is between is lost to it.
    PtyData { data_b64: String, seq: u64 },
    /// The exit code; the last event.
    PtyExit { data: i32 },
    /// Why there are no more events.
    PtyError { message: String },
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_those_of_the_published_protocol() {
        let data = PtyEvent::PtyData { data_b64: "aGk=".into(), seq: 7 };
        assert_eq!(
            serde_json::to_value(data).unwrap(),
            json!({"type": "pty_data", "data_b64": "aGk=", "seq": 7})
        );
        let exit = PtyEvent::PtyExit { data: 137 };
        assert_eq!(serde_json::to_value(exit).unwrap(), json!({"type": "pty_exit", "data": 137}));
        let error = PtyEvent::PtyError { message: "no".into() };
        assert_eq!(serde_json::to_value(error).unwrap(), json!({"type": "pty_error", "message": "no"}));
        let id = PtyId::random();
        let ready = PtyEvent::PtyReady { session_id: id.clone() };
        assert_eq!(
            serde_json::to_value(ready).unwrap(),
            json!({"type": "pty_ready", "session_id": id.as_str()})
        );
    }

    #[test]
    fn a_request_of_the_published_sdk_is_understood() {
        let text = r#"{"shellCmd": "top", "cols": 120, "rows": 40, "env": [["A", "b"]], "cwd": "/srv"}"#;
        let request: CreatePty = serde_json::from_str(text).unwrap();
        assert_eq!((request.shell_cmd.as_deref(), request.cols, request.rows), (Some("top"), 120, 40));
        assert_eq!(request.env, [("A".to_owned(), "b".to_owned())]);
        let request: CreatePty = serde_json::from_str(r#"{"argv": ["ls"]}"#).unwrap();
        assert_eq!((request.cols, request.rows), (80, 24));
    }
}

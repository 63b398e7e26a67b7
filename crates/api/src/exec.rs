//! Running code: the request, and the events of the NDJSON stream that answers it.

use crate::id::ExecId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The header of an answer that tells the execution's id, before its first event.
pub const EXEC_ID_HEADER: &str = "podflare-exec-id";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// The sandbox's Python REPL: variables stay from call to call.
    #[default]
    Python,
    /// A new bash for each call; only files stay.
    Bash,
}

/// `POST /v1/sandboxes/{id}/exec`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecRequest {
    /// At most 32 MiB of source text.
    pub code: String,
    #[serde(default)]
    pub language: Language,
    /// Environment variables, for this call only: at most 256, and 64 KiB of names and values together. Afterwards
    /// Python's `os.environ` has the former values of these names again, whatever the code did to them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The directory in which the code runs, an absolute path of at most 4,095 bytes. Afterwards Python is where it
    /// was before the call, wherever the code went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Standard input of bash, or what `input()` and `sys.stdin` read during the call, at most 16 MiB. Without it,
    /// the input is at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// The same in base64, for input that is not text. Not beside `stdin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_b64: Option<String>,
    /// The code is cancelled when it has run for so long: 1 to 86,400,000 ms. The time for which it waits behind
    /// other executions does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86_400_000)]
    pub timeout_ms: Option<u64>,
    /// Whether the code is cancelled when its client goes away before its end. Otherwise it runs on, and its latest
    /// output is in the sandbox's replay.
    #[serde(default)]
    pub cancel_on_disconnect: bool,
}

/// One line of an execution's stream. Blank lines between events are heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecEvent {
    #[serde(flatten)]
    pub kind: ExecEventKind,
    /// Counts the events of one execution, from 0.
    pub seq: u64,
    /// Milliseconds since 1970-01-01 UTC, by the host's clock.
    pub ts: u64,
    /// Of which execution this is the end; on exit events only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<ExecId>,
    /// Why the code did not end by itself; on exit events only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
}

/// Why code did not run to its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Its `timeout_ms` was over; the exit code is 124.
    Timeout,
    /// It was cancelled; the exit code is 130.
    Cancelled,
    /// A signal killed it; the exit code is 128 and the signal's number.
    Killed,
    /// It could not be started; the exit code is 127.
    NotStarted,
    /// Its sandbox ended, or the agent in it did; the exit code is 137.
    SandboxEnded,
}

/// `GET /v1/sandboxes/{id}/execs`: what runs, and what waits behind it, in the order of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecList {
    pub execs: Vec<ExecView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecView {
    pub id: ExecId,
    pub language: Language,
    pub state: ExecState,
    /// The code's beginning, at most 256 bytes.
    pub code: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub requested_at_ms: u64,
    /// The same; null while it waits.
    pub started_at_ms: Option<u64>,
    pub timeout_ms: Option<u64>,
    /// It has run since before this sandbox's machine was copied: the source's execution, which goes on in the copy
    /// too. Nobody reads its output here. It can be cancelled.
    pub inherited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecState {
    /// It waits for those before it.
    Queued,
    Running,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum ExecEventKind {
    /// One line of output, without its newline.
    Stdout(String),
    /// One line of error output, without its newline.
    Stderr(String),
    /// The exit code; always the last event.
    Exit(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_four_keys_of_the_published_protocol() {
        let event = |kind, seq| ExecEvent { kind, seq, ts: 1, exec_id: None, reason: None };
        let json = serde_json::to_value(event(ExecEventKind::Stdout("42".into()), 0)).unwrap();
        assert_eq!(json, serde_json::json!({"type": "stdout", "data": "42", "seq": 0, "ts": 1}));
        let json = serde_json::to_value(event(ExecEventKind::Exit(3), 1)).unwrap();
        assert_eq!(json, serde_json::json!({"type": "exit", "data": 3, "seq": 1, "ts": 1}));
    }

    #[test]
    fn language_may_be_left_out() {
        let request: ExecRequest = serde_json::from_str(r#"{"code": "1"}"#).unwrap();
        assert_eq!(request.language, Language::Python);
    }
}

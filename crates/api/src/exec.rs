//! Running code: the request, and the events of the NDJSON stream that answers it.

use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExecRequest {
    /// At most 32 MiB of source text.
    pub code: String,
    #[serde(default)]
    pub language: Language,
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
        let event = ExecEvent { kind: ExecEventKind::Stdout("42".into()), seq: 0, ts: 1 };
        let json = serde_json::to_value(event).unwrap();
        assert_eq!(json, serde_json::json!({"type": "stdout", "data": "42", "seq": 0, "ts": 1}));
        let event = ExecEvent { kind: ExecEventKind::Exit(3), seq: 1, ts: 1 };
        let json = serde_json::to_value(event).unwrap();
        assert_eq!(json, serde_json::json!({"type": "exit", "data": 3, "seq": 1, "ts": 1}));
    }

    #[test]
    fn language_may_be_left_out() {
        let request: ExecRequest = serde_json::from_str(r#"{"code": "1"}"#).unwrap();
        assert_eq!(request.language, Language::Python);
    }
}

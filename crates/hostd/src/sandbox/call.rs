//! What a client asks of an execution, checked: nothing else reaches a guest.

use crate::sandbox::events::unix_time_ms;
use crate::sandbox::execution::Order;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use podflare_api::exec::{self, ExecRequest};
use podflare_api::id;
use podflare_wire::guest::{ExecContext, Language, excerpt};
use podflare_wire::limits::{
    CODE_LEN_MAX, CWD_LEN_MAX, ENV_ENTRIES_MAX, ENV_LEN_MAX, EXEC_TIMEOUT_MS_MAX, STDIN_LEN_MAX,
};

/// Code, and all that it is to have.
#[derive(Debug)]
pub struct Call {
    pub language: Language,
    pub code: String,
    pub context: ExecContext,
    pub cancel_on_disconnect: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("The code has {len} bytes; the most is {CODE_LEN_MAX}")]
    CodeTooLong { len: usize },
    #[error("`env` has {count} variables; the most is {ENV_ENTRIES_MAX}")]
    TooManyVariables { count: usize },
    #[error("The names and values in `env` have {len} bytes together; the most is {ENV_LEN_MAX}")]
    EnvTooLong { len: usize },
    #[error("{name:?} cannot be the name of a variable: it is empty, or has a `=` or a NUL character")]
    VariableName { name: String },
    #[error("The value of {name:?} in `env` has a NUL character")]
    VariableValue { name: String },
    #[error("`cwd` must be an absolute path of at most {CWD_LEN_MAX} bytes without a NUL character")]
    Cwd,
    #[error("Give `stdin` or `stdin_b64`, not both")]
    StdinTwice,
    #[error("`stdin_b64` is not base64")]
    StdinNotBase64(#[source] base64::DecodeError),
    #[error("The standard input has {len} bytes; the most is {STDIN_LEN_MAX}")]
    StdinTooLong { len: usize },
    #[error("`timeout_ms` must be within 1 to {EXEC_TIMEOUT_MS_MAX}, unlike {timeout_ms}")]
    Timeout { timeout_ms: u64 },
}

impl Call {
    pub fn new(request: ExecRequest) -> Result<Call, CallError> {
        let ExecRequest { code, language, env, cwd, stdin, stdin_b64, timeout_ms, cancel_on_disconnect } =
            request;
        if code.len() > CODE_LEN_MAX {
            return Err(CallError::CodeTooLong { len: code.len() });
        }
        if let Some(timeout_ms) = timeout_ms.filter(|ms| !(1..=EXEC_TIMEOUT_MS_MAX).contains(ms)) {
            return Err(CallError::Timeout { timeout_ms });
        }
        let language = match language {
            exec::Language::Python => Language::Python,
            exec::Language::Bash => Language::Bash,
        };
        let context = ExecContext {
            env: checked_env(env.into_iter().collect())?,
            cwd: checked_cwd(cwd)?,
            stdin: checked_stdin(stdin, stdin_b64)?,
            timeout_ms,
        };
        Ok(Call { language, code, context, cancel_on_disconnect })
    }

    /// Bytes of it that wait for the guest.
    pub fn queued_len(&self) -> usize {
        let ExecContext { env, cwd, stdin, .. } = &self.context;
        let env_len: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.code.len() + env_len + cwd.as_ref().map_or(0, String::len) + stdin.len()
    }

    /// What is remembered of it while it waits and runs.
    pub fn order(&self) -> Order {
        Order {
            id: id::ExecId::random(),
            language: self.language,
            excerpt: excerpt(&self.code).to_owned(),
            requested_at_ms: unix_time_ms(),
            timeout_ms: self.context.timeout_ms,
            cancel_on_disconnect: self.cancel_on_disconnect,
            inherited: false,
        }
    }
}

pub(super) fn checked_cwd(cwd: Option<String>) -> Result<Option<String>, CallError> {
    let fits = |cwd: &String| cwd.starts_with('/') && cwd.len() <= CWD_LEN_MAX && !cwd.contains('\0');
    if cwd.as_ref().is_none_or(fits) { Ok(cwd) } else { Err(CallError::Cwd) }
}

pub(super) fn checked_env(env: Vec<(String, String)>) -> Result<Vec<(String, String)>, CallError> {
    if env.len() > ENV_ENTRIES_MAX {
        return Err(CallError::TooManyVariables { count: env.len() });
    }
    let len = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if len > ENV_LEN_MAX {
        return Err(CallError::EnvTooLong { len });
    }
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(CallError::VariableName { name: name.clone() });
        }
        if value.contains('\0') {
            return Err(CallError::VariableValue { name: name.clone() });
        }
    }
    Ok(env)
}

fn checked_stdin(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, CallError> {
    let stdin = match (text, base64) {
        (Some(_), Some(_)) => return Err(CallError::StdinTwice),
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => BASE64_STANDARD.decode(base64).map_err(CallError::StdinNotBase64)?,
        (None, None) => Vec::new(),
    };
    if stdin.len() > STDIN_LEN_MAX {
        return Err(CallError::StdinTooLong { len: stdin.len() });
    }
    Ok(stdin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn refusal(change: impl FnOnce(&mut ExecRequest)) -> CallError {
        let mut request = ExecRequest::default();
        change(&mut request);
        Call::new(request).unwrap_err()
    }

    fn env(entries: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
        entries.into_iter().collect()
    }

    #[test]
    fn what_is_over_a_limit_is_refused_and_what_is_at_it_is_not() {
        let at_limits = ExecRequest {
            code: "x".repeat(CODE_LEN_MAX),
            env: env((0..ENV_ENTRIES_MAX)
                .map(|n| (format!("{n:03}"), "x".repeat(ENV_LEN_MAX / ENV_ENTRIES_MAX - 3)))),
            cwd: Some(format!("/{}", "x".repeat(CWD_LEN_MAX - 1))),
            stdin: Some("x".repeat(STDIN_LEN_MAX)),
            timeout_ms: Some(EXEC_TIMEOUT_MS_MAX),
            ..ExecRequest::default()
        };
        let call = Call::new(at_limits).unwrap();
        assert_eq!(call.queued_len(), CODE_LEN_MAX + ENV_LEN_MAX + CWD_LEN_MAX + STDIN_LEN_MAX);
        let request = podflare_wire::guest::Request::Exec {
            exec: podflare_wire::guest::ExecId(u32::MAX),
            language: call.language,
            code: call.code,
            context: call.context,
            announce: true,
        };
        assert!(podflare_wire::codec::encode(&request).len() <= podflare_wire::limits::REQUEST_FRAME_LEN_MAX);

        let many = (0..=ENV_ENTRIES_MAX).map(|n| (n.to_string(), String::new()));
        assert_eq!(refusal(|it| it.env = env(many)), CallError::TooManyVariables { count: 257 });
        let long = [("N".to_owned(), "x".repeat(ENV_LEN_MAX))];
        assert_eq!(refusal(|it| it.env = env(long)), CallError::EnvTooLong { len: ENV_LEN_MAX + 1 });
        let long = "x".repeat(STDIN_LEN_MAX + 1);
        assert!(matches!(refusal(|it| it.stdin = Some(long)), CallError::StdinTooLong { .. }));
        for timeout_ms in [0, EXEC_TIMEOUT_MS_MAX + 1, u64::MAX] {
            assert_eq!(refusal(|it| it.timeout_ms = Some(timeout_ms)), CallError::Timeout { timeout_ms });
        }
        for cwd in ["", "relative", "/a\0b", &format!("/{}", "x".repeat(CWD_LEN_MAX))] {
            assert_eq!(refusal(|it| it.cwd = Some(cwd.to_owned())), CallError::Cwd);
        }
    }

    #[test]
    fn input_is_text_or_base64_and_not_both() {
        let stdin = |text: Option<&str>, base64: Option<&str>| {
            let (stdin, stdin_b64) = (text.map(str::to_owned), base64.map(str::to_owned));
            let request = ExecRequest { stdin, stdin_b64, ..ExecRequest::default() };
            Call::new(request).map(|call| call.context.stdin)
        };
        assert_eq!(stdin(Some("ä"), None), Ok("ä".as_bytes().to_vec()));
        assert_eq!(stdin(None, Some("/wA=")), Ok(vec![0xff, 0]));
        assert_eq!(stdin(None, None), Ok(Vec::new()));
        assert_eq!(stdin(Some(""), Some("")), Err(CallError::StdinTwice));
        assert!(matches!(stdin(None, Some("not base64")), Err(CallError::StdinNotBase64(_))));
    }

    proptest! {
        #[test]
        fn what_is_accepted_can_be_a_process_environment(name in "[A=\0]{0,3}|\\PC{0,8}", value in "[A=\0]{0,3}|\\PC{0,8}") {
            let request = ExecRequest { env: env([(name.clone(), value.clone())]), ..ExecRequest::default() };
            let is_fit = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            prop_assert_eq!(Call::new(request).is_ok(), is_fit);
        }
    }
}

//! The settings of `host-run`, from its environment.

use podflare_emulated_host::job::environment_beginning_with;
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const TIME_LIMIT_S: u64 = 30 * 60;

/// Where programs are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Natively if a probe says that KVM works.
    Probe,
    Native,
    Emulated,
}

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) home: Option<PathBuf>,
    pub(crate) programs: Option<PathBuf>,
    pub(crate) choice: Choice,
    /// Writable for the program, wherever it runs.
    pub(crate) results: Option<PathBuf>,
    pub(crate) time_limit: Duration,
    /// What the program finds in its environment in the emulated host.
    pub(crate) passed_on: Vec<(String, OsString)>,
}

impl Config {
    pub(crate) fn from_environment() -> anyhow::Result<Config> {
        let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Config {
            home: path("PODFLARE_HOME"),
            programs: path("PODFLARE_BIN_DIR"),
            choice: choice(&text("PODFLARE_HOST_RUN"))?,
            results: path("PODFLARE_RESULTS_DIR"),
            time_limit: time_limit(&text("PODFLARE_TIME_LIMIT_S"))?,
            passed_on: environment_beginning_with(&["PODFLARE_", "RUST_", "CARGO_"]),
        })
    }
}

fn text(name: &str) -> String {
    env::var_os(name).unwrap_or_default().to_string_lossy().into_owned()
}

fn choice(text: &str) -> anyhow::Result<Choice> {
    match text {
        "" => Ok(Choice::Probe),
        "native" => Ok(Choice::Native),
        "emulated" => Ok(Choice::Emulated),
        _ => anyhow::bail!("PODFLARE_HOST_RUN is {text:?}; it can be \"native\" or \"emulated\""),
    }
}

fn time_limit(text: &str) -> anyhow::Result<Duration> {
    if text.is_empty() {
        return Ok(Duration::from_secs(TIME_LIMIT_S));
    }
    let seconds =
        text.parse().map_err(|_| anyhow::anyhow!("PODFLARE_TIME_LIMIT_S is {text:?}, no number"))?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_choice_is_refused() {
        assert_eq!(choice("").unwrap(), Choice::Probe);
        assert_eq!(choice("emulated").unwrap(), Choice::Emulated);
        assert!(choice("emulate").is_err());
        assert!(time_limit("soon").is_err());
    }
}

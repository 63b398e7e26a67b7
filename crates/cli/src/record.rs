//! What is known of the host that was started here: a small file, believed only while its process lives.

use anyhow::Context;
use podflare_emulated_host::places::Places;
use podflare_emulated_host::process::ProcessId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HostKind {
    /// hostd runs on this machine.
    Native,
    /// hostd runs in an emulated host.
    Emulated,
}

impl HostKind {
    /// As it stands in a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            HostKind::Native => "natively",
            HostKind::Emulated => "in an emulated host",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) kind: HostKind,
    /// Why this kind.
    pub(crate) reason: String,
    pub(crate) process: ProcessId,
    pub(crate) listen: SocketAddr,
    /// The digest of the programs and the image that it was started with.
    pub(crate) contents: String,
}

impl Record {
    /// The record of a host that runs. A record of one that does not is as good as none.
    pub(crate) fn of_running_host(places: &Places) -> anyhow::Result<Option<Record>> {
        let path = path(places);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(format!("Cannot read {}", path.display())),
        };
        let unreadable = || format!("Cannot understand {}; if no host runs, remove it", path.display());
        let record: Record = serde_json::from_str(&text).with_context(unreadable)?;
        Ok(record.process.is_alive().then_some(record))
    }

    pub(crate) fn save(&self, places: &Places) -> anyhow::Result<()> {
        let path = path(places);
        let part = path.with_extension("part");
        let text = serde_json::to_string_pretty(self)?;
        // Whoever reads it meanwhile finds the former one, or this one.
        let written = fs::write(&part, text + "\n").and_then(|()| fs::rename(&part, &path));
        written.with_context(|| format!("Cannot write {}", path.display()))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listen)
    }
}

/// Where the running host keeps its logs.
pub(crate) fn run_directory(places: &Places) -> PathBuf {
    places.home.join("run")
}

fn path(places: &Places) -> PathBuf {
    places.home.join("host.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_that_lives_is_found() {
        let home = tempfile::tempdir().unwrap();
        let places = Places { home: home.path().to_owned(), programs: "/".into() };
        assert_eq!(Record::of_running_host(&places).unwrap(), None);

        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let record = Record {
            kind: HostKind::Emulated,
            reason: "a test".into(),
            process: ProcessId::of(child.id()).unwrap(),
            listen: "127.0.0.1:7070".parse().unwrap(),
            contents: "digest".into(),
        };
        record.save(&places).unwrap();
        assert_eq!(Record::of_running_host(&places).unwrap(), Some(record));
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);

        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Record::of_running_host(&places).unwrap(), None);
    }
}

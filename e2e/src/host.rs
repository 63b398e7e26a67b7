//! A hostd with its sandboxes, spoken to over HTTP as any client would.

use crate::place;
use crate::wait::until;
use podflare_api::capacity::{Capacity, TemplateCapacity};
use podflare_api::exec::{ExecEvent, ExecEventKind};
use podflare_api::id::{SandboxId, SpaceId};
use podflare_api::network::NetworkView;
use podflare_api::sandbox::{Forked, SandboxCreated, SandboxList, SandboxView};
use podflare_api::space::{SpaceList, SpaceView};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;
use tempfile::TempDir;

/// A running hostd. Dropping it ends it and its sandboxes.
#[derive(Debug)]
pub struct Host {
    pub process: Child,
    pub state_dir: TempDir,
    /// What outlives hostd.
    pub data_dir: TempDir,
    address: SocketAddr,
    http: ureq::Agent,
    pool_size: u32,
    settings: Vec<(String, String)>,
}

/// What an execution gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
}

/// A status that is no success, and its `error` sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub error: String,
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
impl Host {
    /// Starts a hostd with that many pool members and waits until it serves.
    pub fn start(pool_size: u32) -> Host {
        Host::start_with_state_dir(pool_size, tempfile::tempdir().unwrap())
    }

    pub fn start_with_state_dir(pool_size: u32, state_dir: TempDir) -> Host {
        Host::start_with(pool_size, state_dir, &[])
    }

    pub fn start_with_settings(pool_size: u32, settings: &[(&str, &str)]) -> Host {
        Host::start_with(pool_size, tempfile::tempdir().unwrap(), settings)
    }

    fn start_with(pool_size: u32, state_dir: TempDir, settings: &[(&str, &str)]) -> Host {
        let address = free_address();
        let data_dir = tempfile::tempdir().unwrap();
        let settings: Vec<_> =
            settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let process = spawn(address, [&state_dir, &data_dir], pool_size, &settings);
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .build()
            .into();
        let host = Host { process, state_dir, data_dir, address, http, pool_size, settings };
        host.is_ready();
        host
    }

    fn is_ready(&self) {
        until("hostd to serve", || self.is_healthy().then_some(()));
    }

    /// Kills hostd at once.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts another hostd in the place of one that has ended.
    pub fn start_again(&mut self) {
        let folders = [&self.state_dir, &self.data_dir];
        self.process = spawn(self.address, folders, self.pool_size, &self.settings);
        self.is_ready();
    }

    pub fn freeze(&self, id: &SandboxId) -> Result<SpaceView, Refusal> {
        self.post(&format!("/v1/sandboxes/{id}/freeze"), &json!({})).map(|(view, _)| view)
    }

    pub fn resume(&self, id: &SpaceId, body: &Value) -> Result<SandboxId, Refusal> {
        let resumed: Result<(SandboxCreated, _), _> = self.post(&format!("/v1/spaces/{id}/resume"), body);
        resumed.map(|(created, _)| created.id)
    }

    pub fn delete_space(&self, id: &SpaceId) -> Result<(), Refusal> {
        refused(self.http.delete(self.url(&format!("/v1/spaces/{id}"))).call().map_err(gone)?).map(drop)
    }

    pub fn spaces(&self) -> Vec<SpaceView> {
        let mut answer = self.http.get(self.url("/v1/spaces")).call().unwrap();
        let list: SpaceList = answer.body_mut().read_json().unwrap();
        list.spaces
    }

    pub fn is_healthy(&self) -> bool {
        self.http.get(self.url("/v1/healthz")).call().is_ok_and(|answer| answer.status() == 200)
    }

    pub fn create(&self) -> SandboxId {
        self.create_with(&json!({}))
    }

    pub fn create_with(&self, body: &Value) -> SandboxId {
        let created: SandboxCreated = self.post("/v1/sandboxes", body).unwrap().0;
        created.id
    }

    pub fn set_egress(&self, id: &SandboxId, egress: &Value) {
        let url = self.url(&format!("/v1/sandboxes/{id}/egress"));
        refused(self.http.put(url).send_json(json!({ "egress": egress })).unwrap()).unwrap();
    }

    pub fn network(&self, id: &SandboxId) -> NetworkView {
        let mut answer = self.http.get(self.url(&format!("/v1/sandboxes/{id}/network"))).call().unwrap();
        answer.body_mut().read_json().unwrap()
    }

    /// The children, and the `Server-Timing` header.
    pub fn fork(&self, id: &SandboxId, n: u32) -> (Vec<SandboxId>, String) {
        self.try_fork(id, n).unwrap()
    }

    pub fn try_fork(&self, id: &SandboxId, n: u32) -> Result<(Vec<SandboxId>, String), Refusal> {
        let (forked, timing): (Forked, _) =
            self.post(&format!("/v1/sandboxes/{id}/fork"), &json!({ "n": n }))?;
        Ok((forked.children, timing))
    }

    pub fn merge(&self, parent: &SandboxId, winner: &SandboxId) -> Result<(), Refusal> {
        let answer =
            self.http.post(self.url(&format!("/v1/sandboxes/{parent}/merge_into/{winner}"))).send_empty();
        refused(answer.map_err(gone)?).map(drop)
    }

    /// The round trip to the guest's agent, as the host has measured it.
    pub fn ping_ms(&self, id: &SandboxId) -> f64 {
        let answer = self.http.get(self.url(&format!("/v1/sandboxes/{id}/ping"))).call().unwrap();
        assert_eq!(answer.status(), 204);
        let timing = answer.headers()["server-timing"].to_str().unwrap();
        let (_, guest) = timing.split_once("guest;dur=").unwrap();
        guest.split(',').next().unwrap().parse().unwrap()
    }

    pub fn delete(&self, id: &SandboxId) {
        self.try_delete(id).unwrap();
    }

    pub fn try_delete(&self, id: &SandboxId) -> Result<(), Refusal> {
        let answer = self.http.delete(self.url(&format!("/v1/sandboxes/{id}"))).call();
        refused(answer.map_err(gone)?).map(drop)
    }

    pub fn try_create(&self) -> Result<SandboxId, Refusal> {
        let created: (SandboxCreated, _) = self.post("/v1/sandboxes", &json!({}))?;
        Ok(created.0.id)
    }

    pub fn list(&self) -> Vec<SandboxId> {
        let mut answer = self.http.get(self.url("/v1/sandboxes")).call().unwrap();
        let list: SandboxList = answer.body_mut().read_json().unwrap();
        list.sandboxes.into_iter().map(|sandbox| sandbox.id).collect()
    }

    pub fn inspect(&self, id: &SandboxId) -> SandboxView {
        let mut answer = self.http.get(self.url(&format!("/v1/sandboxes/{id}"))).call().unwrap();
        answer.body_mut().read_json().unwrap()
    }

    /// Sandboxes that the pool of the default template has ready.
    pub fn pool_ready(&self) -> u32 {
        self.template().pool_ready
    }

    /// Waits until the host does nothing more with its template. A machine that came to rest beside it is gone by
    /// then, or is the template now.
    pub fn rest(&self) {
        until("the template to come to rest", || self.template().rested.then_some(()));
    }

    fn template(&self) -> TemplateCapacity {
        let mut answer = self.http.get(self.url("/v1/capacity")).call().unwrap();
        let capacity: Capacity = answer.body_mut().read_json().unwrap();
        capacity.templates.into_iter().next().unwrap()
    }

    pub fn python(&self, id: &SandboxId, code: &str) -> Result<Output, Refusal> {
        self.exec(id, "python", code)
    }

    pub fn bash(&self, id: &SandboxId, code: &str) -> Result<Output, Refusal> {
        self.exec(id, "bash", code)
    }

    /// Starts code whose output nobody reads.
    pub fn start_python(&self, id: &SandboxId, code: &str) {
        self.begin(id, "python", code).unwrap();
    }

    fn begin(&self, id: &SandboxId, language: &str, code: &str) -> Result<Answer, Refusal> {
        let url = self.url(&format!("/v1/sandboxes/{id}/exec"));
        let answer = self.http.post(url).send_json(json!({ "code": code, "language": language }));
        refused(answer.map_err(gone)?)
    }

    fn exec(&self, id: &SandboxId, language: &str, code: &str) -> Result<Output, Refusal> {
        let mut answer = self.begin(id, language, code)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for line in BufReader::new(answer.body_mut().as_reader()).lines() {
            let line = line.map_err(|error| gone(error.into()))?;
            if line.is_empty() {
                continue;
            }
            let event: ExecEvent = serde_json::from_str(&line).unwrap();
            match event.kind {
                ExecEventKind::Stdout(text) => stdout.push(text),
                ExecEventKind::Stderr(text) => stderr.push(text),
                ExecEventKind::Exit(exit_code) => {
                    return Ok(Output { stdout: stdout.join("\n"), stderr: stderr.join("\n"), exit_code });
                }
            }
        }
        let error = format!("the stream ended without an exit event: {stdout:?} {stderr:?}");
        Err(Refusal { status: 0, error })
    }

    fn post<T: serde::de::DeserializeOwned>(&self, path: &str, body: &Value) -> Result<(T, String), Refusal> {
        let mut answer = refused(self.http.post(self.url(path)).send_json(body).map_err(gone)?)?;
        let timing = answer.headers().get("server-timing").map_or("", |value| value.to_str().unwrap());
        let timing = timing.to_owned();
        Ok((answer.body_mut().read_json().map_err(gone)?, timing))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The files that hostd has made, unlinked ones excluded.
    pub fn state_files(&self) -> usize {
        count_files(self.state_dir.path())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Both fail only when the process has ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// hostd has gone, or goes away while it answers.
#[expect(clippy::needless_pass_by_value, reason = "it stands where a function of an error is wanted")]
fn gone(error: ureq::Error) -> Refusal {
    Refusal { status: 0, error: error.to_string() }
}

type Answer = ureq::http::Response<ureq::Body>;

fn refused(mut answer: Answer) -> Result<Answer, Refusal> {
    if answer.status().is_success() {
        return Ok(answer);
    }
    let status = answer.status().as_u16();
    let body: Value = answer.body_mut().read_json().unwrap_or_default();
    Err(Refusal { status, error: body["error"].as_str().unwrap_or_default().to_owned() })
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
fn spawn(
    address: SocketAddr,
    [state_dir, data_dir]: [&TempDir; 2],
    pool_size: u32,
    settings: &[(String, String)],
) -> Child {
    Command::new(place::program("podflare-hostd"))
        .arg("--listen")
        .arg(address.to_string())
        .arg("--image-dir")
        .arg(place::image_file("."))
        .arg("--rootfs")
        .arg(place::rootfs())
        .arg("--state-dir")
        .arg(state_dir.path())
        .arg("--data-dir")
        .arg(data_dir.path())
        .env("PODFLARE_POOL_SIZE", pool_size.to_string())
        // What ends here is ended by who uses it.
        .env("PODFLARE_IDLE_TIMEOUT", "3600")
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .spawn()
        .unwrap()
}

#[expect(clippy::unwrap_used, reason = "the first thing that goes wrong must fail the test")]
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn count_files(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

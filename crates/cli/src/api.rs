//! A client of the API, for what the command line does with it.

use crate::record::Record;
use crate::{admin_key, args};
use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use podflare_api::capacity::Capacity;
use podflare_api::error::ErrorBody;
use podflare_api::event::{EventList, LifecycleEvent};
use podflare_api::exec::{ExecEvent, ExecEventKind, ExecRequest};
use podflare_api::id::{KeyId, PtyId, SandboxId, SpaceId};
use podflare_api::key::{CreateKey, KeyCreated, KeyList, KeyView};
use podflare_api::pty::{CreatePty, PtyEvent, PtyInput, PtyResize};
use podflare_api::sandbox::{CreateSandbox, SandboxCreated, SandboxList, SandboxView};
use podflare_api::space::{ResumeSpace, SpaceList, SpaceView};
use podflare_api::template::{TakeState, TemplateProgress, TemplateView};
use podflare_emulated_host::places::Places;
use podflare_image::template::store::Taken;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::thread;
use std::time::{Duration, Instant};
use ureq::http::header::RETRY_AFTER;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, BodyReader};

const DEFAULT_URL: &str = "http://127.0.0.1:7070";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Health is asked for again and again, and an emulated network may take a connection that nobody answers.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a create may take, with all that a host boots for it.
const CREATE_PATIENCE: Duration = Duration::from_secs(120);
/// What is typed, or a new size, is of no use much later.
const TERMINAL_TIMEOUT: Duration = Duration::from_secs(30);
/// One line of a stream of events.
const EVENT_BYTES_MAX: u64 = 64 << 20;
/// One line of a template's progress, which may quote a guest's console.
const STATE_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    url: String,
    api_key: Option<String>,
}

/// What a host says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Ready,
    /// It answers, and says what it is still doing.
    Starting(String),
    Silent,
}

/// The events of a terminal.
pub(crate) struct PtyStream(BufReader<BodyReader<'static>>);

impl Client {
    /// The host that is named, or else the one that was started here.
    pub(crate) fn of(host: &args::Host, places: &Places) -> anyhow::Result<Client> {
        // The operator's key is for the operator's own host, and told no other.
        let (url, own_key) = match (&host.url, Record::of_running_host(places)?) {
            (Some(url), _) => (url.trim_end_matches('/').to_owned(), None),
            (None, Some(record)) => (record.url(), admin_key::read(places)?),
            (None, None) => (DEFAULT_URL.to_owned(), None),
        };
        Ok(Client::new(url, host.api_key.clone().or(own_key)))
    }

    /// The host that is named, or else the one that was started here, if it runs.
    pub(crate) fn of_running(host: &args::Host, places: &Places) -> anyhow::Result<Option<Client>> {
        let runs = host.url.is_some() || Record::of_running_host(places)?.is_some();
        runs.then(|| Client::of(host, places)).transpose()
    }

    pub(crate) fn new(url: String, api_key: Option<String>) -> Client {
        let mut config =
            Agent::config_builder().http_status_as_error(false).timeout_connect(Some(CONNECT_TIMEOUT));
        // A proxy could not reach this machine's own addresses.
        if url.contains("//127.") || url.contains("//localhost") || url.contains("//[::1]") {
            config = config.proxy(None);
        }
        Client { agent: config.build().into(), url, api_key }
    }

    pub(crate) fn health(&self) -> Health {
        let request = self.agent.get(self.address("/healthz"));
        match request.config().timeout_global(Some(HEALTH_TIMEOUT)).build().call() {
            Ok(answer) if answer.status().is_success() => Health::Ready,
            Ok(mut answer) => Health::Starting(error_text(&mut answer)),
            Err(_) => Health::Silent,
        }
    }

    pub(crate) fn sandboxes(&self) -> anyhow::Result<Vec<SandboxView>> {
        let request =
            self.agent.get(self.address("/sandboxes")).header("authorization", self.authorization());
        let mut answer = self.checked(request.call())?;
        let list: SandboxList = answer.body_mut().read_json().context("Cannot read the list of sandboxes")?;
        Ok(list.sandboxes)
    }

    pub(crate) fn capacity(&self) -> anyhow::Result<Capacity> {
        let request = self.agent.get(self.address("/capacity")).header("authorization", self.authorization());
        let mut answer = self.checked(request.call())?;
        answer.body_mut().read_json().context("Cannot read what the host has")
    }

    /// Asks again where the host says when to come back, because it boots a template or is busy.
    pub(crate) fn create(&self, wanted: &CreateSandbox) -> anyhow::Result<SandboxId> {
        let deadline = Instant::now() + CREATE_PATIENCE;
        loop {
            let request =
                self.agent.post(self.address("/sandboxes")).header("authorization", self.authorization());
            let answer = request.send_json(wanted);
            if let Some(pause) = answer.as_ref().ok().and_then(retry_after)
                && pause <= deadline.saturating_duration_since(Instant::now())
            {
                thread::sleep(pause);
                continue;
            }
            let mut answer = self.checked(answer)?;
            let created: SandboxCreated =
                answer.body_mut().read_json().context("Cannot read the new sandbox")?;
            return Ok(created.id);
        }
    }

    pub(crate) fn close(&self, id: &SandboxId) -> anyhow::Result<()> {
        let request = self.agent.delete(self.address(&format!("/sandboxes/{id}")));
        self.checked(request.header("authorization", self.authorization()).call()).map(drop)
    }

    /// Returns when all of the sandbox is on the host's disk.
    pub(crate) fn freeze(&self, id: &SandboxId) -> anyhow::Result<SpaceView> {
        let post = self.agent.post(self.address(&format!("/sandboxes/{id}/freeze")));
        let mut answer = self.checked(post.header("authorization", self.authorization()).send_empty())?;
        answer.body_mut().read_json().context("Cannot read the new Space")
    }

    pub(crate) fn resume(&self, id: &SpaceId, wanted: &ResumeSpace) -> anyhow::Result<SandboxId> {
        let post = self.agent.post(self.address(&format!("/spaces/{id}/resume")));
        let mut answer =
            self.checked(post.header("authorization", self.authorization()).send_json(wanted))?;
        let created: SandboxCreated = answer.body_mut().read_json().context("Cannot read the new sandbox")?;
        Ok(created.id)
    }

    /// All Spaces, oldest first.
    pub(crate) fn spaces(&self) -> anyhow::Result<Vec<SpaceView>> {
        let request = self.agent.get(self.address("/spaces")).header("authorization", self.authorization());
        let mut answer = self.checked(request.call())?;
        let list: SpaceList = answer.body_mut().read_json().context("Cannot read the list of Spaces")?;
        Ok(list.spaces)
    }

    pub(crate) fn remove_space(&self, id: &SpaceId) -> anyhow::Result<()> {
        let request = self.agent.delete(self.address(&format!("/spaces/{id}")));
        self.checked(request.header("authorization", self.authorization()).call()).map(drop)
    }

    /// Writes a Space into a file.
    pub(crate) fn export_space(&self, id: &SpaceId, file: &mut File) -> anyhow::Result<u64> {
        let request = self.agent.get(self.address(&format!("/spaces/{id}/export")));
        let answer = self.checked(request.header("authorization", self.authorization()).call())?;
        std::io::copy(&mut answer.into_body().into_reader(), file).context("The Space came only in part")
    }

    pub(crate) fn import_space(&self, file: File) -> anyhow::Result<SpaceView> {
        let post = self.agent.post(self.address("/spaces/import"));
        let mut answer = self.checked(post.header("authorization", self.authorization()).send(file))?;
        answer.body_mut().read_json().context("Cannot read the new Space")
    }

    pub(crate) fn create_key(&self, wanted: &CreateKey) -> anyhow::Result<KeyCreated> {
        let post = self.agent.post(self.address("/keys")).header("authorization", self.authorization());
        let mut answer = self.checked(post.send_json(wanted))?;
        answer.body_mut().read_json().context("Cannot read the new key")
    }

    pub(crate) fn rotate_key(&self, id: &KeyId) -> anyhow::Result<KeyCreated> {
        let post = self.agent.post(self.address(&format!("/keys/{id}/rotate")));
        let mut answer = self.checked(post.header("authorization", self.authorization()).send_empty())?;
        answer.body_mut().read_json().context("Cannot read the new key")
    }

    pub(crate) fn revoke_key(&self, id: &KeyId) -> anyhow::Result<()> {
        let request = self.agent.delete(self.address(&format!("/keys/{id}")));
        self.checked(request.header("authorization", self.authorization()).call()).map(drop)
    }

    /// All keys, oldest first.
    pub(crate) fn keys(&self) -> anyhow::Result<Vec<KeyView>> {
        let request = self.agent.get(self.address("/keys")).header("authorization", self.authorization());
        let mut answer = self.checked(request.call())?;
        let list: KeyList = answer.body_mut().read_json().context("Cannot read the list of keys")?;
        Ok(list.keys)
    }

    /// The next events after a number, oldest first; none when there are no more.
    pub(crate) fn events(&self, since: u64) -> anyhow::Result<Vec<LifecycleEvent>> {
        let request = self.agent.get(self.address(&format!("/events?since={since}")));
        let mut answer = self.checked(request.header("authorization", self.authorization()).call())?;
        let list: EventList = answer.body_mut().read_json().context("Cannot read the events")?;
        Ok(list.events)
    }

    /// Hands over what happens, until the host ends.
    pub(crate) fn follow_events(
        &self,
        since: u64,
        mut each: impl FnMut(LifecycleEvent) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let get = self.agent.get(self.address(&format!("/events?follow=true&since={since}")));
        let answer = self.checked(get.header("authorization", self.authorization()).call())?;
        let mut stream = BufReader::new(answer.into_body().into_reader());
        loop {
            if let Some(event) = next_event::<LifecycleEvent>(&mut stream)? {
                each(event)?;
            }
        }
    }

    /// Runs code and hands over its output line by line; gives the exit code.
    pub(crate) fn exec(
        &self,
        id: &SandboxId,
        request: &ExecRequest,
        mut each: impl FnMut(&ExecEventKind) -> anyhow::Result<()>,
    ) -> anyhow::Result<i32> {
        let post = self.agent.post(self.address(&format!("/sandboxes/{id}/exec")));
        let answer = self.checked(post.header("authorization", self.authorization()).send_json(request))?;
        let mut stream = BufReader::new(answer.into_body().into_reader());
        loop {
            let Some(event) = next_event::<ExecEvent>(&mut stream)? else { continue };
            if let ExecEventKind::Exit(code) = event.kind {
                return Ok(code);
            }
            each(&event.kind)?;
        }
    }

    /// Has the host read a template's folder anew and make sandboxes of it; hands over each state on the way, in words.
    pub(crate) fn take_template(&self, name: &str, mut each: impl FnMut(&str)) -> anyhow::Result<()> {
        let post = self.agent.post(self.address(&format!("/templates/{name}")));
        let answer = self.checked(post.header("authorization", self.authorization()).send_empty())?;
        let mut stream = BufReader::new(answer.into_body().into_reader());
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = (&mut stream).take(STATE_BYTES_MAX).read_until(b'\n', &mut line);
            if count.context("The host broke off")? == 0 {
                bail!("The host has not said whether it can use the template {name}");
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let progress: TemplateProgress =
                serde_json::from_slice(&line).context("Cannot understand the host")?;
            match progress.state {
                TakeState::Waiting => each("another is being taken"),
                TakeState::Booting => each("it boots"),
                TakeState::Ready => {
                    each("ready");
                    return Ok(());
                }
                TakeState::Failed => {
                    let error = progress.error.unwrap_or_default();
                    bail!("The host cannot use the template {name}: {error}")
                }
            }
        }
    }

    /// Which build of a template the host makes sandboxes of.
    pub(crate) fn taken_build(&self, name: &str) -> anyhow::Result<Taken> {
        let request = self.agent.get(self.address(&format!("/templates/{name}")));
        let mut answer = match request.header("authorization", self.authorization()).call() {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return Ok(Taken::Nothing),
            answer => self.checked(answer)?,
        };
        let view: TemplateView =
            answer.body_mut().read_json().context("Cannot read what the host says of a template")?;
        Ok(view.built_at_ms.map_or(Taken::Unknown, |built_at_ms| Taken::Build { built_at_ms }))
    }

    /// Has the host end what it made of a template. One that it does not have is as good as removed.
    pub(crate) fn remove_template(&self, name: &str) -> anyhow::Result<()> {
        let request = self.agent.delete(self.address(&format!("/templates/{name}")));
        match request.header("authorization", self.authorization()).call() {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => Ok(()),
            answer => self.checked(answer).map(drop),
        }
    }

    /// Starts a program in a new terminal.
    pub(crate) fn create_pty(&self, id: &SandboxId, request: &CreatePty) -> anyhow::Result<PtyStream> {
        let post = self.agent.post(self.address(&format!("/sandboxes/{id}/pty")));
        let answer = self.checked(post.header("authorization", self.authorization()).send_json(request))?;
        Ok(PtyStream(BufReader::new(answer.into_body().into_reader())))
    }

    /// All of a terminal's output that is kept, and what comes.
    pub(crate) fn attach_pty(&self, id: &SandboxId, pty: &PtyId) -> anyhow::Result<PtyStream> {
        let get = self.agent.get(self.address(&format!("/sandboxes/{id}/pty/{pty}/attach")));
        let answer = self.checked(get.header("authorization", self.authorization()).call())?;
        Ok(PtyStream(BufReader::new(answer.into_body().into_reader())))
    }

    /// Types into a terminal.
    pub(crate) fn input_pty(&self, id: &SandboxId, pty: &PtyId, data: &[u8]) -> anyhow::Result<()> {
        self.tell_pty(id, pty, "input", &PtyInput { data_b64: BASE64_STANDARD.encode(data) })
    }

    pub(crate) fn resize_pty(&self, id: &SandboxId, pty: &PtyId, size: &PtyResize) -> anyhow::Result<()> {
        self.tell_pty(id, pty, "resize", size)
    }

    fn tell_pty(&self, id: &SandboxId, pty: &PtyId, what: &str, body: &impl Serialize) -> anyhow::Result<()> {
        let post = self.agent.post(self.address(&format!("/sandboxes/{id}/pty/{pty}/{what}")));
        let post = post.config().timeout_global(Some(TERMINAL_TIMEOUT)).build();
        self.checked(post.header("authorization", self.authorization()).send_json(body)).map(drop)
    }

    fn address(&self, path: &str) -> String {
        format!("{}/v1{path}", self.url)
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.api_key.as_deref().unwrap_or("none"))
    }

    fn checked(&self, answer: Result<Response<Body>, ureq::Error>) -> anyhow::Result<Response<Body>> {
        let mut answer =
            answer.with_context(|| format!("Cannot reach {}; `podflare up` starts a host", self.url))?;
        if !answer.status().is_success() {
            bail!("{} ({})", error_text(&mut answer), answer.status());
        }
        Ok(answer)
    }
}

impl PtyStream {
    /// The next event; none where the host only says that it is there.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<PtyEvent>> {
        next_event(&mut self.0)
    }
}

/// The next event of a stream; none where the line is a heartbeat.
fn next_event<Event: DeserializeOwned>(stream: &mut impl BufRead) -> anyhow::Result<Option<Event>> {
    let mut line = Vec::new();
    let count = stream.take(EVENT_BYTES_MAX).read_until(b'\n', &mut line);
    if count.context("The host broke off")? == 0 {
        bail!("The host ended its answer without an exit code");
    }
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).context("Cannot understand the host")
}

/// The pause that a host asks for.
fn retry_after(answer: &Response<Body>) -> Option<Duration> {
    let told = answer.headers().get(RETRY_AFTER).filter(|_| !answer.status().is_success())?;
    told.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

fn error_text(answer: &mut Response<Body>) -> String {
    let body: Result<ErrorBody, _> = answer.body_mut().read_json();
    body.map_or_else(|_| "The host gives no reason".into(), |body| body.error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    /// A host that gives one answer.
    fn host_answering(status: &'static str, body: &'static str) -> Client {
        host_answering_in_turn(vec![(status, body)])
    }

    /// A host that gives one answer after the other. To a status may be added headers.
    fn host_answering_in_turn(answers: Vec<(&'static str, &'static str)>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                read_request(&stream);
                let head = format!("{status}\r\ncontent-length: {}\r\nconnection: close", body.len());
                write!(stream, "HTTP/1.1 {head}\r\n\r\n{body}").unwrap();
            }
        });
        Client::new(url, None)
    }

    fn read_request(stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut body_length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
                body_length = length.trim().parse().unwrap();
            }
            if line == "\r\n" {
                return reader.read_exact(&mut vec![0; body_length]).unwrap();
            }
        }
    }

    #[test]
    fn a_host_that_starts_says_what_it_does() {
        let client = host_answering("503 Service Unavailable", r#"{"error": "starting: booting"}"#);
        assert_eq!(client.health(), Health::Starting("starting: booting".into()));
        assert_eq!(host_answering("200 OK", "ok").health(), Health::Ready);
        assert_eq!(Client::new("http://127.0.0.1:1".into(), None).health(), Health::Silent);
    }

    #[test]
    fn an_error_is_repeated_in_the_hosts_words() {
        let client = host_answering("503 Service Unavailable", r#"{"error": "no room"}"#);
        let text = client.create(&CreateSandbox::default()).unwrap_err().to_string();
        assert!(text.starts_with("no room"), "{text}");
    }

    #[test]
    fn a_create_asks_again_when_the_host_says_when_and_only_then() {
        let later = "503 Service Unavailable\r\nretry-after: 0";
        let id = SandboxId::random().to_string();
        let created = format!(
            r#"{{"id":"{id}","state":"ready","template":"default","ram_mib":512,"rootfs_gb":4,"vcpus":1,
            "timeout_seconds":1,"idle_timeout_seconds":1,"persistent":false,"egress":true}}"#
        );
        let boots = (later, r#"{"error": "it boots"}"#);
        let client = host_answering_in_turn(vec![boots, boots, ("200 OK", created.leak())]);
        assert_eq!(client.create(&CreateSandbox::default()).unwrap().to_string(), id);
        let much_later = "503 Service Unavailable\r\nretry-after: 18446744073709551615";
        let refused =
            host_answering(much_later, r#"{"error": "it boots"}"#).create(&CreateSandbox::default());
        assert!(refused.unwrap_err().to_string().starts_with("it boots"));
    }

    #[test]
    fn output_comes_line_by_line_and_heartbeats_are_passed_over() {
        let client = host_answering(
            "200 OK",
            concat!(
                "{\"type\":\"stdout\",\"data\":\"one\",\"seq\":0,\"ts\":1}\n\n",
                "{\"type\":\"stderr\",\"data\":\"two\",\"seq\":1,\"ts\":1}\n",
                "{\"type\":\"exit\",\"data\":3,\"seq\":2,\"ts\":1}\n"
            ),
        );
        let request = ExecRequest { code: "1".into(), ..ExecRequest::default() };
        let mut seen = Vec::new();
        let code = client.exec(&SandboxId::random(), &request, |event| {
            seen.push(event.clone());
            Ok(())
        });
        assert_eq!(code.unwrap(), 3);
        assert_eq!(seen, [ExecEventKind::Stdout("one".into()), ExecEventKind::Stderr("two".into())]);
    }

    #[test]
    fn a_template_is_taken_state_by_state() {
        let client = host_answering("200 OK", "{\"state\":\"booting\"}\n\n{\"state\":\"ready\"}\n");
        let mut states = Vec::new();
        client.take_template("mine", |state| states.push(state.to_owned())).unwrap();
        assert_eq!(states, ["it boots", "ready"]);
        let client = host_answering("200 OK", "{\"state\":\"failed\",\"error\":\"no python3\"}\n");
        let text = client.take_template("mine", |_| ()).unwrap_err().to_string();
        assert!(text.contains("mine: no python3"), "{text}");
        let client = host_answering("200 OK", "{\"state\":\"booting\"}\n");
        assert!(client.take_template("mine", |_| ()).is_err(), "nobody knows");
    }

    #[test]
    fn the_host_says_which_build_of_a_template_it_has() {
        let body = r#"{"name":"mine","description":"","ram_mib":512,"vcpus":1,"rootfs_gb":4,"built_at_ms":7,"state":"cold","sizes":[]}"#;
        let taken = host_answering("200 OK", body).taken_build("mine").unwrap();
        assert_eq!(taken, Taken::Build { built_at_ms: 7 });
        let taken = host_answering("404 Not Found", r#"{"error": "no such template"}"#).taken_build("mine");
        assert_eq!(taken.unwrap(), Taken::Nothing);
        host_answering("503 Service Unavailable", r#"{"error": "busy"}"#).taken_build("mine").unwrap_err();
    }

    #[test]
    fn a_template_that_the_host_does_not_have_is_as_good_as_removed() {
        host_answering("404 Not Found", r#"{"error": "no such template"}"#).remove_template("mine").unwrap();
        let busy = host_answering("409 Conflict", r#"{"error": "in use"}"#).remove_template("mine");
        assert!(busy.unwrap_err().to_string().contains("in use"));
    }

    #[test]
    fn a_stream_without_an_exit_code_is_an_error() {
        let client = host_answering("200 OK", "{\"type\":\"stdout\",\"data\":\"one\",\"seq\":0,\"ts\":1}\n");
        let request = ExecRequest { code: "1".into(), ..ExecRequest::default() };
        assert!(client.exec(&SandboxId::random(), &request, |_| Ok(())).is_err());
    }
}

//! The vocabulary of these tests: a host, what is asked of it, and what it answers.

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use clap::Parser;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use podflare_api::exec::{ExecEvent, ExecEventKind};
use podflare_hostd::app::App;
use podflare_hostd::config::{Arguments, NetworkSettings, Settings};
use podflare_hostd::http::router;
use podflare_hostd::network::Network;
use podflare_hostd::network::fake::FakeDriver;
use podflare_hostd::pool::Pool;
use podflare_hostd::records::Records;
use podflare_hostd::store::Store;
use podflare_hostd::template::Availability;
use podflare_hostd::vmm::fake::FakeVmm;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::AbortHandle;
use tower::ServiceExt;

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Host {
    pub(crate) app: Arc<App>,
    pub(crate) vmm: FakeVmm,
    pub(crate) network: FakeDriver,
    keeper: AbortHandle,
    arguments: Vec<String>,
    data: Arc<TempDir>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// An execution whose events are still to come.
pub(crate) struct Stream(BodyDataStream);

pub(crate) fn settings(arguments: &[&str]) -> Settings {
    let program = ["podflare-hostd", "--fake-vmm"];
    Arguments::parse_from(program.iter().chain(arguments)).resolve().unwrap()
}

/// Those of a host that has never run.
pub(crate) fn records(settings: &Settings) -> Records {
    Records::read(Store::in_memory().unwrap(), settings).unwrap()
}

impl Host {
    /// A host whose template is ready and whose pool is full.
    pub(crate) async fn start(arguments: &[&str]) -> Host {
        Host::start_without_template(arguments).ready().await
    }

    /// One that keeps its records there.
    pub(crate) async fn start_with_store(arguments: &[&str], store: Store) -> Host {
        let data = Arc::new(tempfile::tempdir().unwrap());
        Host::with_data(arguments, data, FakeVmm::default(), store).ready().await
    }

    /// The host after this one, on the same folder of data but with other records, as if this one had been killed.
    pub(crate) async fn start_again(self) -> Host {
        self.start_again_with_store(Store::in_memory().unwrap()).await
    }

    pub(crate) async fn start_again_with_store(self, store: Store) -> Host {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let host = Host::with_data(&arguments, self.data.clone(), self.vmm.clone(), store);
        drop(self);
        host.ready().await
    }

    async fn ready(self) -> Host {
        let host = self;
        let mut template = host.app.templates.default().watch();
        let ready = template.wait_for(|availability| matches!(availability, Availability::Ready(_)));
        tokio::time::timeout(DEADLINE, ready).await.unwrap().unwrap();
        host.pool_is_full().await;
        host
    }

    /// A host whose template has not booted yet, for as long as nothing is awaited.
    pub(crate) fn start_without_template(arguments: &[&str]) -> Host {
        let data = Arc::new(tempfile::tempdir().unwrap());
        Host::with_data(arguments, data, FakeVmm::default(), Store::in_memory().unwrap())
    }

    fn with_data(arguments: &[&str], data: Arc<TempDir>, vmm: FakeVmm, store: Store) -> Host {
        let rootfs = data.path().join("rootfs.ext4");
        if !rootfs.exists() {
            std::fs::write(&rootfs, "an image").unwrap();
        }
        let [folder, image] = [data.path(), &rootfs].map(|path| path.to_str().unwrap());
        let places = ["--data-dir", folder, "--rootfs", image];
        let settings = settings(&[arguments, &places].concat());
        let NetworkSettings::On { subnet, .. } = &settings.network else {
            panic!("a fake network costs nothing")
        };
        let network = FakeDriver::new(*subnet);
        let records = Records::read(store, &settings).unwrap();
        let network_handle = Network::new(Box::new(network.clone()));
        let app = App::new(settings, Arc::new(vmm.clone()), network_handle, records);
        let kept = app.clone();
        let keeper = tokio::spawn(async move { kept.keep().await }).abort_handle();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Host { app, vmm, network, keeper, arguments, data }
    }

    /// Another host, which has the same image and machines and nothing else.
    pub(crate) async fn start_beside(&self) -> Host {
        let data = Arc::new(tempfile::tempdir().unwrap());
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let store = Store::in_memory().unwrap();
        Host::with_data(&arguments, data, self.vmm.clone(), store).ready().await
    }

    /// The bytes of an answer.
    pub(crate) async fn send_for_bytes(&self, request: Request<Body>) -> (StatusCode, Bytes) {
        let response = self.router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, body.collect().await.unwrap().to_bytes())
    }

    /// Where it keeps Spaces.
    pub(crate) fn spaces_folder(&self) -> PathBuf {
        self.data.path().join("fake/spaces")
    }

    /// Where it keeps what Spaces are laid over.
    pub(crate) fn bases_folder(&self) -> PathBuf {
        self.data.path().join("fake/bases")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.data.path().join("rootfs.ext4")
    }

    pub(crate) fn router(&self) -> Router {
        router(self.app.clone())
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    /// Asks with a key.
    pub(crate) async fn ask(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string().into()),
            None => request.body(Body::empty()),
        };
        self.send(request.unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(json_request(path, body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        let mut request = json_request(path, body);
        *request.method_mut() = axum::http::Method::PUT;
        self.send(request).await
    }

    pub(crate) async fn delete(&self, id: &str) -> Answer {
        self.delete_at(&format!("/v1/sandboxes/{id}")).await
    }

    pub(crate) async fn delete_at(&self, path: &str) -> Answer {
        self.send(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn merge(&self, parent: &str, winner: &str) -> Answer {
        let path = format!("/v1/sandboxes/{parent}/merge_into/{winner}");
        self.send(Request::post(path).body(Body::empty()).unwrap()).await
    }

    /// A new sandbox's id.
    pub(crate) async fn create(&self) -> String {
        self.create_with(&json!({})).await["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn create_with(&self, body: &Value) -> Value {
        let answer = self.post("/v1/sandboxes", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.json()
    }

    pub(crate) async fn fork(&self, id: &str, n: u32) -> Vec<String> {
        let answer = self.post(&format!("/v1/sandboxes/{id}/fork"), &json!({"n": n})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        serde_json::from_value(answer.json()["children"].clone()).unwrap()
    }

    /// A new checkpoint's id.
    pub(crate) async fn checkpoint(&self, id: &str) -> String {
        let answer = self.post(&format!("/v1/sandboxes/{id}/checkpoints"), &json!({})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn fork_checkpoint(&self, checkpoint: &str, n: u32) -> Vec<String> {
        let answer = self.post(&format!("/v1/checkpoints/{checkpoint}/fork"), &json!({"n": n})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        serde_json::from_value(answer.json()["children"].clone()).unwrap()
    }

    pub(crate) async fn restore(&self, id: &str, checkpoint: &str) -> Answer {
        self.post(&format!("/v1/sandboxes/{id}/restore"), &json!({"checkpoint": checkpoint})).await
    }

    pub(crate) async fn put_file(&self, id: &str, path: &str, content: impl Into<Body>) -> Answer {
        let request = Request::put(format!("/v1/sandboxes/{id}/files?path={path}"));
        self.send(request.body(content.into()).unwrap()).await
    }

    pub(crate) async fn get_file(&self, id: &str, path: &str) -> Answer {
        self.get(&format!("/v1/sandboxes/{id}/files?path={path}")).await
    }

    /// An answer's head, with its body still to come.
    pub(crate) async fn open(&self, path: &str) -> (StatusCode, HeaderMap, Stream) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (parts, body) = self.router().oneshot(request).await.unwrap().into_parts();
        (parts.status, parts.headers, Stream(body.into_data_stream()))
    }

    /// Starts code; its answer's head is there when this returns.
    pub(crate) async fn start_exec(&self, id: &str, code: &str) -> Stream {
        let request = json_request(&format!("/v1/sandboxes/{id}/exec"), &json!({"code": code}));
        let response = self.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Stream(response.into_body().into_data_stream())
    }

    /// Starts code with what goes with it, and gives its id, too.
    pub(crate) async fn start_call(&self, id: &str, body: &Value) -> (String, Stream) {
        let request = json_request(&format!("/v1/sandboxes/{id}/exec"), body);
        let response = self.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let exec_id = response.headers()["podflare-exec-id"].to_str().unwrap().to_owned();
        (exec_id, Stream(response.into_body().into_data_stream()))
    }

    /// The executions that run or wait.
    pub(crate) async fn execs(&self, id: &str) -> Vec<Value> {
        let answer = self.get(&format!("/v1/sandboxes/{id}/execs")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer.json()["execs"].as_array().unwrap().clone()
    }

    pub(crate) async fn cancel(&self, id: &str, exec: &str) -> StatusCode {
        self.delete_at(&format!("/v1/sandboxes/{id}/execs/{exec}")).await.status
    }

    /// A terminal whose program has ended.
    pub(crate) async fn exited_pty(&self, id: &str) -> String {
        let answer = self.post(&format!("/v1/sandboxes/{id}/pty"), &json!({"shellCmd": "exit 0"})).await;
        let ready: Value = serde_json::from_str(answer.body.lines().next().unwrap()).unwrap();
        ready["session_id"].as_str().unwrap().to_owned()
    }

    /// Runs code to its end.
    pub(crate) async fn exec(&self, id: &str, code: &str) -> Vec<ExecEventKind> {
        self.start_exec(id, code).await.rest().await
    }

    /// What code prints.
    pub(crate) async fn text(&self, id: &str, code: &str) -> String {
        let lines = self.exec(id, code).await.into_iter().filter_map(|kind| match kind {
            ExecEventKind::Stdout(line) => Some(line),
            ExecEventKind::Stderr(_) | ExecEventKind::Exit(_) => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The default template's.
    pub(crate) fn pool(&self) -> &Pool {
        &self.app.templates.default().pool
    }

    pub(crate) async fn capacity(&self) -> Value {
        self.get("/v1/capacity").await.json()
    }

    pub(crate) async fn pool_is_full(&self) {
        until("the pool is full", async || {
            let levels = self.pool().counters().levels;
            levels.ready >= levels.wanted && levels.starting == 0
        })
        .await;
    }

    /// Waits until so many machines are left, the template's included.
    pub(crate) async fn machines_are(&self, count: u32) {
        until("only the expected machines are left", async || self.vmm.alive() == count).await;
    }

    pub(crate) async fn is_gone(&self, id: &str) {
        let path = format!("/v1/sandboxes/{id}");
        until("the sandbox is gone", async || self.get(&path).await.status == StatusCode::NOT_FOUND).await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The text of the one error body.
    pub(crate) fn error(&self) -> String {
        let body = self.json();
        let known = |name: &String| ["error", "code", "failures"].contains(&name.as_str());
        assert!(body.as_object().unwrap().keys().all(known), "{body}");
        body["error"].as_str().unwrap().to_owned()
    }
}

impl Stream {
    pub(crate) fn of(body: Body) -> Stream {
        Stream(body.into_data_stream())
    }

    /// The next bytes as they are sent.
    pub(crate) async fn next_bytes(&mut self) -> Option<Bytes> {
        self.0.next().await.map(|bytes| bytes.unwrap())
    }

    pub(crate) async fn rest(self) -> Vec<ExecEventKind> {
        events(&self.rest_bytes().await)
    }

    pub(crate) async fn rest_bytes(mut self) -> String {
        let mut text = Vec::new();
        while let Some(bytes) = self.next_bytes().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }
}

/// The events of a stream; their numbers must follow each other.
pub(crate) fn events(text: &str) -> Vec<ExecEventKind> {
    let events = text.lines().filter(|line| !line.is_empty());
    let events: Vec<ExecEvent> = events.map(|line| serde_json::from_str(line).unwrap()).collect();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.seq, index as u64);
    }
    events.into_iter().map(|event| event.kind).collect()
}

pub(crate) fn json_request(path: &str, body: &Value) -> Request<Body> {
    let body = Body::from(body.to_string());
    Request::post(path).header("content-type", "application/json").body(body).unwrap()
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("it did not come true that {what}"));
}

pub(crate) fn stdout(line: &str) -> ExecEventKind {
    ExecEventKind::Stdout(line.to_owned())
}

pub(crate) fn stderr(line: &str) -> ExecEventKind {
    ExecEventKind::Stderr(line.to_owned())
}

pub(crate) fn exit(code: i32) -> ExecEventKind {
    ExecEventKind::Exit(code)
}

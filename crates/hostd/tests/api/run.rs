//! The daemon as a whole, on a real socket: start, serve, shut down.

use crate::host::{records, settings};
use podflare_hostd::app::RunError;
use podflare_hostd::config::Settings;
use podflare_hostd::network::Network;
use podflare_hostd::vmm::fake::FakeVmm;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Daemon {
    address: SocketAddr,
    vmm: FakeVmm,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), RunError>>,
}

impl Daemon {
    async fn start() -> Daemon {
        Daemon::with(settings(&[])).await
    }

    async fn with(settings: Settings) -> Daemon {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let vmm = FakeVmm::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { stopped.await.unwrap_or(()) };
        let machines = Arc::new(vmm.clone());
        let running = tokio::spawn(podflare_hostd::run(
            listener,
            settings.clone(),
            machines,
            Network::none(),
            records(&settings),
            shutdown,
        ));
        Daemon { address, vmm, stop, running }
    }

    /// Sends a request and gives the connection back.
    async fn request(&self, head: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let len = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    async fn create(&self) -> String {
        let wait = async {
            loop {
                let mut stream = self.request("POST /v1/sandboxes", "{}").await;
                let body = read_answer(&mut stream).await;
                if let Ok(created) = serde_json::from_str::<podflare_api::sandbox::SandboxCreated>(&body) {
                    return created.id.to_string();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap()
    }

    async fn stop(self) -> Result<(), RunError> {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(30), self.running).await.unwrap().unwrap()
    }
}

/// The body of an answer with a length.
async fn read_answer(stream: &mut BufReader<TcpStream>) -> String {
    let mut len = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if let Some(value) = line.strip_prefix("content-length: ") {
            len = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            let mut body = vec![0; len];
            stream.read_exact(&mut body).await.unwrap();
            return String::from_utf8(body).unwrap();
        }
    }
}

#[tokio::test]
async fn shutting_down_ends_every_machine_and_tells_running_executions() {
    let daemon = Daemon::start().await;
    let id = daemon.create().await;
    let code = r#"{"code": "print begun\nsleep 3600000"}"#;
    let mut stream = daemon.request(&format!("POST /v1/sandboxes/{id}/exec"), code).await;
    let mut line = String::new();
    while !line.contains("begun") {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    let mut checkpoint = daemon.request(&format!("POST /v1/sandboxes/{id}/checkpoints"), "{}").await;
    let body = read_answer(&mut checkpoint).await;
    serde_json::from_str::<podflare_api::checkpoint::CheckpointView>(&body).unwrap();
    let vmm = daemon.vmm.clone();
    daemon.stop().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("the sandbox has ended: the host is shutting down"), "{rest}");
    assert!(rest.contains(r#""type":"exit","data":137"#), "{rest}");
    assert!(rest.ends_with("0\r\n\r\n"), "the answer is whole: {rest}");
    assert_eq!(vmm.alive(), 0);
}

#[tokio::test]
async fn shutting_down_freezes_what_is_persistent_and_ends_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let rootfs = folder.path().join("rootfs");
    std::fs::write(&rootfs, "an image").unwrap();
    let [data, rootfs] = [folder.path(), &rootfs].map(|path| path.to_str().unwrap());
    let daemon = Daemon::with(settings(&["--data-dir", data, "--rootfs", rootfs])).await;
    daemon.create().await;
    let mut lasting = daemon.request("POST /v1/sandboxes", r#"{"persistent": true}"#).await;
    serde_json::from_str::<podflare_api::sandbox::SandboxCreated>(&read_answer(&mut lasting).await).unwrap();
    let vmm = daemon.vmm.clone();
    daemon.stop().await.unwrap();
    assert_eq!(vmm.alive(), 0);
    assert_eq!(std::fs::read_dir(folder.path().join("fake/spaces")).unwrap().count(), 1);
}

#[tokio::test]
async fn shutting_down_ends_sizes_that_are_booted_or_boot_and_tells_who_waits_for_them() {
    let daemon = Daemon::start().await;
    daemon.create().await;
    let mut other = daemon.request("POST /v1/sandboxes", r#"{"ram_mib": 512}"#).await;
    serde_json::from_str::<podflare_api::sandbox::SandboxCreated>(&read_answer(&mut other).await).unwrap();
    let boots = daemon.vmm.boots().len();
    daemon.vmm.set_boot_time(Duration::from_secs(3600));
    let mut waiting = daemon.request("POST /v1/sandboxes", r#"{"ram_mib": 768}"#).await;
    crate::host::until("it boots", async || daemon.vmm.boots().len() > boots).await;
    let vmm = daemon.vmm.clone();
    daemon.stop().await.unwrap();
    let answer = read_answer(&mut waiting).await;
    assert!(answer.contains("shutting down"), "{answer}");
    assert_eq!(vmm.alive(), 0);
}

#[tokio::test]
async fn the_readmes_curl_creates_a_sandbox() {
    let daemon = Daemon::start().await;
    daemon.create().await;
    let mut stream = BufReader::new(TcpStream::connect(daemon.address).await.unwrap());
    let host = daemon.address;
    let request = format!(
        "POST /v1/sandboxes HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let body = read_answer(&mut stream).await;
    serde_json::from_str::<podflare_api::sandbox::SandboxCreated>(&body).unwrap();
    daemon.stop().await.unwrap();
}

#[tokio::test]
async fn an_answer_begins_before_the_code_ends() {
    let daemon = Daemon::start().await;
    let id = daemon.create().await;
    let code = r#"{"code": "sleep 3600000"}"#;
    let mut stream = daemon.request(&format!("POST /v1/sandboxes/{id}/exec"), code).await;
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    daemon.stop().await.unwrap();
}

#[tokio::test]
async fn a_template_that_does_not_boot_ends_the_daemon_with_its_console() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let vmm = FakeVmm::default();
    vmm.fail_boots(1);
    let error = podflare_hostd::run(
        listener,
        settings(&[]),
        Arc::new(vmm.clone()),
        Network::none(),
        records(&settings(&[])),
        std::future::pending(),
    )
    .await
    .unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Kernel panic - not syncing: no root disk"), "{source}");
    assert_eq!(vmm.alive(), 0);
}

#[tokio::test]
async fn shutting_down_waits_for_copies_that_are_being_made() {
    let daemon = Daemon::start().await;
    daemon.create().await;
    let vmm = daemon.vmm.clone();
    vmm.set_renewal_time(Duration::from_secs(3600));
    let _claims_a_member = daemon.request("POST /v1/sandboxes", "{}").await;
    let settled = vmm.alive() + 1;
    crate::host::until("another member is made", async || vmm.alive() >= settled).await;
    daemon.stop().await.unwrap();
    assert_eq!(vmm.alive(), 0);
}

/// What is answered to a client that says this and then nothing more, until its connection is cut.
async fn answer_to_one_that_stops_after(text: &str) -> String {
    let daemon = Daemon::start().await;
    daemon.create().await;
    // From here on, time passes whenever all there is to do is to wait.
    tokio::time::pause();
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    tokio::time::resume();
    answer
}

#[tokio::test]
async fn a_client_that_asks_nothing_is_cut_off() {
    for text in ["", "P", "PRI * HTTP/2.0\r\n", "GET /v1/healthz HTTP/1.1\r\nHost: 127"] {
        assert_eq!(answer_to_one_that_stops_after(text).await, "", "{text:?}");
    }
}

#[tokio::test]
async fn a_connection_that_lies_idle_is_closed_after_its_answer() {
    let answer = answer_to_one_that_stops_after("GET /v1/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let head = "POST /v1/sandboxes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{";
    let answer = answer_to_one_that_stops_after(head).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("nothing more of it came for 30 s"), "{answer}");
}

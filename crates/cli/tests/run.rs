//! `podflare run` as a process, against a host that this test plays.

#![expect(clippy::unwrap_used, reason = "a step that fails in a test's set-up is the test's failure")]

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const CREATED: &str = r#"{"id": "sbx_0f8fad5bd9cb469fa16570867728950e", "state": "ready", "template": "default",
    "ram_mib": 1024, "rootfs_gb": 4, "vcpus": 2, "timeout_seconds": 60, "idle_timeout_seconds": 60,
    "persistent": false, "egress": false}"#;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    listener: TcpListener,
}

impl Host {
    fn start() -> Host {
        Host { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn command(&self) -> Child {
        let url = format!("http://{}", self.listener.local_addr().unwrap());
        Command::new(env!("CARGO_BIN_EXE_podflare"))
            .args(["run", "--url", &url, "while True: pass"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The next request's first two words, and where its answer goes.
    fn request(&self) -> (String, TcpStream) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(&stream);
        let (mut first, mut body_len) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(len) = line.to_lowercase().strip_prefix("content-length:") {
                body_len = len.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; body_len]).unwrap();
        let words: Vec<&str> = first.split(' ').take(2).collect();
        (words.join(" "), stream)
    }
}

fn answer(mut stream: TcpStream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}

fn interrupt(command: &Child) {
    kill_process(Pid::from_child(command), Signal::INT).unwrap();
}

/// Code that it still runs, or begins to run meanwhile, is never answered.
fn check_closes_its_sandbox(host: &Host, mut command: Child) {
    let mut unanswered = Vec::new();
    loop {
        let (request, stream) = host.request();
        if !request.starts_with("DELETE") {
            unanswered.push(stream);
            continue;
        }
        assert_eq!(request, "DELETE /v1/sandboxes/sbx_0f8fad5bd9cb469fa16570867728950e");
        answer(stream, "{}");
        break;
    }
    assert_eq!(command.wait().as_ref().map(ExitStatus::code).unwrap(), Some(130));
}

#[test]
fn an_interrupted_run_closes_its_sandbox() {
    let host = Host::start();
    let command = host.command();
    let (_, stream) = host.request();
    answer(stream, CREATED);
    let (request, _unanswered) = host.request();
    assert!(request.ends_with("/exec"), "{request}");
    interrupt(&command);
    check_closes_its_sandbox(&host, command);
}

#[test]
fn a_run_that_is_interrupted_while_its_sandbox_is_made_closes_it() {
    let host = Host::start();
    let command = host.command();
    let (request, stream) = host.request();
    assert_eq!(request, "POST /v1/sandboxes");
    interrupt(&command);
    answer(stream, CREATED);
    check_closes_its_sandbox(&host, command);
}

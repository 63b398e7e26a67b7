//! `podflare shell` as a process in a terminal of its own, against a host that this test plays.

#![expect(clippy::unwrap_used, reason = "a step that fails in a test's set-up is the test's failure")]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

const SANDBOX: &str = "sbx_0f8fad5bd9cb469fa16570867728950e";
const PTY: &str = "pty_00000000000000000000000000000001";

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host with one terminal.
struct Host {
    url: String,
    /// Method and path, and the body.
    requests: Receiver<(String, Value)>,
    /// What its stream says; dropping this ends it.
    stream: Sender<String>,
}

impl Host {
    fn start() -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, requests) = channel();
        let (stream, lines) = channel();
        thread::spawn(move || {
            let mut lines = Some(lines);
            for connection in listener.incoming() {
                serve(connection.unwrap(), &asked, &mut lines);
            }
        });
        Host { url, requests, stream }
    }

    fn says(&self, event: &Value) {
        self.stream.send(format!("{event}\n")).unwrap();
    }

    fn prints(&self, text: &str) {
        self.says(&json!({"type": "pty_data", "data_b64": BASE64_STANDARD.encode(text), "seq": 0}));
    }

    /// The next request of this kind; a size may be told at any time.
    #[track_caller]
    fn asked(&self, what: &str) -> Value {
        loop {
            let (request, body) = self.requests.recv_timeout(PATIENCE).unwrap();
            if request.ends_with(what) {
                return body;
            }
            assert!(request.ends_with("/resize"), "{request} instead of {what}");
        }
    }

    #[track_caller]
    fn typed(&self) -> String {
        let data = self.asked("/input")["data_b64"].as_str().unwrap().to_owned();
        String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap()
    }
}

fn serve(mut connection: TcpStream, asked: &Sender<(String, Value)>, lines: &mut Option<Receiver<String>>) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
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
    let mut body = vec![0; body_len];
    reader.read_exact(&mut body).unwrap();
    let request = first.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let is_stream = request.ends_with("/pty") || request.ends_with("/attach");
    // The test may have ended.
    asked.send((request, serde_json::from_slice(&body).unwrap_or_default())).ok();
    if !is_stream {
        connection.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
        return;
    }
    let lines = lines.take().unwrap();
    thread::spawn(move || {
        connection.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").unwrap();
        for line in lines {
            // The command may have ended.
            connection.write_all(line.as_bytes()).ok();
        }
    });
}

/// A terminal, and the command in it.
struct Screen {
    master: OwnedFd,
    slave: OwnedFd,
    command: Child,
    output: String,
}

impl Screen {
    fn start(host: &Host, arguments: &[&str]) -> Screen {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        set_size(&master, 100, 30);
        // So that the terminal is its controlling one.
        let command = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_podflare"), "shell", "--url", &host.url])
            .args(arguments)
            .env("TERM", "test-term")
            .stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        Screen { master, slave, command, output: String::new() }
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.output.contains(text) {
            let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
            let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
            assert_eq!(poll(&mut ready, Some(&patience)), Ok(1), "no {text:?} in {:?}", self.output);
            let len = rustix::io::read(&self.master, &mut buffer).unwrap();
            self.output += std::str::from_utf8(&buffer[..len]).unwrap();
        }
    }

    fn types(&self, keys: &str) {
        assert_eq!(rustix::io::write(&self.master, keys.as_bytes()), Ok(keys.len()));
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// Its exit code. The terminal must be as it was.
    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let status = self.command.wait().unwrap();
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG), "it is still raw");
        status.code()
    }
}

fn set_size(master: &OwnedFd, cols: u16, rows: u16) {
    tcsetwinsize(master, Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

/// A shell that has said its first word.
fn shell() -> (Host, Screen) {
    let host = Host::start();
    let mut screen = Screen::start(&host, &[SANDBOX]);
    host.asked("/pty");
    host.says(&json!({"type": "pty_ready", "session_id": PTY}));
    host.prints("prompt> ");
    screen.wait_for("prompt> ");
    (host, screen)
}

#[test]
fn a_shell_begins_with_the_size_and_kind_of_this_terminal() {
    let host = Host::start();
    let mut screen = Screen::start(&host, &[SANDBOX]);
    let expected = json!({
        "argv": ["/bin/bash", "-l"], "cols": 100, "rows": 30, "env": [["TERM", "test-term"]]
    });
    assert_eq!(host.asked(&format!("POST /v1/sandboxes/{SANDBOX}/pty")), expected);
    host.says(&json!({"type": "pty_ready", "session_id": PTY}));
    host.says(&json!({"type": "pty_exit", "data": 0}));
    assert_eq!(screen.ends(), Some(0));
}

#[test]
fn keys_go_through_as_they_are_and_the_exit_code_comes_back() {
    let (host, mut screen) = shell();
    assert!(screen.is_raw());
    screen.types("ä\r");
    assert_eq!(host.typed(), "ä\r");
    // What interrupts, suspends or ends things here does so there.
    screen.types("\x03\x1a\x04");
    assert_eq!(host.typed(), "\x03\x1a\x04");
    host.stream.send("\n".to_owned()).unwrap();
    host.prints("bye\r\n");
    host.says(&json!({"type": "pty_exit", "data": 7}));
    screen.wait_for("bye\r\n");
    assert_eq!(screen.ends(), Some(7));
    assert!(!screen.output.contains('ä'), "it echoes what the sandbox echoes: {:?}", screen.output);
}

#[test]
fn a_new_size_of_this_terminal_is_told_to_the_other() {
    let (host, mut screen) = shell();
    set_size(&screen.master, 132, 50);
    while host.asked("/resize") != json!({"cols": 132, "rows": 50}) {}
    host.says(&json!({"type": "pty_exit", "data": 0}));
    assert_eq!(screen.ends(), Some(0));
}

#[test]
fn a_shell_that_is_told_to_end_gives_the_terminal_back_and_says_how_to_return() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let (_host, mut screen) = shell();
        kill_process(Pid::from_child(&screen.command), signal).unwrap();
        assert_eq!(screen.ends(), Some(130));
        screen.wait_for(&format!("`podflare shell {SANDBOX} --attach {PTY}`"));
        assert!(screen.output.contains("\x1b[?1049l"), "{:?}", screen.output);
    }
}

#[test]
fn a_host_that_breaks_off_is_an_error_and_the_terminal_comes_back() {
    let (host, mut screen) = shell();
    drop(host);
    assert_eq!(screen.ends(), Some(1));
    screen.wait_for("error: The terminal was lost");
    screen.wait_for("without an exit code");
}

#[test]
fn the_end_of_the_sandbox_is_told_in_the_hosts_words() {
    let (host, mut screen) = shell();
    host.says(&json!({"type": "pty_error", "message": "the sandbox has ended"}));
    assert_eq!(screen.ends(), Some(1));
    screen.wait_for("the sandbox has ended");
}

#[test]
fn a_program_that_does_not_start_is_told_in_the_hosts_words() {
    let host = Host::start();
    let mut screen = Screen::start(&host, &[SANDBOX, "nonsense", "-v"]);
    assert_eq!(host.asked("/pty")["argv"], json!(["nonsense", "-v"]));
    host.says(&json!({"type": "pty_error", "message": "no such program"}));
    assert_eq!(screen.ends(), Some(1));
    screen.wait_for("error: no such program");
}

#[test]
fn whoever_returns_sees_what_was_printed_meanwhile() {
    let host = Host::start();
    let mut screen = Screen::start(&host, &["--attach", PTY, SANDBOX]);
    host.asked(&format!("GET /v1/sandboxes/{SANDBOX}/pty/{PTY}/attach"));
    assert_eq!(host.asked("/resize"), json!({"cols": 100, "rows": 30}));
    host.prints("meanwhile");
    screen.wait_for("meanwhile");
    screen.types("x");
    assert_eq!(host.typed(), "x");
    host.says(&json!({"type": "pty_exit", "data": 0}));
    assert_eq!(screen.ends(), Some(0));
}

#[test]
fn whoever_returns_answers_no_questions_of_the_past_and_those_of_now() {
    let host = Host::start();
    let mut screen = Screen::start(&host, &["--attach", PTY, SANDBOX]);
    host.asked("/attach");
    host.prints("past\x1b[6n\x1b]11;?\x07\x1b[");
    host.prints("c.");
    screen.wait_for("past.");
    // As long as it takes until what comes is of now.
    thread::sleep(Duration::from_secs(2));
    host.prints("now\x1b[6n.");
    screen.wait_for("now\x1b[6n.");
    host.says(&json!({"type": "pty_exit", "data": 0}));
    assert_eq!(screen.ends(), Some(0));
}

#[test]
fn without_a_terminal_nothing_is_asked_of_the_host() {
    let host = Host::start();
    let output = Command::new(env!("CARGO_BIN_EXE_podflare"))
        .args(["shell", "--url", &host.url, SANDBOX])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs a terminal"));
    assert!(host.requests.try_recv().is_err());
}

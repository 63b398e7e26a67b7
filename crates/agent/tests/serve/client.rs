//! An agent on a Unix socket, and hostd's side of its protocol, for tests.

use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::guest::{
    ENTROPY_LEN, Event, ExecContext, ExecEnd, ExecId, Inherited, Language, OutputStream, PROTOCOL, Renewal,
    ReplRenewal, Request,
};
use podflare_wire::limits::{EVENT_FRAME_LEN_MAX, OUTPUT_CHUNK_LEN_MAX};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything here takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Agent {
    process: Child,
    pub(crate) home: tempfile::TempDir,
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn start() -> Agent {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("agent.sock");
        // Tests that run in the background of a script ignore SIGINT, and so would all programs that they start.
        let process = Command::new("env")
            .arg("--default-signal=INT,QUIT")
            .args([env!("CARGO_BIN_EXE_podflare-agent"), "serve", "--unix"])
            .arg(&socket)
            .arg("--home")
            .arg(home.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Agent { process, home, socket }
    }

    /// A connection on which nothing has been said.
    pub(crate) fn connect(&self) -> Client {
        let stream = eventually(|| UnixStream::connect(&self.socket).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = FrameReader::new(EVENT_FRAME_LEN_MAX);
        Client { stream, reader, greeted: false, execs: 0, outcomes: HashMap::new(), grants: true }
    }

    /// A connection to the file server.
    pub(crate) fn connect_to_files(&self) -> UnixStream {
        let stream = eventually(|| UnixStream::connect(self.home.path().join("agent.sock.files")).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection to its terminals, on which nothing has been said.
    pub(crate) fn terminal_stream(&self) -> UnixStream {
        let path = self.home.path().join("agent.sock.terminals");
        let stream = eventually(|| UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection that is ready to run code.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.connect();
        client.renew();
        client
    }

    /// A file of the agent's own directory in /proc.
    pub(crate) fn process_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id())).unwrap()
    }

    pub(crate) fn memory_kib(&self) -> u64 {
        let status = self.process_file("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) end: Option<(i32, ExecEnd)>,
}

impl Outcome {
    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(crate) fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }

    pub(crate) fn exit_code(&self) -> i32 {
        self.end.as_ref().unwrap().0
    }

    pub(crate) fn exec_end(&self) -> &ExecEnd {
        &self.end.as_ref().unwrap().1
    }
}

pub(crate) struct Client {
    stream: UnixStream,
    reader: FrameReader,
    greeted: bool,
    execs: u32,
    outcomes: HashMap<ExecId, Outcome>,
    /// Whether output is granted anew as soon as it has arrived.
    pub(crate) grants: bool,
}

impl Client {
    pub(crate) fn send(&mut self, request: &Request) {
        self.stream.write_all(&encode_frame(request)).unwrap();
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// `None` when the agent has closed the connection. What greets it is not handed out.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        if !self.greeted {
            self.greeted = true;
            assert_eq!(self.next_event(), Some(Event::Hello { protocol: PROTOCOL }));
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(event) = self.reader.next_message().unwrap() {
                return Some(event);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.reader.push(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no event: {error}"),
            }
        }
    }

    /// All that the agent has sent, once it has closed the connection.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn renew(&mut self) -> ReplRenewal {
        self.inherit().0
    }

    /// As `renew`, with what has run since before.
    pub(crate) fn inherit(&mut self) -> (ReplRenewal, Option<Inherited>) {
        self.send(&renew_request());
        match self.next_event() {
            Some(Event::Renewed { repl, inherited }) => (repl, inherited),
            other => panic!("not renewed: {other:?}"),
        }
    }

    pub(crate) fn start(&mut self, language: Language, code: &str) -> ExecId {
        self.start_with(language, code, ExecContext::default())
    }

    pub(crate) fn start_with(&mut self, language: Language, code: &str, context: ExecContext) -> ExecId {
        let exec = ExecId(self.execs);
        self.execs += 1;
        self.send(&exec_request(exec, language, code, context));
        exec
    }

    /// Runs code in surroundings of its own.
    pub(crate) fn run_with(&mut self, language: Language, code: &str, context: ExecContext) -> Outcome {
        let exec = self.start_with(language, code, context);
        self.wait(exec)
    }

    pub(crate) fn cancel(&mut self, exec: ExecId) {
        self.send(&Request::Cancel { exec });
    }

    /// Takes events until the condition holds for what is known of the execution.
    pub(crate) fn wait_until(&mut self, exec: ExecId, condition: impl Fn(&Outcome) -> bool) -> Outcome {
        loop {
            if let Some(outcome) = self.outcomes.get(&exec).filter(|outcome| condition(outcome)) {
                return outcome.clone();
            }
            let event = self.next_event().expect("the agent closed the connection");
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Output { exec, stream, data } => {
                assert!(data.len() <= OUTPUT_CHUNK_LEN_MAX);
                let outcome = self.outcomes.entry(exec).or_default();
                assert_eq!(outcome.end, None, "output after the end");
                match stream {
                    OutputStream::Stdout => outcome.stdout.extend_from_slice(&data),
                    OutputStream::Stderr => outcome.stderr.extend_from_slice(&data),
                }
                if self.grants {
                    self.send(&Request::Grant { exec, bytes: u32::try_from(data.len()).unwrap() });
                }
            }
            Event::Exited { exec, exit_code, end } => {
                let outcome = self.outcomes.entry(exec).or_default();
                assert_eq!(outcome.end.replace((exit_code, end)), None, "two ends");
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn wait(&mut self, exec: ExecId) -> Outcome {
        self.wait_until(exec, |outcome| outcome.end.is_some())
    }

    pub(crate) fn python(&mut self, code: &str) -> Outcome {
        let exec = self.start(Language::Python, code);
        self.wait(exec)
    }

    pub(crate) fn bash(&mut self, code: &str) -> Outcome {
        let exec = self.start(Language::Bash, code);
        self.wait(exec)
    }

    /// The standard output of Python code that must succeed.
    pub(crate) fn eval(&mut self, code: &str) -> String {
        let outcome = self.python(code);
        assert_eq!((outcome.stderr(), outcome.exit_code()), ("", 0), "{code}");
        outcome.stdout().to_owned()
    }
}

pub(crate) fn exec_request(exec: ExecId, language: Language, code: &str, context: ExecContext) -> Request {
    Request::Exec { exec, language, code: code.to_owned(), context, announce: false }
}

pub(crate) fn renew_request() -> Request {
    Request::Renew(Renewal {
        entropy: vec![7; ENTROPY_LEN],
        unix_time_ns: 1_700_000_000_000_000_000,
        hostname: "sandbox".into(),
        network: None,
    })
}

/// Asks again and again until there is an answer.
pub(crate) fn eventually<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::sleep(Duration::from_millis(2));
    }
}

//! Terminals: programs with a controlling terminal, and those who come to it, look on, leave and return.

use crate::client::{Agent, eventually};
use podflare_wire::codec::{FrameReader, encode_frame};
use podflare_wire::limits::{
    TERMINAL_CONNECTIONS_MAX, TERMINAL_EVENT_LEN_MAX, TERMINAL_RING_LEN, TERMINALS_MAX,
};
use podflare_wire::terminal::{Cause, Chunk, Command, Event, Program, Request, Size, Terminal};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

struct Attachment {
    stream: UnixStream,
    frames: FrameReader,
    output: Vec<u8>,
    /// Where its last output ended.
    end: u64,
}

impl Attachment {
    fn open(agent: &Agent, request: &Request) -> Attachment {
        let mut stream = agent.terminal_stream();
        stream.write_all(&encode_frame(request)).unwrap();
        Attachment { stream, frames: FrameReader::new(TERMINAL_EVENT_LEN_MAX), output: Vec::new(), end: 0 }
    }

    /// `None` when the agent has closed the connection.
    fn next(&mut self) -> Option<Event> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(event) = self.frames.next_message().unwrap() {
                return Some(event);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.frames.push(&buffer[..len]),
                Err(error) => panic!("{error} after {:?}", self.text()),
            }
        }
    }

    #[track_caller]
    fn ready(mut self) -> Attachment {
        assert_eq!(self.next(), Some(Event::Ready));
        self
    }

    /// Takes output, which must have no gap, until it has this in it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        while !self.text().contains(text) {
            match self.next() {
                Some(Event::Output { seq, data }) => {
                    assert_eq!(seq, self.end, "a gap");
                    self.end += data.len() as u64;
                    self.output.extend(data);
                }
                other => panic!("{other:?} after {:?}", self.text()),
            }
        }
    }

    /// All output to the end, and the exit code.
    fn rest(mut self) -> (String, i32) {
        loop {
            match self.next() {
                Some(Event::Output { data, .. }) => self.output.extend(data),
                Some(Event::Exited { exit_code }) => {
                    assert_eq!(self.next(), None);
                    return (self.text(), exit_code);
                }
                other => panic!("{other:?} after {:?}", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

fn program(command: Command) -> Program {
    Program { command, size: Size { cols: 80, rows: 24 }, env: Vec::new(), cwd: None }
}

fn shell(line: &str) -> Program {
    program(Command::Shell(line.to_owned()))
}

fn argv(arguments: &[&str]) -> Program {
    program(Command::Argv(arguments.iter().map(|&argument| argument.to_owned()).collect()))
}

/// A shell whose prompt has no control sequences.
fn interactive() -> Program {
    Program { env: vec![("TERM".into(), "dumb".into())], ..argv(&["bash", "--norc", "-i"]) }
}

fn create(agent: &Agent, terminal: &str, program: Program) -> Attachment {
    Attachment::open(agent, &Request::Create { terminal: terminal.to_owned(), program })
}

fn attach(agent: &Agent, terminal: &str) -> Attachment {
    Attachment::open(agent, &Request::Attach { terminal: terminal.to_owned() })
}

fn ask(agent: &Agent, request: &Request) -> Event {
    Attachment::open(agent, request).next().unwrap()
}

fn type_in(agent: &Agent, terminal: &str, text: &str) {
    let request = Request::Input { terminal: terminal.to_owned(), data: text.as_bytes().to_vec() };
    assert_eq!(ask(agent, &request), Event::Done);
}

fn read(agent: &Agent, since_seq: u64, len_max: u32, timeout_ms: u32) -> Chunk {
    match ask(agent, &Request::Read { terminal: "t".to_owned(), since_seq, len_max, timeout_ms }) {
        Event::Chunk(chunk) => chunk,
        other => panic!("{other:?}"),
    }
}

fn list(agent: &Agent) -> Vec<Terminal> {
    match ask(agent, &Request::List) {
        Event::Terminals(terminals) => terminals,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check_refused(event: &Event, expected: Cause) {
    assert!(matches!(event, Event::Failed { cause, .. } if *cause == expected), "{event:?}");
}

#[test]
fn a_program_has_a_controlling_terminal_of_its_own_session() {
    let agent = Agent::start();
    let line = "tty; stty size; echo $TERM $HOME $USER; ps -o sid=,pgid=,tpgid= -p $$ | xargs -n 1 | sort -u | wc -l; \
        echo via tty > /dev/tty; exit 7";
    let (output, exit_code) = create(&agent, "t", shell(line)).ready().rest();
    let home = agent.home.path().display();
    let expected = format!("24 80\r\nxterm-256color {home} root\r\n1\r\nvia tty\r\n");
    assert!(output.starts_with("/dev/pts/") && output.ends_with(&expected), "{output:?}");
    assert_eq!(exit_code, 7);
}

#[test]
fn arguments_are_executed_as_they_are_with_their_variables_and_directory() {
    let agent = Agent::start();
    let arguments = argv(&["/bin/sh", "-c", "echo \"$1|$KEY\"; pwd", "sh", "a  b$HOME"]);
    let program = Program { env: vec![("KEY".into(), "v".into())], cwd: Some("/usr".into()), ..arguments };
    assert_eq!(create(&agent, "t", program).ready().rest(), ("a  b$HOME|v\r\n/usr\r\n".to_owned(), 0));
    let (output, exit_code) = create(&agent, "u", argv(&["/no/such/program"])).ready().rest();
    assert!(output.contains("/no/such/program") && exit_code == 127, "{output:?} {exit_code}");
    let program = Program { cwd: Some("/no/such/place".into()), ..shell("true") };
    check_refused(&create(&agent, "v", program).next().unwrap(), Cause::Invalid);
}

#[test]
fn a_program_starts_without_any_other_that_its_variables_could_lead_to() {
    let agent = Agent::start();
    let nowhere = vec![("PATH".to_owned(), "/no/such/place".to_owned())];
    let program = Program { env: nowhere, ..argv(&["/bin/sh", "-c", "echo here > /dev/tty"]) };
    assert_eq!(create(&agent, "t", program).ready().rest(), ("here\r\n".to_owned(), 0));
}

#[test]
fn a_program_that_is_not_there_is_told_by_its_exit_code() {
    let agent = Agent::start();
    let (output, exit_code) = create(&agent, "t", argv(&["nonsense"])).ready().rest();
    assert!(output.contains("nonsense") && exit_code == 127, "{exit_code} {output:?}");
}

#[test]
fn a_shell_is_interactive_and_its_jobs_are_interrupted_by_ctrl_c() {
    let agent = Agent::start();
    let mut terminal = create(&agent, "t", interactive()).ready();
    type_in(&agent, "t", "echo $((6 * 7))\r");
    terminal.wait_for("\r\n42\r\n");
    // It tells itself that it is in the foreground, which bash's own `echo` could not, and becomes no other program.
    type_in(&agent, "t", "sh -c 'echo on; read line'\r");
    terminal.wait_for("\r\non\r\n");
    type_in(&agent, "t", "\x03");
    // What is typed before bash has the terminal back is lost.
    terminal.wait_for("^C\r\nbash");
    type_in(&agent, "t", "echo $?; exit 5\r");
    terminal.wait_for("\r\n130\r\n");
    assert_eq!(terminal.rest().1, 5);
}

#[test]
fn an_interactive_python_answers() {
    let agent = Agent::start();
    let mut terminal = create(&agent, "t", argv(&["python3", "-i", "-q"])).ready();
    terminal.wait_for(">>> ");
    type_in(&agent, "t", "'ä' * 3\n");
    terminal.wait_for("'äää'");
    type_in(&agent, "t", "exit()\n");
    assert_eq!(terminal.rest().1, 0);
}

#[test]
fn a_resized_terminal_tells_its_program() {
    let agent = Agent::start();
    let line = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut terminal = create(&agent, "t", shell(line)).ready();
    terminal.wait_for("ready");
    let request = Request::Resize { terminal: "t".to_owned(), size: Size { cols: 132, rows: 50 } };
    assert_eq!(ask(&agent, &request), Event::Done);
    let (output, exit_code) = terminal.rest();
    assert!(output.ends_with("50 132\r\n") && exit_code == 0, "{output:?}");
}

#[test]
fn killing_ends_the_program_and_its_foreground_and_may_be_repeated() {
    let agent = Agent::start();
    let mut terminal = create(&agent, "t", interactive()).ready();
    type_in(&agent, "t", "sh -c 'trap \"\" HUP; echo pid $$; sleep 1000; :'\r");
    terminal.wait_for("\r\npid ");
    terminal.wait_for("\r\n");
    let kill = Request::Kill { terminal: "t".to_owned() };
    assert_eq!(ask(&agent, &kill), Event::Done);
    let (output, exit_code) = terminal.rest();
    assert_eq!(exit_code, 137);
    assert_eq!(ask(&agent, &kill), Event::Done);
    let pid: String =
        output.rsplit_once("\r\npid ").unwrap().1.chars().take_while(char::is_ascii_digit).collect();
    eventually(|| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty().then_some(()));
}

#[test]
fn a_terminal_outlives_its_attachments_and_is_replayed_to_the_next() {
    let agent = Agent::start();
    let mut first = create(&agent, "t", interactive()).ready();
    type_in(&agent, "t", "echo fir''st\r");
    first.wait_for("\r\nfirst\r\n");
    drop(first);
    type_in(&agent, "t", "echo sec''ond\r");
    let mut two = [attach(&agent, "t").ready(), attach(&agent, "t").ready()];
    for attachment in &mut two {
        attachment.wait_for("\r\nfirst\r\n");
        attachment.wait_for("\r\nsecond\r\n");
    }
    type_in(&agent, "t", "exit 3\r");
    for attachment in two {
        assert_eq!(attachment.rest().1, 3);
    }
    let (output, exit_code) = attach(&agent, "t").ready().rest();
    assert!(output.contains("second") && exit_code == 3, "{output:?}");
}

#[test]
fn the_end_of_all_output_is_kept_and_a_read_says_what_is_missing() {
    let agent = Agent::start();
    let line = "head -c 3000000 /dev/zero | tr '\\0' x; echo end";
    assert_eq!(create(&agent, "t", shell(line)).ready().rest().1, 0);
    let chunk = read(&agent, 0, 16, 0);
    let start = 3_000_005 - TERMINAL_RING_LEN as u64;
    let expected = Chunk { data: vec![b'x'; 16], next_seq: start + 16, exit_code: None, truncated: true };
    assert_eq!(chunk, expected);
    let chunk = read(&agent, 3_000_000, 16, 0);
    let expected =
        Chunk { data: b"end\r\n".to_vec(), next_seq: 3_000_005, exit_code: Some(0), truncated: false };
    assert_eq!(chunk, expected);
    let after = read(&agent, 3_000_005, 16, 60_000);
    assert_eq!(after, Chunk { data: Vec::new(), ..expected });
    let beyond = Request::Read { terminal: "t".to_owned(), since_seq: 3_000_006, len_max: 1, timeout_ms: 0 };
    check_refused(&ask(&agent, &beyond), Cause::Invalid);
}

#[test]
fn a_read_waits_for_output_and_for_no_longer_than_it_may() {
    let agent = Agent::start();
    let mut terminal = create(&agent, "t", shell("stty -echo; echo ready; read line; echo $line")).ready();
    terminal.wait_for("ready\r\n");
    let nothing = read(&agent, terminal.end, 100, 1);
    assert_eq!(
        nothing,
        Chunk { data: Vec::new(), next_seq: terminal.end, exit_code: None, truncated: false }
    );
    let request =
        Request::Read { terminal: "t".to_owned(), since_seq: terminal.end, len_max: 100, timeout_ms: 60_000 };
    let mut waiting = Attachment::open(&agent, &request);
    type_in(&agent, "t", "typed\r");
    let Some(Event::Chunk(chunk)) = waiting.next() else { panic!("no chunk") };
    assert!(chunk.data.starts_with(b"t"), "{chunk:?}");
}

#[test]
fn an_attachment_that_does_not_read_holds_up_nothing_and_skips_ahead() {
    let agent = Agent::start();
    let mut slow =
        create(&agent, "t", shell("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end")).ready();
    assert_eq!(attach(&agent, "t").ready().rest().1, 0);
    let (mut end, mut skipped, mut last) = (0, 0, Vec::new());
    let exit_code = loop {
        match slow.next() {
            Some(Event::Output { seq, data }) => {
                skipped += seq - end;
                end = seq + data.len() as u64;
                last = data;
            }
            Some(Event::Exited { exit_code }) => break exit_code,
            other => panic!("{other:?}"),
        }
    };
    assert!(skipped > 0);
    assert_eq!((end, exit_code), (20_000_007, 0));
    assert!(last.ends_with(b"end\r\n"));
}

#[test]
fn what_a_program_leaves_in_the_background_does_not_keep_its_terminal_open() {
    let agent = Agent::start();
    let line = "(trap '' HUP; while echo noise; do :; done; touch hung_up) & sleep 0.1; exit 4";
    let terminal = create(&agent, "t", shell(line)).ready();
    assert_eq!(terminal.rest().1, 4);
    eventually(|| agent.home.path().join("hung_up").exists().then_some(()));
}

#[test]
fn input_that_is_not_read_is_refused_and_comes_in_one_piece_otherwise() {
    let agent = Agent::start();
    let mut terminal = create(&agent, "t", shell("stty raw -echo; echo ready; sleep 1000")).ready();
    terminal.wait_for("ready");
    let input = |len| Request::Input { terminal: "t".to_owned(), data: vec![b'x'; len] };
    assert_eq!(ask(&agent, &input(100)), Event::Done);
    check_refused(&ask(&agent, &input(32 * 1024)), Cause::Unread);
}

#[test]
fn terminals_are_listed_with_their_exit_codes() {
    let agent = Agent::start();
    assert_eq!(list(&agent), []);
    let _running = create(&agent, "t", argv(&["sleep", "1000"])).ready();
    create(&agent, "u", shell("exit 9")).ready().rest();
    let listed = list(&agent);
    let told: Vec<_> =
        listed.iter().map(|it| (it.terminal.as_str(), it.label.as_str(), it.exit_code)).collect();
    assert_eq!(told, [("t", "sleep 1000", None), ("u", "exit 9", Some(9))]);
    assert!(listed[0].created_at_ms > 1_700_000_000_000);
}

#[test]
fn a_new_terminal_takes_the_place_of_one_that_has_exited_and_of_no_other() {
    let agent = Agent::start();
    let mut running = Vec::new();
    for number in 1..TERMINALS_MAX {
        running.push(create(&agent, &format!("t{number}"), argv(&["sleep", "1000"])).ready());
    }
    create(&agent, "exited", shell("true")).ready().rest();
    running.push(create(&agent, "last", argv(&["sleep", "1000"])).ready());
    check_refused(&ask(&agent, &Request::Attach { terminal: "exited".to_owned() }), Cause::NotFound);
    check_refused(&create(&agent, "more", shell("true")).next().unwrap(), Cause::TooMany);
    assert_eq!(list(&agent).len(), TERMINALS_MAX);
}

#[test]
fn what_is_not_there_or_has_ended_is_told() {
    let agent = Agent::start();
    let terminal = || "none".to_owned();
    for request in [
        Request::Attach { terminal: terminal() },
        Request::Read { terminal: terminal(), since_seq: 0, len_max: 1, timeout_ms: 0 },
        Request::Input { terminal: terminal(), data: Vec::new() },
        Request::Resize { terminal: terminal(), size: Size { cols: 1, rows: 1 } },
        Request::Kill { terminal: terminal() },
    ] {
        check_refused(&ask(&agent, &request), Cause::NotFound);
    }
    create(&agent, "t", shell("true")).ready().rest();
    let input = Request::Input { terminal: "t".to_owned(), data: b"x".to_vec() };
    check_refused(&ask(&agent, &input), Cause::Exited);
    check_refused(&create(&agent, "t", shell("true")).next().unwrap(), Cause::Invalid);
}

#[test]
fn there_are_so_many_attachments_and_no_more() {
    let agent = Agent::start();
    let mut open = vec![create(&agent, "t", argv(&["sleep", "1000"])).ready()];
    for _ in 1..TERMINAL_CONNECTIONS_MAX {
        open.push(attach(&agent, "t").ready());
    }
    check_refused(&attach(&agent, "t").next().unwrap(), Cause::TooMany);
    open.pop();
    eventually(|| (attach(&agent, "t").next() == Some(Event::Ready)).then_some(()));
}

#[test]
fn bytes_that_are_no_request_are_answered_by_nothing() {
    let agent = Agent::start();
    let mut stream = agent.terminal_stream();
    stream.write_all(&[255; 64]).unwrap();
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert_eq!(list(&agent), []);
}

#[test]
fn executions_go_on_beside_terminals() {
    let agent = Agent::start();
    let mut client = agent.client();
    let _noisy = create(&agent, "t", argv(&["yes"])).ready();
    assert_eq!(client.eval("print(6 * 7)"), "42\n");
    assert_eq!(client.bash("tty").stdout(), "not a tty\n");
}

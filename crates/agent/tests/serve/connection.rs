//! Connections: nothing before the renewal, and executions that outlive the connection they came on.

use crate::client::{Agent, Client, eventually, exec_request, renew_request};
use podflare_wire::codec::encode_frame;
use podflare_wire::guest::{Event, ExecContext, ExecId, Language, Renewal, Request};
use podflare_wire::limits::{EXECS_MAX, REQUEST_FRAME_LEN_MAX};

#[track_caller]
fn check_fails(mut client: Client, reason: &str) {
    match client.next_event() {
        Some(Event::Failed { message }) => assert!(message.contains(reason), "{message}"),
        other => panic!("not failed: {other:?}"),
    }
    assert_eq!(client.next_event(), None);
}

#[test]
fn nothing_is_served_before_the_renewal() {
    let agent = Agent::start();
    let exec = ExecId(0);
    for request in [
        Request::Ping { token: 1 },
        Request::SetClock { unix_time_ns: 1 },
        exec_request(exec, Language::Bash, "touch ran", ExecContext::default()),
        Request::Cancel { exec },
        Request::Grant { exec, bytes: 1 },
    ] {
        let mut client = agent.connect();
        client.send(&request);
        check_fails(client, "must be Renew");
    }
    assert!(!agent.home.path().join("ran").exists());
}

#[test]
fn nothing_is_said_on_a_connection_before_it_is_asked_something() {
    let agent = Agent::start();
    let silent = agent.connect();
    // Replaces the first one.
    agent.client();
    assert_eq!(silent.bytes(), b"");
}

#[test]
fn a_renewal_that_cannot_be_done_closes_the_connection() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let renewal = Renewal { entropy: vec![7; 3], unix_time_ns: 0, hostname: "sandbox".into(), network: None };
    client.send(&Request::Renew(renewal));
    check_fails(client, "bytes of entropy");
}

#[test]
fn requests_may_follow_the_renewal_without_waiting_for_it() {
    let agent = Agent::start();
    let mut client = agent.connect();
    let ping = Request::Ping { token: 9 };
    client.send_bytes(&[encode_frame(&renew_request()), encode_frame(&ping)].concat());
    assert!(matches!(client.next_event(), Some(Event::Renewed { .. })));
    assert_eq!(client.next_event(), Some(Event::Pong { token: 9 }));
}

#[test]
fn a_renewed_guest_may_be_told_the_time_again() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&Request::SetClock { unix_time_ns: 1_700_000_000_000_000_000 });
    assert_eq!(client.next_event(), Some(Event::ClockSet));
    client.send(&Request::SetClock { unix_time_ns: u64::MAX });
    assert_eq!(client.next_event(), Some(Event::ClockSet));
}

#[test]
fn a_second_renewal_and_a_repeated_execution_are_refused() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send(&renew_request());
    check_fails(client, "once");

    let mut client = agent.client();
    let request = exec_request(ExecId(3), Language::Bash, "sleep 1000", ExecContext::default());
    client.send(&request);
    client.send(&request);
    check_fails(client, "twice");
}

#[test]
fn bytes_that_are_no_request_are_refused() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.send_bytes(&u32::try_from(REQUEST_FRAME_LEN_MAX + 1).unwrap().to_le_bytes());
    check_fails(client, "limit");
    let mut client = agent.client();
    client.send_bytes(&[2, 0, 0, 0, 99, 99]);
    check_fails(client, "not of this protocol");
    assert_eq!(agent.client().bash("echo fine").stdout(), "fine\n");
}

#[test]
fn an_execution_over_the_limit_is_refused_alone() {
    let agent = Agent::start();
    let mut client = agent.client();
    let first = client.start(Language::Bash, "until [ -e go ]; do sleep 0.01; done");
    let execs: Vec<ExecId> = (0..EXECS_MAX).map(|_| client.start(Language::Bash, "true")).collect();
    let refused = client.wait(*execs.last().unwrap());
    assert_eq!(refused.exit_code(), 127);
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    assert_eq!(client.wait(first).exit_code(), 0);
    assert_eq!(client.wait(execs[EXECS_MAX - 2]).exit_code(), 0);
}

#[test]
fn a_newer_connection_replaces_an_older_one_whose_execution_goes_on() {
    let agent = Agent::start();
    let mut old = agent.client();
    let code = "import os\nprint('begin')\nwhile not os.path.exists('go'): os.write(1, b'x' * 60000)\n\
        open('finished', 'w').close()\nx = 5";
    let running = old.start(Language::Python, code);
    old.start(Language::Bash, "touch queued");
    old.wait_until(running, |outcome| outcome.stdout.starts_with(b"begin\n"));

    let mut new = agent.client();
    eventually(|| old.next_event().is_none().then_some(()));
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    eventually(|| agent.home.path().join("finished").exists().then_some(()));
    assert_eq!(new.eval("x"), "5\n");
    assert!(!agent.home.path().join("queued").exists());
}

#[test]
fn an_execution_outlives_a_closed_connection_without_being_blocked_by_its_output() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.grants = false;
    let exec = client.start(Language::Bash, "head -c 5000000 /dev/zero; touch finished");
    client.wait_until(exec, |outcome| !outcome.stdout.is_empty());
    drop(client);
    eventually(|| agent.home.path().join("finished").exists().then_some(()));
    assert_eq!(agent.client().bash("echo next").stdout(), "next\n");
}

#[test]
fn a_bash_that_runs_when_its_connection_is_replaced_goes_on_and_delays_nothing() {
    let agent = Agent::start();
    let mut old = agent.client();
    let code = "echo begin; until [ -e go ]; do sleep 0.01; done; echo noise && touch finished";
    let exec = old.start(Language::Bash, code);
    old.wait_until(exec, |outcome| outcome.stdout == b"begin\n");

    let mut new = agent.client();
    assert_eq!(new.bash("echo next").stdout(), "next\n");
    assert_eq!(new.eval("print('next')"), "next\n");
    assert!(!agent.home.path().join("finished").exists());
    new.bash("touch go");
    eventually(|| agent.home.path().join("finished").exists().then_some(()));
}

//! bash executions: their environment, how they end, and what they may leave behind.

use crate::client::{Agent, eventually};
use podflare_wire::guest::{ExecEnd, Language};
use std::process::Command;

#[test]
fn output_and_exit_code_come_back() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.bash("echo out; echo err >&2; exit 7");
    assert_eq!((outcome.stdout(), outcome.stderr()), ("out\n", "err\n"));
    assert_eq!(outcome.end, Some((7, ExecEnd::Finished)));
    assert_eq!(client.bash("-x").stderr(), "/bin/bash: line 1: -x: command not found\n");
    let outcome = client.bash("kill -9 $$");
    assert_eq!(outcome.end, Some((137, ExecEnd::Killed { signal: 9 })));
}

#[test]
fn it_runs_at_home_with_a_small_environment_and_no_input() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.bash("pwd; echo $HOME; umask; cat; env | sed 's/=.*//' | sort | tr '\\n' ' '");
    let home = agent.home.path().display();
    let expected = format!("{home}\n{home}\n0022\nHOME LANG PATH PWD SHLVL _ ");
    assert_eq!(outcome.stdout(), expected);
}

#[test]
fn the_standing_of_the_agent_is_not_inherited() {
    let agent = Agent::start();
    let mut client = agent.client();
    let before = agent.process_file("oom_score_adj");
    let code = "cat /proc/self/oom_score_adj; ulimit -S -n";
    let limit = String::from_utf8(Command::new("bash").args(["-c", "ulimit -S -n"]).output().unwrap().stdout);
    let expected = format!("500\n{}", limit.unwrap());
    assert_eq!(client.bash(code).stdout(), expected);
    let outcome = client.python(&format!("import subprocess; n = subprocess.run({code:?}, shell=True)"));
    assert_eq!(outcome.stdout(), expected);
    assert_eq!(agent.process_file("oom_score_adj"), before);
}

#[test]
fn files_stay_and_variables_do_not() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.bash("x=1; echo kept > file");
    assert_eq!(client.bash("cat file; echo \"[$x]\"").stdout(), "kept\n[]\n");
}

#[test]
fn long_code_behaves_as_short_code_does() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "echo $0 $# $LINENO; ls /proc/self/fd | wc -l\nnonsense 2>&1\nexit 5 #";
    let short = client.bash(code);
    let long = client.bash(&format!("{code}{}", "x".repeat(8 << 20)));
    assert_eq!(long.stdout(), short.stdout());
    assert_eq!((long.stderr(), long.exit_code()), (short.stderr(), 5));
    for len in [128 * 1024 - 1, 128 * 1024] {
        let code = format!("echo {}", "x".repeat(len - 5));
        assert_eq!(client.bash(&code).stdout.len(), len - 4);
    }
}

#[test]
fn code_that_bash_cannot_take_is_not_started() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.bash("echo a\0b");
    assert!(matches!(outcome.end, Some((127, ExecEnd::NotStarted { .. }))), "{outcome:?}");
    assert_eq!(client.bash("echo 1").stdout(), "1\n");
}

#[test]
fn a_background_process_neither_delays_the_end_nor_dies_of_it() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "(until [ -e go ]; do sleep 0.01; done; for i in 1 2 3; do echo noise || exit; done; touch survived) & \
        echo started";
    let outcome = client.bash(code);
    assert_eq!((outcome.stdout(), outcome.exit_code()), ("started\n", 0));
    client.bash("touch go");
    eventually(|| agent.home.path().join("survived").exists().then_some(()));
}

#[test]
fn output_that_a_process_substitution_still_has_in_hand_is_read_to_its_end() {
    let agent = Agent::start();
    let mut client = agent.client();
    for _ in 0..10 {
        let code = "exec > >(tee log; echo end) 2> >(sed s/^/E:/ >&2); echo hello; echo oh >&2";
        let outcome = client.bash(code);
        assert_eq!((outcome.stdout(), outcome.stderr()), ("hello\nend\n", "E:oh\n"));
    }
}

#[test]
fn a_background_process_that_never_stops_writing_does_not_keep_a_call_from_ending() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.bash("yes & echo $! >&2");
    assert_eq!(outcome.exit_code(), 0);
    assert_eq!(client.bash(&format!("kill {}; echo next", outcome.stderr().trim())).stdout(), "next\n");
}

#[test]
fn a_cancelled_execution_ends_with_all_its_processes() {
    let agent = Agent::start();
    let mut client = agent.client();
    let exec = client.start(Language::Bash, "sleep 1000 & echo $!; wait; echo unreachable");
    let outcome = client.wait_until(exec, |outcome| outcome.stdout.ends_with(b"\n"));
    let sleeper = format!("/proc/{}/cmdline", outcome.stdout().trim());
    client.cancel(exec);
    let outcome = client.wait(exec);
    assert_eq!(outcome.end, Some((143, ExecEnd::Cancelled)));
    // Its file is empty once it is a zombie.
    eventually(|| std::fs::read(&sleeper).unwrap_or_default().is_empty().then_some(()));
}

#[test]
fn a_cancelled_execution_that_ignores_the_signal_is_killed() {
    let agent = Agent::start();
    let mut client = agent.client();
    let exec = client.start(Language::Bash, "trap '' TERM; echo deaf; while :; do sleep 0.01; done");
    client.wait_until(exec, |outcome| outcome.stdout == b"deaf\n");
    client.cancel(exec);
    assert_eq!(client.wait(exec).end, Some((137, ExecEnd::Cancelled)));
}

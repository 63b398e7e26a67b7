//! What an execution has beside its code: variables, a directory, input and a time limit of its own.

use crate::client::{Agent, eventually};
use podflare_wire::guest::{ExecContext, ExecEnd, ExecId, Inherited, Language, ReplRenewal};
use std::time::Duration;

fn env(entries: &[(&str, &str)]) -> ExecContext {
    let env = entries.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    ExecContext { env, ..ExecContext::default() }
}

fn cwd(path: &str) -> ExecContext {
    ExecContext { cwd: Some(path.to_owned()), ..ExecContext::default() }
}

fn stdin(bytes: &[u8]) -> ExecContext {
    ExecContext { stdin: bytes.to_vec(), ..ExecContext::default() }
}

fn timeout_ms(timeout_ms: u64) -> ExecContext {
    ExecContext { timeout_ms: Some(timeout_ms), ..ExecContext::default() }
}

#[test]
fn bash_has_its_variables_directory_and_input_for_one_call() {
    let agent = Agent::start();
    let mut client = agent.client();
    let context = ExecContext {
        env: vec![("GREETING".into(), "good=day € \n".into()), ("HOME".into(), "/nowhere".into())],
        cwd: Some("/usr".into()),
        stdin: b"one\ntwo".to_vec(),
        timeout_ms: None,
    };
    let code = "echo \"$GREETING|$HOME\"; pwd; /bin/pwd; cat";
    let outcome = client.run_with(Language::Bash, code, context);
    assert_eq!(outcome.stdout(), "good=day € \n|/nowhere\n/usr\n/usr\none\ntwo");
    let home = agent.home.path().display();
    let after = client.bash("echo \"[$GREETING]$HOME\"; pwd; cat");
    assert_eq!(after.stdout(), format!("[]{home}\n{home}\n"));
}

#[test]
fn long_input_needs_no_reader_and_reaches_the_processes_of_bash() {
    let agent = Agent::start();
    let mut client = agent.client();
    let long = vec![b'x'; 5 << 20];
    assert_eq!(client.run_with(Language::Bash, "true", stdin(&long)).exit_code(), 0);
    assert_eq!(client.run_with(Language::Bash, "head -c 3; wc -c", stdin(&long)).exit_code(), 0);
    let outcome = client.run_with(Language::Bash, "read line; echo \"$line\"; sort", stdin(b"first\nb\na\n"));
    assert_eq!(outcome.stdout(), "first\na\nb\n");
}

#[test]
fn python_has_its_variables_for_one_call_and_the_former_ones_afterwards() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import os, subprocess; os.environ['KEPT'] = 'before'; os.environ['GONE'] = 'before'");
    let code = "print(os.environ['KEPT'], os.environ['NEW']); os.environ['KEPT'] = 'changed'\n\
        del os.environ['GONE']; os.environ['OWN'] = 'stays'\n\
        print(subprocess.check_output('echo $NEW', shell=True, text=True))";
    let outcome =
        client.run_with(Language::Python, code, env(&[("KEPT", "during"), ("NEW", "x=€"), ("GONE", "")]));
    assert_eq!((outcome.stdout(), outcome.stderr()), ("during x=€\nx=€\n\n", ""));
    let after = client
        .eval("print(os.environ['KEPT'], os.environ['GONE'], os.environ.get('NEW'), os.environ['OWN'])");
    assert_eq!(after, "before before None stays\n");
}

#[test]
fn python_has_its_directory_for_one_call_and_the_former_one_afterwards() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import os; os.mkdir('former'); os.chdir('former')");
    let outcome = client.run_with(Language::Python, "print(os.getcwd()); os.chdir('/'); 1 / 0", cwd("/usr"));
    assert_eq!((outcome.stdout(), outcome.exit_code()), ("/usr\n", 1));
    assert_eq!(client.eval("print(os.path.basename(os.getcwd()))"), "former\n");
    assert_eq!(client.eval("os.rmdir('../former')"), "");
    assert_eq!(client.run_with(Language::Python, "pass", cwd("/usr")).exit_code(), 0);
    assert_eq!(client.eval("import pathlib; os.chdir('/'); print(os.getcwd())"), "/\n");
}

#[test]
fn python_reads_its_input_during_the_call_and_none_afterwards() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import os; descriptors = len(os.listdir('/proc/self/fd'))");
    let code = "import os, sys\nprint(input(), repr(sys.stdin.readline()), os.system('wc -c'))";
    let outcome = client.run_with(Language::Python, code, stdin("ä\nb\n".as_bytes()));
    assert_eq!(outcome.stderr(), "");
    assert_eq!(outcome.stdout(), "0\nä 'b\\n' 0\n", "Python has read it all into its buffer");
    let outcome = client.python("input()");
    assert!(outcome.stderr().ends_with("EOFError: EOF when reading a line\n"), "{}", outcome.stderr());
    let outcome = client.run_with(Language::Python, "print(input())", stdin(b"again\xff"));
    assert_eq!(outcome.stdout(), "again\\udcff\n");
    client.eval("os.close(0)");
    assert_eq!(
        client.run_with(Language::Python, "print(input())", stdin(b"closed before")).stdout(),
        "closed before\n"
    );
    assert_eq!(client.eval("print(len(os.listdir('/proc/self/fd')) - descriptors)"), "-1\n");
}

#[test]
fn an_interrupted_call_gives_back_what_it_had() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import os, time");
    let context = ExecContext { cwd: Some("/usr".into()), stdin: b"x".to_vec(), ..env(&[("NEW", "1")]) };
    let exec = client.start_with(Language::Python, "print('on'); time.sleep(1000)", context);
    client.wait_until(exec, |outcome| outcome.stdout == b"on\n");
    client.cancel(exec);
    assert_eq!(client.wait(exec).exec_end(), &ExecEnd::Cancelled);
    let home = agent.home.path().canonicalize().unwrap();
    let expected = format!("{} None b''\n", home.display());
    assert_eq!(client.eval("print(os.getcwd(), os.environ.get('NEW'), os.read(0, 9))"), expected);
}

#[test]
fn a_directory_that_cannot_be_entered_is_told_and_nothing_is_run() {
    let agent = Agent::start();
    let mut client = agent.client();
    for language in [Language::Bash, Language::Python] {
        let outcome = client.run_with(language, "print('ran')", cwd("/no/such/place"));
        let ExecEnd::NotStarted { message } = outcome.exec_end() else { panic!("{outcome:?}") };
        assert!(message.contains("/no/such/place") && message.contains("No such file"), "{message}");
        assert_eq!((outcome.stdout(), outcome.exit_code()), ("", 127));
    }
    assert_eq!(client.bash("pwd").stdout(), format!("{}\n", agent.home.path().display()));
}

#[test]
fn code_that_runs_out_of_time_is_interrupted_and_the_repl_keeps_its_variables() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import time; x = 5");
    let outcome = client.run_with(
        Language::Python,
        "print('on', flush=True)\nwhile True: time.sleep(1)",
        timeout_ms(300),
    );
    assert_eq!(outcome.exec_end(), &ExecEnd::TimedOut);
    assert!(outcome.stderr().ends_with("KeyboardInterrupt\n"), "{}", outcome.stderr());
    assert_eq!(client.eval("print(x)"), "5\n");
    let outcome = client.run_with(Language::Python, "print(x)", timeout_ms(60_000));
    assert_eq!(outcome.end, Some((0, ExecEnd::Finished)));
}

#[test]
fn python_code_that_will_not_be_interrupted_is_killed_and_the_end_says_so() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let outcome = client.run_with(Language::Python, code, timeout_ms(100));
    assert_eq!(outcome.end, Some((137, ExecEnd::TimedOut)));
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn bash_that_runs_out_of_time_ends_with_its_process_group() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.run_with(Language::Bash, "sleep 1000 & echo $!; wait", timeout_ms(300));
    assert_eq!(outcome.end, Some((143, ExecEnd::TimedOut)));
    let sleeper = format!("/proc/{}/cmdline", outcome.stdout().trim());
    eventually(|| std::fs::read(&sleeper).unwrap_or_default().is_empty().then_some(()));
}

#[test]
fn time_spent_waiting_for_other_executions_does_not_count() {
    let agent = Agent::start();
    let mut client = agent.client();
    let first = client.start(Language::Bash, "until [ -e go ]; do sleep 0.01; done");
    let second = client.start_with(Language::Bash, "echo ran", timeout_ms(2_000));
    std::thread::sleep(Duration::from_millis(2_200));
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    assert_eq!(client.wait(first).exec_end(), &ExecEnd::Finished);
    assert_eq!(client.wait(second).stdout(), "ran\n");
}

#[test]
fn a_bash_whose_reader_is_gone_is_still_limited() {
    let agent = Agent::start();
    let mut client = agent.client();
    let exec = client.start_with(
        Language::Bash,
        "trap '' TERM; echo $$; while :; do sleep 0.01; done",
        timeout_ms(200),
    );
    let outcome = client.wait_until(exec, |outcome| outcome.stdout.ends_with(b"\n"));
    let bash = format!("/proc/{}/cmdline", outcome.stdout().trim());
    drop(client);
    eventually(|| std::fs::read(&bash).unwrap_or_default().is_empty().then_some(()));
}

#[test]
fn a_new_connection_is_told_of_python_code_that_still_runs_and_may_cancel_it() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "x = 1\nimport time\nprint('on', flush=True)\nwhile True: time.sleep(1)";
    let exec = client.start_with(Language::Python, code, timeout_ms(3_600_000));
    client.wait_until(exec, |outcome| outcome.stdout == b"on\n");
    drop(client);
    let mut client = agent.connect();
    let (_, inherited) = client.inherit();
    let Some(Inherited { language: Language::Python, excerpt, timeout_ms: Some(3_600_000), .. }) = inherited
    else {
        panic!("{inherited:?}")
    };
    assert_eq!(excerpt, code);
    let waiting = client.start(Language::Python, "print(x)");
    client.cancel(ExecId::INHERITED);
    assert_eq!(client.wait(ExecId::INHERITED).exec_end(), &ExecEnd::Cancelled);
    assert_eq!(client.wait(waiting).stdout(), "1\n");
    drop(client);
    assert_eq!(agent.connect().inherit(), (ReplRenewal::Done, None));
}

#[test]
fn inherited_code_that_runs_out_of_time_is_cancelled_too() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import time\nprint('on', flush=True)\nwhile True: time.sleep(1)";
    let exec = client.start_with(Language::Python, code, timeout_ms(1_000));
    client.wait_until(exec, |outcome| outcome.stdout == b"on\n");
    drop(client);
    let mut client = agent.connect();
    if client.inherit().1.is_some() {
        assert_eq!(client.wait(ExecId::INHERITED).exec_end(), &ExecEnd::TimedOut);
    }
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn background_processes_survive_the_call_and_do_not_hold_it_up() {
    let agent = Agent::start();
    let mut client = agent.client();
    for (language, code) in [
        (Language::Bash, "sleep 1000 & echo $!"),
        (Language::Bash, "nohup sleep 1000 & echo $!"),
        (Language::Bash, "setsid sleep 1000 & echo $!"),
        (Language::Python, "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"),
        (Language::Python, "print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"),
    ] {
        let outcome = client.run_with(language, code, timeout_ms(30_000));
        assert_eq!(outcome.exec_end(), &ExecEnd::Finished, "{code}");
        let pid = outcome.stdout().trim().to_owned();
        assert_eq!(
            client.bash(&format!("kill -0 {pid} && kill -9 {pid} && echo alive")).stdout(),
            "alive\n",
            "{code}"
        );
    }
}

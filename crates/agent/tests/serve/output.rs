//! Output: captured at the descriptors, complete, in bounded memory, and from between the calls too.

use crate::client::{Agent, eventually};
use podflare_wire::guest::{ExecEnd, ExecId, Language, Request};
use podflare_wire::limits::OUTPUT_WINDOW_LEN;

#[test]
fn descriptors_subprocesses_and_c_code_are_captured() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os, subprocess, ctypes\n\
        print('print')\n\
        os.write(1, b'write\\n')\n\
        subprocess.run(['echo', 'child'])\n\
        libc = ctypes.CDLL(None)\n\
        libc.puts(b'c')\n\
        libc.fflush(None)\n\
        os.system('echo system; echo error >&2')\n\
        None";
    let outcome = client.python(code);
    assert_eq!(outcome.stdout(), "print\nwrite\nchild\nc\nsystem\n");
    assert_eq!(outcome.stderr(), "error\n");
}

#[test]
fn any_bytes_come_through_as_they_were_written() {
    let agent = Agent::start();
    let mut client = agent.client();
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(client.python("import os; n = os.write(1, bytes(range(256)))").stdout, all);
    assert_eq!(client.python("import sys; n = sys.stdout.buffer.write(bytes(range(256)))").stdout, all);
    assert_eq!(client.eval(r"print('a\ud800b', 'é', end='')"), r"a\ud800b é");
    assert_eq!(client.bash(r"printf 'a\0b\377'").stdout, b"a\0b\xff");
}

#[test]
fn a_line_of_five_megabytes_comes_through() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.python("print('x' * 5_000_000)");
    assert_eq!(outcome.stdout.len(), 5_000_001);
    assert!(outcome.stdout[..5_000_000].iter().all(|&byte| byte == b'x'));
}

#[test]
fn a_hundred_thousand_lines_come_through_in_order() {
    let agent = Agent::start();
    let mut client = agent.client();
    let expected: String = (0..100_000).map(|line| format!("{line}\n")).collect();
    assert!(client.eval("for i in range(100_000): print(i)") == expected);
    assert!(client.bash("seq 0 99999").stdout() == expected);
}

#[test]
fn output_without_a_final_newline_is_complete_at_the_end() {
    let agent = Agent::start();
    let mut client = agent.client();
    assert_eq!(client.eval("print('no newline', end='')"), "no newline");
    assert_eq!(client.bash("printf tail").stdout(), "tail");
}

#[test]
fn a_flood_stops_at_the_window_in_bounded_memory_and_goes_on_when_granted() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.grants = false;
    let window = OUTPUT_WINDOW_LEN as usize;
    let exec = client.start(Language::Bash, "head -c 300000000 /dev/zero; echo done >&2");
    client.wait_until(exec, |outcome| outcome.stdout.len() == window);
    // The answer follows everything that was sent before it.
    client.send(&Request::Ping { token: 1 });
    assert_eq!(client.next_event(), Some(podflare_wire::guest::Event::Pong { token: 1 }));
    assert!(agent.memory_kib() < 64 * 1024, "{} KiB", agent.memory_kib());

    client.send(&Request::Grant { exec, bytes: 10 });
    client.wait_until(exec, |outcome| outcome.stdout.len() == window + 10);
    client.cancel(exec);
    assert_eq!(client.wait(exec).exec_end(), &ExecEnd::Cancelled);
}

#[test]
fn a_reader_that_stops_reading_does_not_stop_the_next_execution() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.grants = false;
    let len = OUTPUT_WINDOW_LEN + 1000;
    let code = format!("import os\nx = 1\nwhile x < {len}: x += os.write(1, b'x' * min({len} - x, 60000))");
    let slow = client.start(Language::Python, &format!("{code}\nn = os.write(1, b'x')"));
    let next = client.start(Language::Bash, "echo next");
    assert_eq!(client.wait(next).stdout(), "next\n");

    let outcome = client.wait_until(slow, |outcome| outcome.stdout.len() == OUTPUT_WINDOW_LEN as usize);
    assert_eq!(outcome.end, None);
    client.send(&Request::Grant { exec: slow, bytes: 1000 });
    let outcome = client.wait(slow);
    assert_eq!((outcome.stdout.len(), outcome.exit_code()), (len as usize, 0));
}

#[test]
fn output_between_calls_comes_with_the_next_python_call() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import threading, os\n\
        def work():\n    \
            while not os.path.exists('go'): pass\n    \
            print('from a thread')\n    \
            open('done', 'w').close()\n\
        threading.Thread(target=work).start()";
    assert_eq!(client.eval(code), "");
    assert_eq!(client.bash("touch go").stdout(), "");
    eventually(|| agent.home.path().join("done").exists().then_some(()));
    assert_eq!(client.bash("echo only bash").stdout(), "only bash\n");
    assert_eq!(client.eval("print('call')"), "from a thread\ncall\n");
    assert_eq!(client.eval("print('call')"), "call\n");
}

#[test]
fn only_the_last_output_between_calls_is_kept() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import subprocess\n\
        p = subprocess.Popen('until [ -e go ]; do sleep 0.01; done; head -c 3000000 /dev/zero; touch done', shell=True)";
    assert_eq!(client.eval(code), "");
    client.bash("touch go");
    eventually(|| agent.home.path().join("done").exists().then_some(()));
    let outcome = client.python("status = p.wait()");
    // What was still in the pipe when the call began is no longer between the calls.
    assert!((64 * 1024..400 * 1024).contains(&outcome.stdout.len()), "{}", outcome.stdout.len());
}

#[test]
fn a_thread_that_never_stops_writing_does_not_keep_a_call_from_ending() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import threading, os\nstop = False\n\
        def work():\n    while not stop: os.write(1, b'x' * 1000)\n\
        t = threading.Thread(target=work); t.start()";
    assert_eq!(client.python(code).exit_code(), 0);
    assert_eq!(client.python("1").exit_code(), 0);
    assert_eq!(client.python("stop = True; t.join()").exit_code(), 0);
    assert_eq!(client.eval("print('quiet')"), "quiet\n");
}

#[test]
fn output_is_shown_while_the_code_still_runs() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os\nprint('first')\nwhile not os.path.exists('go'): pass\nprint('second')";
    let exec = client.start(Language::Python, code);
    client.wait_until(exec, |outcome| outcome.stdout == b"first\n");
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    assert_eq!(client.wait(exec).stdout(), "first\nsecond\n");
}

#[test]
fn executions_run_one_at_a_time_in_order_and_queued_ones_can_be_cancelled() {
    let agent = Agent::start();
    let mut client = agent.client();
    let first =
        client.start(Language::Bash, "echo begin; until [ -e go ]; do sleep 0.01; done; echo 1 >> order");
    let execs: Vec<ExecId> = [
        (Language::Python, "open('order', 'a').write('2\\n')"),
        (Language::Bash, "echo 3 >> order"),
        (Language::Python, "open('order', 'a').write('4\\n')"),
    ]
    .map(|(language, code)| client.start(language, code))
    .to_vec();
    client.wait_until(first, |outcome| outcome.stdout == b"begin\n");
    client.cancel(execs[1]);
    assert_eq!(client.wait(execs[1]).end, Some((130, ExecEnd::Cancelled)));
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    client.wait(execs[2]);
    let order = std::fs::read_to_string(agent.home.path().join("order")).unwrap();
    assert_eq!(order, "1\n2\n4\n");
}

//! The Python REPL: what persists, what is printed, how code ends, and what happens when it dies.

use crate::client::{Agent, Client, Outcome, eventually};
use podflare_wire::guest::{ExecEnd, Language};
use std::fmt::Write;

#[track_caller]
fn check_stdout(client: &mut Client, code: &str, stdout: &str) {
    assert_eq!(client.eval(code), stdout, "{code}");
}

#[track_caller]
fn check_end(outcome: &Outcome, exit_code: i32, stdout: &str, stderr: &str) {
    assert_eq!(outcome.stdout(), stdout);
    assert_eq!(outcome.stderr(), stderr);
    assert_eq!(outcome.end, Some((exit_code, ExecEnd::Finished)));
}

#[test]
fn variables_imports_and_the_directory_stay() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "import os, math\nx = 6", "");
    check_stdout(&mut client, "def f(): return x * 7", "");
    check_stdout(&mut client, "print(f(), math.floor(2.5))", "42 2\n");
    check_stdout(&mut client, "os.mkdir('d'); os.chdir('d')", "");
    check_stdout(&mut client, "print(os.path.basename(os.getcwd()))", "d\n");
}

#[test]
fn the_value_of_a_last_expression_is_shown() {
    let agent = Agent::start();
    let mut client = agent.client();
    for (code, stdout) in [
        ("1 + 1", "2\n"),
        ("_ + 1", "3\n"),
        ("x = 'a'\nx", "'a'\n"),
        ("None", ""),
        ("print(1)", "1\n"),
        ("1; 2", "2\n"),
        ("x = 1", ""),
        ("5\nx = 1", ""),
        ("", ""),
        ("# nothing\n", ""),
        ("for i in range(2): i", ""),
    ] {
        check_stdout(&mut client, code, stdout);
    }
}

#[test]
fn indented_code_runs_and_strings_keep_their_text() {
    let agent = Agent::start();
    let mut client = agent.client();
    for (code, stdout) in [
        ("\n    x = 1\n    if x:\n        print('in')\n    x\n", "in\n1\n"),
        ("\tprint(1)\n\tprint(2)", "1\n2\n"),
        ("# comment\n    print(1)", "1\n"),
        ("s = '''\n    four\n  two'''\nprint(s)", "\n    four\n  two\n"),
        ("    s = '''a\nmargin'''\n    print(s)", "a\nmargin\n"),
        ("    s = '''a\n      b'''\n    print(s)", "a\n  b\n"),
        ("    await __import__('asyncio').sleep(0)\n    print(1)", "1\n"),
    ] {
        check_stdout(&mut client, code, stdout);
    }
    let outcome = client.python("  x = 1\n y = 2");
    assert!(outcome.stderr().contains("IndentationError"), "{}", outcome.stderr());
    assert_eq!(outcome.exit_code(), 1);
}

#[test]
fn an_exception_shows_the_users_frames_and_source_only() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "def inner():\n    raise ValueError('bad')", "");
    let outcome = client.python("print('before')\ninner()");
    let expected = "Traceback (most recent call last):\n  \
        File \"<cell 2>\", line 2, in <module>\n    inner()\n  \
        File \"<cell 1>\", line 2, in inner\n    raise ValueError('bad')\nValueError: bad\n";
    check_end(&outcome, 1, "before\n", expected);

    let outcome = client.python("await None");
    assert!(!outcome.stderr().contains("podflare"), "{}", outcome.stderr());
    check_stdout(&mut client, "print('alive')", "alive\n");
}

#[test]
fn a_syntax_error_shows_its_line() {
    let agent = Agent::start();
    let mut client = agent.client();
    for (code, line) in [("x = 1\ny = = 2\n", "y = = 2"), ("x = 1\nreturn 2", "return 2")] {
        let outcome = client.python(code);
        assert_eq!(outcome.exit_code(), 1);
        let stderr = outcome.stderr();
        assert!(
            stderr.contains("line 2\n") && stderr.contains(line) && stderr.contains("SyntaxError"),
            "{stderr}"
        );
        assert!(!stderr.contains("podflare"), "{stderr}");
    }
    assert_eq!(client.python("a\0b").exit_code(), 1);
    check_stdout(&mut client, "print(1)", "1\n");
}

#[test]
fn exceptions_that_cannot_be_printed_end_the_call_and_not_the_repl() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "class E(Exception):\n    def __str__(self): raise SystemExit(3)\nraise E()";
    assert_eq!(client.python(code).exit_code(), 1);
    let code = "def f(): f()\nf()";
    assert!(client.python(code).stderr().contains("RecursionError"));
    check_stdout(&mut client, "print(1)", "1\n");
}

#[test]
fn system_exit_gives_its_code_and_the_repl_lives_on() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "import sys; x = 5", "");
    check_end(&client.python("sys.exit()"), 0, "", "");
    check_end(&client.python("sys.exit(3)"), 3, "", "");
    check_end(&client.python("sys.exit(-1)"), 255, "", "");
    check_end(&client.python("sys.exit(True)"), 1, "", "");
    check_end(&client.python("sys.exit('no luck')"), 1, "", "no luck\n");
    check_end(&client.python("exit(4)"), 4, "", "");
    let code = "class E(SystemExit):\n    code = property(lambda self: 1 / 0)\nraise E()";
    check_end(&client.python(code), 1, "", "");
    check_stdout(&mut client, "x", "5\n");
}

#[test]
fn handlers_that_raise_between_calls_are_shown_and_the_repl_lives_on() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os, signal, sys\nx = 5\n\
        def h(error):\n    \
            def handle(*_): open('handled', 'a').write('x'); raise error\n    \
            return handle\n\
        n = signal.signal(signal.SIGALRM, h(TimeoutError('too late')))\n\
        n = signal.signal(signal.SIGCHLD, h(ValueError('too late')))\n\
        n = signal.signal(signal.SIGTERM, h(SystemExit('too late')))";
    check_stdout(&mut client, code, "");
    let pid = client.eval("os.getpid()");
    let handled = agent.home.path().join("handled");
    for (times, signal) in ["ALRM", "CHLD", "TERM", "ALRM"].into_iter().enumerate() {
        client.bash(&format!("kill -{signal} {pid}"));
        eventually(|| (std::fs::read(&handled).unwrap_or_default().len() > times).then_some(()));
        let outcome = client.python("x");
        assert_eq!((outcome.stdout(), outcome.exit_code()), ("5\n", 0));
        assert_eq!(outcome.stderr().matches(": too late").count(), 1, "{}", outcome.stderr());
        assert!(!outcome.stderr().contains("podflare"), "{}", outcome.stderr());
    }
    assert_eq!(client.eval("os.getpid()"), pid);
}

#[test]
fn a_file_named_like_a_module_that_the_repl_needs_does_not_keep_it_from_starting() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.bash("for name in struct select traceback contextlib; do echo 'raise Exception' > $name.py; done");
    assert_eq!(client.python("import os; os._exit(3)").exit_code(), 3);
    check_stdout(&mut client, "import sys; sys.path[0]", "''\n");
    check_stdout(&mut client, "open('mine.py', 'w').write('y = 7')\nimport mine\nmine.y", "7\n");
}

#[test]
fn a_warning_is_shown_in_every_cell_that_causes_it() {
    let agent = Agent::start();
    let mut client = agent.client();
    for _ in 0..2 {
        let outcome = client.python("import warnings\nfor _ in range(3): warnings.warn('careful')");
        assert_eq!(outcome.stderr().matches("UserWarning: careful").count(), 1, "{}", outcome.stderr());
    }
}

#[test]
fn top_level_await_keeps_one_event_loop() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "import asyncio\nasync def f(): return 7", "");
    check_stdout(&mut client, "await f()", "7\n");
    check_stdout(&mut client, "t = asyncio.create_task(f()) if False else asyncio.ensure_future", "");
    check_stdout(&mut client, "loop = asyncio.get_running_loop() if await f() else None", "");
    check_stdout(&mut client, "t = loop.create_task(f())\nx = await t\nx", "7\n");
    check_stdout(&mut client, "asyncio.get_running_loop() is loop and await f()", "7\n");
    check_stdout(&mut client, "asyncio.run(f())", "7\n");
    check_stdout(&mut client, "await f()", "7\n");
    check_stdout(&mut client, "loop.close()", "");
    check_stdout(&mut client, "await f()", "7\n");
}

#[test]
fn user_code_is_the_main_module() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "sorted(n for n in globals() if not n.startswith('_'))", "[]\n");
    check_stdout(&mut client, "__name__", "'__main__'\n");
    let code = "import pickle, sys, typing, dataclasses, inspect\n\
        @dataclasses.dataclass\n\
        class P:\n    x: 'int'\n\
        print(pickle.loads(pickle.dumps(P(1))), typing.get_type_hints(P))\n\
        print(sys.modules['__main__'].P is P, sys.argv, sys.path[0] == '')";
    check_stdout(&mut client, code, "P(x=1) {'x': <class 'int'>}\nTrue [''] True\n");
    check_stdout(&mut client, "def f(): return 1\nprint(inspect.getsource(f))", "def f(): return 1\n\n");
    let code = "import multiprocessing\ndef square(n): return n * n\n\
        with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, range(4)))";
    check_stdout(&mut client, code, "[0, 1, 4, 9]\n");
}

#[test]
fn future_imports_stay() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "from __future__ import annotations", "");
    check_stdout(&mut client, "def f(x: Undefined): pass\nf.__annotations__", "{'x': 'Undefined'}\n");
}

#[test]
fn a_forked_child_ends_with_its_cell() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os\npid = os.fork()\nif pid == 0:\n    print('child')\nelse:\n    \
        print('status', os.waitpid(pid, 0)[1])";
    check_stdout(&mut client, code, "child\nstatus 0\n");
    check_stdout(&mut client, "print('parent')", "parent\n");
    check_stdout(&mut client, "import threading; threading.active_count()", "1\n");
}

#[test]
fn user_code_may_replace_or_close_its_streams() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import io, sys\nsys.stdout = io.StringIO()\nprint('caught')";
    check_stdout(&mut client, code, "");
    check_stdout(
        &mut client,
        "t = sys.stdout.getvalue()\nsys.stdout = sys.__stdout__\nprint(t)",
        "caught\n\n",
    );
    check_stdout(&mut client, "sys.stdout.write('half'); sys.stdout.close()", "half");
    check_stdout(&mut client, "print('again')", "again\n");
    check_stdout(&mut client, "sys.stderr.close()\nsys.stdout = None", "");
    assert!(client.python("1/0").stderr().contains("ZeroDivisionError"));
}

#[test]
fn a_closed_descriptor_of_the_output_is_open_again_in_the_next_cell() {
    let agent = Agent::start();
    let mut client = agent.client();
    check_stdout(&mut client, "import os; os.close(1); os.close(2)", "");
    let code = "f = open('file', 'w')\nprint('out')\nos.system('echo err >&2')\nf.fileno() > 2, os.path.getsize('file')";
    check_end(&client.python(code), 0, "out\n(True, 0)\n", "err\n");
}

#[test]
fn a_dead_repl_ends_its_call_and_another_is_started() {
    let agent = Agent::start();
    let mut client = agent.client();
    let notice = |how: &str| {
        format!("The Python process ended ({how}); it was restarted and its variables are lost.\n")
    };
    client.eval("x = 1");
    let outcome = client.python("import os\nprint('last words')\nos._exit(3)");
    check_end(&outcome, 3, "last words\n", &notice("exit status 3"));

    let outcome = client.python("import os, sys\nsys.stderr.write('oh\\n')\nos.kill(os.getpid(), 9)");
    assert_eq!(outcome.end, Some((137, ExecEnd::Killed { signal: 9 })));
    // hostd tells the rest of one that was killed.
    assert_eq!(outcome.stderr(), "oh\n");

    let outcome = client.python("x");
    assert!(outcome.stderr().contains("NameError"));

    let outcome = client.python("import ctypes; ctypes.string_at(0)");
    assert_eq!(outcome.end, Some((139, ExecEnd::Killed { signal: 11 })));
    assert_eq!(client.eval("print('alive')"), "alive\n");
}

#[test]
fn a_repl_that_died_between_calls_is_reported_to_the_next_one_once() {
    let agent = Agent::start();
    let mut client = agent.client();
    let pid = client.eval("import os; os.getpid()");
    let pid = pid.trim();
    client.bash(&format!("kill -9 {pid}"));
    let stat = format!("/proc/{pid}/stat");
    eventually(|| (!std::fs::exists(&stat).unwrap()).then_some(()));
    let outcome = client.python("print('new')");
    check_end(
        &outcome,
        0,
        "new\n",
        "The Python process ended (killed by signal 9); it was restarted and its variables are lost.\n",
    );
    check_end(&client.python("print('new')"), 0, "new\n", "");
}

#[test]
fn a_repl_that_died_without_a_reader_is_reported_to_the_next_call() {
    let agent = Agent::start();
    let mut old = agent.client();
    let code = "import os\nprint('begin')\nwhile not os.path.exists('go'): pass\nos.kill(os.getpid(), 9)";
    let exec = old.start(Language::Python, code);
    old.wait_until(exec, |outcome| outcome.stdout == b"begin\n");
    let mut new = agent.client();
    let next = new.start(Language::Python, "print('new')");
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    let outcome = new.wait(next);
    assert_eq!(outcome.stdout(), "new\n");
    assert_eq!(outcome.stderr().matches("variables are lost").count(), 1, "{}", outcome.stderr());
}

#[test]
fn an_agent_that_is_killed_takes_a_busy_repl_with_it() {
    let agent = Agent::start();
    let mut client = agent.client();
    let exec = client.start(Language::Python, "import os\nprint(os.getpid())\nwhile True: pass");
    let outcome = client.wait_until(exec, |outcome| outcome.stdout.ends_with(b"\n"));
    let status = format!("/proc/{}/status", outcome.stdout().trim());
    drop(agent);
    // Where nobody waits for it, it stays as a zombie.
    eventually(|| {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
}

#[test]
fn closing_every_descriptor_costs_the_repl_and_nothing_else() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.python("import os; os.closerange(0, 1024)");
    assert_eq!(outcome.exec_end(), &ExecEnd::Finished);
    assert!(outcome.stderr().contains("variables are lost"), "{}", outcome.stderr());
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn a_program_that_takes_the_repls_place_runs_to_its_end() {
    let agent = Agent::start();
    let mut client = agent.client();
    let outcome = client.python("import os; os.execvp('bash', ['bash', '-c', 'echo taken; exit 9'])");
    assert_eq!((outcome.stdout(), outcome.exit_code()), ("taken\n", 9));
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn a_cancelled_call_gets_a_keyboard_interrupt_and_keeps_the_variables() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import time\nx = 1\nprint('sleeping')\ntime.sleep(1000)";
    let exec = client.start(Language::Python, code);
    client.wait_until(exec, |outcome| outcome.stdout == b"sleeping\n");
    client.cancel(exec);
    let outcome = client.wait(exec);
    assert_eq!(outcome.end, Some((130, ExecEnd::Cancelled)));
    assert!(outcome.stderr().contains("time.sleep(1000)\nKeyboardInterrupt"), "{}", outcome.stderr());
    assert_eq!(client.eval("x"), "1\n");
}

#[test]
fn cancelling_reaches_what_os_system_waits_for() {
    let agent = Agent::start();
    let mut client = agent.client();
    let exec = client.start(Language::Python, "import os\nx = 1\nos.system('echo up; exec sleep 1000')");
    client.wait_until(exec, |outcome| outcome.stdout == b"up\n");
    client.cancel(exec);
    assert_eq!(client.wait(exec).exec_end(), &ExecEnd::Cancelled);
    assert_eq!(client.eval("x"), "1\n");
}

#[test]
fn a_call_that_ignores_the_interrupt_costs_the_repl() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf')\nwhile True: pass";
    let exec = client.start(Language::Python, code);
    client.wait_until(exec, |outcome| outcome.stdout == b"deaf\n");
    client.cancel(exec);
    let outcome = client.wait(exec);
    assert_eq!(outcome.end, Some((137, ExecEnd::Cancelled)));
    assert!(outcome.stderr().contains("variables are lost"));
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn cancelling_an_await_leaves_no_task_behind() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval("import asyncio");
    let exec = client.start(Language::Python, "print('waiting')\nawait asyncio.sleep(1000)");
    client.wait_until(exec, |outcome| outcome.stdout == b"waiting\n");
    client.cancel(exec);
    assert_eq!(client.wait(exec).end, Some((130, ExecEnd::Cancelled)));
    assert_eq!(client.eval("await asyncio.sleep(0)\nlen(asyncio.all_tasks())"), "1\n");
}

#[test]
fn code_of_many_megabytes_runs() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = format!("s = '{}'\nlen(s)", "x".repeat(8 << 20));
    assert_eq!(client.eval(&code), format!("{}\n", 8 << 20));
    let mut code = String::new();
    for line in 0..20_000 {
        writeln!(code, "x{line} = {line}").unwrap();
    }
    code.push_str("x19999");
    assert_eq!(client.eval(&code), "19999\n");
}

#[test]
fn code_that_reads_its_input_finds_none() {
    let agent = Agent::start();
    let mut client = agent.client();
    assert!(client.python("input()").stderr().contains("EOFError"));
}

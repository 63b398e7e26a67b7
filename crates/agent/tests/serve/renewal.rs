//! The REPL's own generators after a renewal: idle, busy, and busy beyond interruption.

use crate::client::{Agent, eventually};
use podflare_wire::guest::{Language, ReplRenewal};

#[test]
fn generators_with_the_same_state_differ_after_a_renewal() {
    let agent = Agent::start();
    let mut client = agent.client();
    let first = client
        .eval("import random, ssl, tempfile\nrandom.seed(1)\nstate = random.getstate()\nrandom.random()");
    assert_eq!(client.eval("random.setstate(state)\nrandom.random()"), first);
    client.eval("random.setstate(state)\nn = tempfile.mktemp(); names = tempfile._name_sequence");

    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    let second = client.eval("random.random()");
    assert_ne!(second, first);
    assert_eq!(client.eval("n = tempfile.mktemp(); tempfile._name_sequence is names"), "False\n");

    client.eval("random.setstate(state)");
    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    assert_ne!(client.eval("random.random()"), second);
}

#[test]
fn a_signal_that_brings_no_seed_changes_nothing() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os, random, signal\n\
        def draw(): os.kill(os.getpid(), signal.SIGURG); return random.random()\n\
        len({draw() for _ in range(9)})";
    assert_eq!(client.eval(code), "9\n");
    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    assert_eq!(client.eval("len({draw() for _ in range(9)})"), "9\n");
}

#[test]
fn modules_that_only_look_like_generators_do_no_harm() {
    let agent = Agent::start();
    let mut client = agent.client();
    client.eval(
        "import sys\nfor n in ('random', 'numpy.random', 'ssl', 'tempfile'): sys.modules[n] = object()",
    );
    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn numpy_is_renewed_where_it_is_imported() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import sys, types\nm = types.ModuleType('numpy.random')\nm.seeds = []\n\
        m.seed = m.seeds.append\nsys.modules['numpy.random'] = m";
    client.eval(code);
    let mut client = agent.connect();
    client.renew();
    let code = "[s] = m.seeds\nlen(s), len(set(s)) > 1, all(0 <= n < 2**32 for n in s)";
    assert_eq!(client.eval(code), "(8, True, True)\n");
}

#[test]
fn a_busy_repl_is_renewed_between_two_instructions() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import random, os\nrandom.seed(1)\nfirst = random.random()\nrandom.seed(1)\n\
        state = random.getstate()\nprint('busy')\n\
        while random.getstate() == state: pass\n\
        print('renewed', random.random() != first)\nopen('renewed', 'w').close()";
    let exec = client.start(Language::Python, code);
    client.wait_until(exec, |outcome| outcome.stdout == b"busy\n");

    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    eventually(|| agent.home.path().join("renewed").exists().then_some(()));
    assert_eq!(client.eval("print(1)"), "1\n");
}

#[test]
fn a_repl_that_cannot_be_interrupted_is_renewed_before_it_runs_anything_new() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import random, signal\nrandom.seed(1)\nfirst = random.random()\nrandom.seed(1)\n\
        signal.signal(signal.SIGURG, signal.SIG_IGN)\nprint('busy')\n\
        import os\nwhile not os.path.exists('go'): pass\nunrenewed = random.random() == first\nrandom.seed(1)";
    let exec = client.start(Language::Python, code);
    client.wait_until(exec, |outcome| outcome.stdout == b"busy\n");

    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Pending);
    let next = client.start(Language::Python, "print(unrenewed, random.random() == first)");
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    assert_eq!(client.wait(next).stdout(), "True False\n");
}

#[test]
fn a_renewal_interrupts_a_system_call_of_c_code() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import ctypes, os\nr, w = os.pipe()\nlibc = ctypes.CDLL(None, use_errno=True)\n\
        buffer = ctypes.create_string_buffer(1)\n\
        print(os.getpid())\nn = libc.read(r, buffer, 1)";
    let exec = client.start(Language::Python, code);
    let outcome = client.wait_until(exec, |outcome| outcome.stdout.ends_with(b"\n"));
    wait_for_system_call(outcome.stdout().trim(), READ);

    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    assert_eq!(client.eval("import errno\nn, ctypes.get_errno() == errno.EINTR"), "(-1, True)\n");
}

#[test]
fn a_main_thread_that_waits_is_renewed_before_another_thread_draws() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import os, queue, random, subprocess, threading, time\n\
        draws, q = [], queue.Queue()\nr, w = os.pipe()\n\
        random.seed(1); first = random.random()\n\
        def draw():\n    \
            while not os.path.exists('go'): time.sleep(0.001)\n    \
            draws.append(random.random()); q.put(1); os.write(w, b'x')\n\
        def wait(how):\n    \
            global t\n    \
            t = threading.Thread(target=draw); random.seed(1); t.start(); print('waiting'); how(); t.join()\n    \
            os.remove('go')";
    client.eval(code);
    let child = "subprocess.Popen(['sh', '-c', 'until [ -e go ]; do sleep 0.01; done'])";
    for how in ["t.join()", "q.get()", "os.read(r, 1)", &format!("os.waitpid({child}.pid, 0)")] {
        let exec = client.start(Language::Python, &format!("n = wait(lambda: {how})"));
        client.wait_until(exec, |outcome| outcome.stdout == b"waiting\n");
        client = agent.connect();
        assert_eq!(client.renew(), ReplRenewal::Done, "{how}");
        std::fs::write(agent.home.path().join("go"), "").unwrap();
        assert_eq!(client.eval("draws.pop() != first"), "True\n", "{how}");
    }
}

#[test]
fn a_repl_that_takes_no_seeds_is_replaced_and_a_busy_one_after_its_call() {
    let agent = Agent::start();
    let mut client = agent.client();
    // Of the runner's descriptors only the pipe of seeds does not block.
    let close_seeds = "import os\nfor n in range(200, 205):\n    if not os.get_blocking(n): os.close(n)\n";
    let pid = client.eval(&format!("{close_seeds}os.getpid()"));
    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Done);
    let outcome = client.python("import os; os.getpid()");
    assert_ne!(outcome.stdout(), pid);
    assert!(outcome.stderr().contains("variables are lost"), "{}", outcome.stderr());

    let code = format!("{close_seeds}print('busy')\nwhile not os.path.exists('go'): pass");
    let exec = client.start(Language::Python, &code);
    client.wait_until(exec, |outcome| outcome.stdout == b"busy\n");
    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Pending);
    let next = client.start(Language::Python, "os.getpid()");
    std::fs::write(agent.home.path().join("go"), "").unwrap();
    let outcome = client.wait(next);
    assert!(outcome.stderr().contains("variables are lost"), "{}", outcome.stderr());
    assert!(outcome.stderr().contains("NameError"), "{}", outcome.stderr());
    assert_eq!(client.eval("print(1)"), "1\n");
}

/// The number of read(2).
const READ: &str = "0";

fn wait_for_system_call(pid: &str, number: &str) {
    let call = format!("/proc/{pid}/syscall");
    eventually(|| (std::fs::read_to_string(&call).unwrap().split(' ').next() == Some(number)).then_some(()));
}

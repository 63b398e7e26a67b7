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
fn a_renewal_does_not_fail_a_system_call_of_c_code() {
    let agent = Agent::start();
    let mut client = agent.client();
    let code = "import ctypes, os\nr, w = os.pipe()\nlibc = ctypes.CDLL(None)\nbuffer = ctypes.create_string_buffer(1)\n\
        print(os.getpid(), w)\nn = libc.read(r, buffer, 1)";
    let exec = client.start(Language::Python, code);
    let outcome = client.wait_until(exec, |outcome| outcome.stdout.ends_with(b"\n"));
    let (pid, end) = outcome.stdout().trim().split_once(' ').unwrap();
    let call = format!("/proc/{pid}/syscall");
    eventually(|| std::fs::read_to_string(&call).unwrap().starts_with("0 ").then_some(()));

    let mut client = agent.connect();
    assert_eq!(client.renew(), ReplRenewal::Pending);
    std::fs::write(format!("/proc/{pid}/fd/{end}"), "x").unwrap();
    assert_eq!(client.eval("n"), "1\n");
}

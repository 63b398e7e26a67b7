"""What goes with code, time limits, cancelling, and what outlives a call."""

from contextlib import closing

import pytest

from podflare import BadRequestError, Sandbox

from .vocabulary import assert_works, bash, forked, python, wait_until

pytestmark = pytest.mark.live

FOREVER = "import time\nprint('on', flush=True)\nwhile True: time.sleep(1)"


def test_bash_has_variables_a_directory_and_input_of_its_own(sandbox: Sandbox) -> None:
    result = sandbox.run_code(
        "echo $GREETING; pwd; cat", "bash", env={"GREETING": "hi"}, cwd="/usr", stdin="in"
    )
    assert result.stdout == "hi\n/usr\nin"
    assert bash(sandbox, "echo [$GREETING]; pwd; cat") == "[]\n/root"


def test_python_has_variables_a_directory_and_input_of_its_own(sandbox: Sandbox) -> None:
    python(sandbox, "import os; os.environ['A'] = 'before'")
    code = "print(os.environ['A'], os.getcwd(), input()); os.environ['A'] = 'changed'; os.chdir('/')"
    result = sandbox.run_code(code, env={"A": "during"}, cwd="/usr", stdin="typed")
    assert result.stdout == "during /usr typed"
    assert python(sandbox, "print(os.environ['A'], os.getcwd())") == "before /root"
    assert "EOFError" in sandbox.run_code("input()").stderr


def test_input_may_be_bytes_and_long(sandbox: Sandbox) -> None:
    content = bytes(range(256)) * 20_000
    assert sandbox.run_code("wc -c", "bash", stdin=content).stdout == str(len(content))


def test_what_is_out_of_range_is_refused(sandbox: Sandbox) -> None:
    for wrong in ({"env": {"A=B": ""}}, {"cwd": "relative"}, {"timeout_ms": 0}):
        with pytest.raises(BadRequestError):
            sandbox.run_code("1", **wrong)


def test_python_that_takes_too_long_is_interrupted_and_keeps_its_variables(sandbox: Sandbox) -> None:
    python(sandbox, "x = 1")
    result = sandbox.run_code(FOREVER, timeout_ms=1_000)
    assert (result.exit_code, result.reason, result.stdout) == (124, "timeout", "on")
    assert "KeyboardInterrupt" in result.stderr
    assert python(sandbox, "print(x)") == "1"


def test_bash_that_takes_too_long_ends_with_its_processes(sandbox: Sandbox) -> None:
    result = sandbox.run_code("sleep 4711 & wait", "bash", timeout_ms=1_000)
    assert (result.exit_code, result.reason) == (124, "timeout")
    assert bash(sandbox, "pgrep -fc '^sleep 4711' || true") == "0"


def test_an_execution_that_is_not_read_is_listed_and_can_be_cancelled(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream(FOREVER)) as stream:
        next(stream)
    [running] = sandbox.execs()
    assert (running["state"], running["code"], running["language"]) == ("running", FOREVER, "python")
    sandbox.cancel(running["id"])
    sandbox.cancel(running["id"])
    assert_works(sandbox)
    assert sandbox.execs() == []
    assert [event.reason for event in sandbox.replay() if event.exec_id == running["id"]] == ["cancelled"]


def test_an_execution_ends_with_its_reader_if_that_was_asked_for(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream(FOREVER, cancel_on_disconnect=True)) as stream:
        next(stream)
    wait_until(lambda: sandbox.execs() == [], "the execution is over")
    assert_works(sandbox)


def test_processes_in_the_background_outlive_the_call_and_do_not_hold_it_up(sandbox: Sandbox) -> None:
    for start in ("sleep 4711 &", "nohup sleep 4711 &", "setsid sleep 4711 &"):
        bash(sandbox, start)
    python(sandbox, "import subprocess; p = subprocess.Popen(['sleep', '4711'])")
    assert bash(sandbox, "pgrep -fc '^sleep 4711'") == "4"


def test_a_fork_lists_what_goes_on_in_it_and_can_end_it(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream(FOREVER)) as stream:
        next(stream)
        with forked(sandbox) as [child]:
            [inherited] = child.execs()
            assert (inherited["inherited"], inherited["code"]) == (True, FOREVER)
            child.cancel(inherited["id"])
            assert_works(child)
            assert child.execs() == []
            assert [execution["inherited"] for execution in sandbox.execs()] == [False]

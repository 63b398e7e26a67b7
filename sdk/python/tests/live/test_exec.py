"""Running code: state, output, streams, silence."""

import hashlib
import re
from contextlib import closing

import pytest

from podflare import Client, Sandbox

from .vocabulary import assert_works, bash, in_parallel, python

pytestmark = pytest.mark.live


def test_state_stays_from_call_to_call(sandbox: Sandbox) -> None:
    python(sandbox, "import json; x = 41; log = open('/root/log', 'w')")
    python(sandbox, "x += 1; log.write('kept open')")
    assert (
        python(sandbox, "log.close(); print(json.dumps([x, open('/root/log').read()]))")
        == '[42, "kept open"]'
    )


def test_two_sandboxes_share_nothing(sandbox: Sandbox, bystander: Sandbox) -> None:
    python(sandbox, "secret = 1; open('/root/secret', 'w').close()")
    assert (
        python(bystander, "import os; print('secret' in globals(), os.path.exists('/root/secret'))")
        == "False False"
    )


def test_bash_is_new_for_each_call_but_files_stay(sandbox: Sandbox) -> None:
    bash(sandbox, "variable=set; echo kept > /root/file")
    assert bash(sandbox, 'echo "[$variable] $(cat /root/file)"') == "[] kept"


def test_both_languages_see_the_same_files(sandbox: Sandbox) -> None:
    python(sandbox, "open('/root/file', 'w').write('from python')")
    assert bash(sandbox, "cat /root/file") == "from python"


def test_the_exit_code_of_bash_is_the_commands(sandbox: Sandbox) -> None:
    result = sandbox.run_code("echo out; echo err >&2; exit 7", "bash")
    assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 7)


def test_an_exception_shows_its_traceback_and_the_repl_lives_on(sandbox: Sandbox) -> None:
    python(sandbox, "x = 1")
    result = sandbox.run_code("def f():\n    return x / 0\nf()")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert "in f" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero")
    assert python(sandbox, "print(x)") == "1"


def test_a_syntax_error_is_told_and_the_repl_lives_on(sandbox: Sandbox) -> None:
    result = sandbox.run_code("x = = 1")
    assert result.exit_code == 1
    assert "SyntaxError" in result.stderr
    assert_works(sandbox)


@pytest.mark.parametrize("code", [0, 3])
def test_system_exit_is_the_exit_code_and_the_repl_lives_on(sandbox: Sandbox, code: int) -> None:
    python(sandbox, "x = 1")
    assert sandbox.run_code(f"raise SystemExit({code})").exit_code == code
    assert python(sandbox, "print(x)") == "1"


def test_a_last_bare_expression_is_printed_unless_it_is_none(sandbox: Sandbox) -> None:
    assert python(sandbox, "x = 'a'\nx * 2") == "'aa'"
    assert python(sandbox, "None") == ""
    assert python(sandbox, "x = 1") == ""


def test_code_may_be_indented_as_a_whole(sandbox: Sandbox) -> None:
    assert (
        sandbox.run_code("\n        x = 1\n        if x:\n            print('deep')\n    ").stdout == "deep"
    )


def test_output_of_subprocesses_is_captured(sandbox: Sandbox) -> None:
    assert python(sandbox, "import os; _ = os.system('echo from a subprocess')") == "from a subprocess"


def test_output_arrives_while_the_code_runs(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream("import time\nprint('here')\nwhile True: time.sleep(1)")) as stream:
        assert next(stream).data == "here"


def test_events_are_numbered_and_timed_by_the_host(sandbox: Sandbox) -> None:
    events = list(sandbox.run_code_stream("for i in range(100): print(i)"))
    assert [event.seq for event in events] == list(range(101))
    assert [event.ts for event in events] == sorted(event.ts for event in events)


def test_a_silent_computation_of_40_seconds_is_waited_for_with_the_default_timeout(client: Client) -> None:
    code = """
        import time
        end = time.monotonic() + 40
        while time.monotonic() < end:
            pass
        print("done")
    """
    with Client(client.host) as impatient, Sandbox(client=impatient) as sandbox:
        assert python(sandbox, code) == "done"


@pytest.mark.parametrize(
    "text", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e", "\r", "\0", "🐍"]
)
def test_only_a_newline_ends_a_line_of_output(sandbox: Sandbox, text: str) -> None:
    assert python(sandbox, f"print('a' + {text!a} + 'b')") == f"a{text}b"


def test_output_that_is_not_utf8_is_shown_as_well_as_possible(sandbox: Sandbox) -> None:
    code = r"import sys; _ = sys.stdout.buffer.write(b'a\xff\xfeb\n'); sys.stdout.flush(); print('next')"
    first, second = python(sandbox, code).split("\n")
    assert re.fullmatch("a\ufffd+b", first)
    assert second == "next"


def test_a_line_of_5_megabytes_arrives_whole(sandbox: Sandbox) -> None:
    code = "print(''.join(chr(97 + i * i % 26) for i in range(1000)) * 5000)"
    expected = "".join(chr(97 + i * i % 26) for i in range(1000)) * 5000
    stdout = python(sandbox, code)
    assert len(stdout) == len(expected)
    assert hashlib.sha256(stdout.encode()).digest() == hashlib.sha256(expected.encode()).digest()


def test_100_000_lines_arrive_in_order(sandbox: Sandbox) -> None:
    lines = python(sandbox, "for i in range(100_000): print(i)").split("\n")
    assert lines == [str(i) for i in range(100_000)]


def test_code_of_8_megabytes_runs(sandbox: Sandbox) -> None:
    assert python(sandbox, f"print(len({'x' * 8_000_000!r}))") == "8000000"


def test_a_sandbox_tells_what_it_really_has(client: Client) -> None:
    with Sandbox(client=client, timeout_seconds=600, persistent=True, egress=True) as sandbox:
        python(sandbox, "1")
        info = sandbox.info()
    assert (info["id"], info["timeout_seconds"], info["state"]) == (sandbox.id, 600, "ready")
    assert (info["persistent"], info["egress"]) == (True, True)
    assert info["executions"] == 1
    assert min(info["ram_mib"], info["rootfs_gb"], info["vcpus"], info["idle_timeout_seconds"]) > 0


def test_calls_from_many_threads_run_one_after_the_other(sandbox: Sandbox) -> None:
    python(sandbox, "running = 0")
    code = "running += 1; import time; time.sleep(0.05); print(running); running -= 1"
    assert in_parallel(lambda _: python(sandbox, code), range(8)) == ["1"] * 8


def test_a_reader_that_stops_reading_does_not_stop_other_sandboxes(
    sandbox: Sandbox, bystander: Sandbox
) -> None:
    with closing(sandbox.run_code_stream("while True: print('x' * 1000)")) as stream:
        next(stream)
        assert_works(bystander)
    assert_works(bystander)


def test_replay_tells_the_latest_events(sandbox: Sandbox) -> None:
    python(sandbox, "print('first')")
    python(sandbox, "print('second')")
    assert [event.data for event in sandbox.replay()] == ["first", 0, "second", 0]


def test_replay_holds_at_most_1000_events(sandbox: Sandbox) -> None:
    python(sandbox, "for i in range(3000): print(i)")
    events = sandbox.replay()
    assert len(events) == 1000
    assert (events[-2].data, events[-1].data) == ("2999", 0)


def test_replay_survives_odd_separators(sandbox: Sandbox, client: Client) -> None:
    python(sandbox, r"print('a\u2028b\u0085c')")
    assert client.replay(sandbox.id)[0].data == "a\u2028b\u0085c"

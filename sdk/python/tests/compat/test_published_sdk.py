"""What users of the published SDK do works here without a change."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import httpx
import pytest

import podflare
from podflare import Client, Event, Sandbox

DEADLINE_SECONDS = 240.0
UNKNOWN_ID = "sbx_" + "0" * 32


def test_a_client_sees_that_the_host_is_well(host: str) -> None:
    assert Client(host=host).healthz() is True


def test_a_created_sandbox_has_an_id_and_is_ready(host: str) -> None:
    client = Client(host=host)
    info = client.create_sandbox_info()
    assert info["state"] == "ready"
    assert info["id"].startswith("sbx_")
    assert len(info["id"]) == len(UNKNOWN_ID)
    client.destroy_sandbox(info["id"])


def test_a_create_may_carry_every_option(host: str) -> None:
    options = {
        "timeout_seconds": 600,
        "idle_timeout_seconds": 300,
        "ram_mib": 1024,
        "rootfs_gb": 4,
        "egress": True,
    }
    with Sandbox(host=host, template="default", persistent=False, **options) as sandbox:  # type: ignore[arg-type]
        assert sandbox.run_code("print(1)").stdout == "1"


def test_python_keeps_its_state(sandbox: Sandbox) -> None:
    assert sandbox.run_code("x = 41; import json").ok
    result = sandbox.run_code("x += 1; print(json.dumps({'x': x}))")
    assert (result.stdout, result.stderr, result.exit_code) == ('{"x": 42}', "", 0)


def test_an_exception_is_a_result(sandbox: Sandbox) -> None:
    result = sandbox.run_code("print('before'); 1 / 0")
    assert (result.stdout, result.exit_code, result.ok) == ("before", 1, False)
    assert result.stderr.endswith("ZeroDivisionError: division by zero")
    assert sandbox.run_code("print('after')").stdout == "after"


def test_bash_runs(sandbox: Sandbox) -> None:
    result = sandbox.run_code("echo out; echo err >&2; exit 3", language="bash")
    assert (result.stdout, result.stderr, result.exit_code) == ("out", "err", 3)


def test_lines_are_not_doubled_and_empty_lines_are_kept(sandbox: Sandbox) -> None:
    assert sandbox.run_code("print('a\\n\\nb'); print('c', end='')").stdout == "a\n\nb\nc"


def test_a_stream_has_numbered_events(sandbox: Sandbox) -> None:
    events = list(sandbox.run_code_stream("for i in range(3): print(i)"))
    assert [(event.type, event.data, event.seq) for event in events] == [
        ("stdout", "0", 0),
        ("stdout", "1", 1),
        ("stdout", "2", 2),
        ("exit", 0, 3),
    ]
    assert all(isinstance(event, Event) and event.ts > 1_500_000_000_000 for event in events)


def test_five_children_go_their_own_ways(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 10; open('/root/file', 'w').write('inherited')")
    children = sandbox.fork(n=5)
    try:
        assert len(children) == 5
        for number, child in enumerate(children):
            assert child.run_code(f"x += {number}; print(x, open('/root/file').read())").stdout == (
                f"{10 + number} inherited"
            )
        assert sandbox.run_code("print(x)").stdout == "10"
        [grandchild] = children[4].fork()
        with grandchild:
            assert grandchild.run_code("print(x)").stdout == "14"
    finally:
        for child in children:
            child.close()


def test_a_diff_tells_files_apart(sandbox: Sandbox) -> None:
    sandbox.run_code(
        "echo base > /root/changed; echo base > /root/old; echo base > /root/same", language="bash"
    )
    first, other = sandbox.fork(n=2)
    with first, other:
        first.run_code("echo first > /root/changed", language="bash")
        other.run_code("rm /root/old; echo other > /tmp/new", language="bash")
        assert first.diff(other) == {
            "added": ["/tmp/new"],
            "removed": ["/root/old"],
            "modified": ["/root/changed"],
        }
        assert first.diff(other, paths=["/tmp"]) == {"added": ["/tmp/new"], "removed": [], "modified": []}


def test_the_published_idiom_of_fork_and_merge(sandbox: Sandbox) -> None:
    sandbox.run_code("best = None")
    children = sandbox.fork(n=3)
    try:
        results = [
            child.run_code(f"best = {plan}; print(best)")
            for child, plan in zip(children, (3, 9, 5), strict=True)
        ]
        winner = max(zip(results, children, strict=True), key=lambda pair: int(pair[0].stdout))[1]
        sandbox.merge_into(winner)
        with pytest.raises(httpx.HTTPStatusError) as caught:
            winner.run_code("1")
        assert caught.value.response.status_code == 404
    finally:
        for child in children:
            child.close()
    assert sandbox.run_code("print(best)").stdout == "9"


@pytest.mark.parametrize("length", [0, 1, 256 << 10, 6_000_000])
def test_a_file_comes_back_as_it_went(sandbox: Sandbox, length: int) -> None:
    content = os.urandom(length)
    sandbox.upload(content, "/root/new/folder/file")
    listed = sandbox.run_code("sha256sum < /root/new/folder/file", language="bash").stdout
    assert listed.split()[0] == hashlib.sha256(content).hexdigest()
    assert sandbox.download("/root/new/folder/file") == content


def test_a_local_file_is_uploaded(sandbox: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"from a file")
    sandbox.upload(str(local), "/root/file")
    assert sandbox.download("/root/file") == b"from a file"


def test_a_missing_remote_file_is_an_oserror(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="No such file"):
        sandbox.download("/root/missing")


def test_replay_tells_the_latest_events(sandbox: Sandbox) -> None:
    sandbox.run_code("print('a'); print('b\\u2028c')")
    assert [event.data for event in sandbox.replay()] == ["a", "b\u2028c", 0]
    sandbox.run_code("for i in range(2000): print(i)")
    assert len(sandbox.replay()) == 1000


def test_40_silent_seconds_do_not_time_out(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import time; time.sleep(40); print('done')").stdout == "done"


def test_waiting_behind_a_long_execution_does_not_time_out(sandbox: Sandbox) -> None:
    stream = sandbox.run_code_stream("import time; print('started'); time.sleep(40)")
    assert next(stream).data == "started"
    assert sandbox.run_code("print('queued')").stdout == "queued"
    assert [event.type for event in stream] == ["exit"]


@pytest.mark.parametrize(
    "text", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\0", "🐍"]
)
def test_no_character_of_the_output_cuts_a_line(sandbox: Sandbox, text: str) -> None:
    assert sandbox.run_code(f"print('a' + {text!a} + 'b')").stdout == f"a{text}b"


def test_output_that_is_not_utf8_is_survived(sandbox: Sandbox) -> None:
    result = sandbox.run_code(r"printf 'a\xff\xfeb\n'", language="bash")
    assert result.ok
    assert result.stdout[0] + result.stdout[-1] == "ab"


def test_a_line_of_5_megabytes_arrives_whole(sandbox: Sandbox) -> None:
    assert sandbox.run_code("print('0123456789' * 500_000)").stdout == "0123456789" * 500_000


def test_100_000_lines_arrive_in_order(sandbox: Sandbox) -> None:
    stdout = sandbox.run_code("for i in range(100_000): print(i)").stdout
    assert stdout.split("\n") == [str(i) for i in range(100_000)]


def test_a_killed_repl_is_a_result_and_is_replaced(sandbox: Sandbox) -> None:
    result = sandbox.run_code("import os; os.kill(os.getpid(), 9)")
    assert not result.ok
    assert result.stderr
    assert sandbox.run_code("print(1)").stdout == "1"


def test_closing_twice_is_no_error(host: str) -> None:
    sandbox = Sandbox(host=host)
    sandbox.close()
    sandbox.close()


def test_a_block_ends_well_after_the_idle_timeout_took_its_sandbox(host: str) -> None:
    with Sandbox(host=host, idle_timeout_seconds=1) as sandbox:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_gone(sandbox):
            assert time.monotonic() < deadline, "the idle timeout did not take it"
            time.sleep(0.5)


def test_a_block_ends_well_after_the_lifetime_took_its_sandbox(host: str) -> None:
    with Sandbox(host=host, timeout_seconds=1) as sandbox:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_gone(sandbox):
            assert time.monotonic() < deadline, "the lifetime did not end it"
            time.sleep(0.5)


def is_gone(sandbox: Sandbox) -> bool:
    """Ask without running code, which would count as use."""
    try:
        sandbox.replay()
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 404:
            raise
        return True
    return False


def test_an_unknown_sandbox_is_an_httpx_404(host: str) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        list(Client(host=host).exec_stream(UNKNOWN_ID, "1"))
    assert caught.value.response.status_code == 404


def test_33_children_are_an_httpx_400(sandbox: Sandbox) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        sandbox.fork(n=33)
    assert caught.value.response.status_code == 400


def test_the_default_client_can_be_closed_and_comes_back(host: str) -> None:
    with Sandbox(host=host):
        pass
    podflare.close_default_client()
    with Sandbox(host=host) as sandbox:
        assert sandbox.run_code("print(1)").stdout == "1"

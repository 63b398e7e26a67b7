"""Reading an execution's stream."""

import json
from collections.abc import Iterator

import httpx
import pytest

from podflare import Event, HostTimeoutError, ProtocolError, Sandbox, SandboxNotFoundError

from .conftest import SANDBOX_ID, ScriptedHost, ndjson

EXEC_PATH = f"/v1/sandboxes/{SANDBOX_ID}/exec"


def test_the_request_carries_code_and_language(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 0))
    sandbox.run_code("ls", "bash")
    assert host.body() == {"code": "ls", "language": "bash"}
    sandbox.run_code("1 + 1")
    assert host.body() == {"code": "1 + 1", "language": "python"}


def test_a_result_has_both_outputs_and_the_exit_code(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stdout", "one"), ("stderr", "oh"), ("stdout", ""), ("stdout", "three"), ("exit", 3))
    result = sandbox.run_code("…")
    assert (result.stdout, result.stderr, result.exit_code, result.ok) == ("one\n\nthree", "oh", 3, False)


def test_events_arrive_in_order_and_whole(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stdout", "42"), ("exit", 0))
    assert list(sandbox.run_code_stream("…")) == [Event("stdout", "42", 0, 0), Event("exit", 0, 1, 0)]


def test_the_code_starts_with_the_first_next(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 0))
    stream = sandbox.run_code_stream("…")
    assert host.calls() == ["POST /v1/sandboxes"]
    next(stream)
    assert host.calls() == ["POST /v1/sandboxes", f"POST {EXEC_PATH}"]


def test_blank_lines_are_heartbeats(host: ScriptedHost, sandbox: Sandbox) -> None:
    content = b"\n\n" + ndjson(("stdout", "late")) + b"\n\r\n" + ndjson(("exit", 0)) + b"\n"
    host.on("POST", EXEC_PATH, httpx.Response(200, content=content))
    assert sandbox.run_code("…").stdout == "late"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r", "\0"])
def test_only_a_newline_ends_a_line(host: ScriptedHost, sandbox: Sandbox, separator: str) -> None:
    event = {"type": "stdout", "data": f"a{separator}b", "seq": 0, "ts": 0}
    content = json.dumps(event, ensure_ascii=False).encode() + b"\n" + ndjson(("exit", 0))
    host.on("POST", EXEC_PATH, httpx.Response(200, content=content))
    assert sandbox.run_code("…").stdout == f"a{separator}b"


@pytest.mark.parametrize("chunk_len", [1, 2, 7, 100])
def test_lines_may_be_cut_anywhere_on_the_way(host: ScriptedHost, sandbox: Sandbox, chunk_len: int) -> None:
    content = ndjson(("stdout", "grüße \u2028 🐍"), ("stdout", "b"), ("exit", 0))
    chunks = [content[start : start + chunk_len] for start in range(0, len(content), chunk_len)]
    host.on("POST", EXEC_PATH, lambda _: httpx.Response(200, content=iter(chunks)))
    assert sandbox.run_code("…").stdout == "grüße \u2028 🐍\nb"


def test_a_last_line_without_a_newline_counts(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("POST", EXEC_PATH, httpx.Response(200, content=ndjson(("exit", 7)).rstrip(b"\n")))
    assert sandbox.run_code("…").exit_code == 7


def test_unknown_events_are_passed_on_but_are_no_output(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stdout", "a"), ("figure", "iVBO"), ("exit", 0))
    assert [event.type for event in sandbox.run_code_stream("…")] == ["stdout", "figure", "exit"]
    assert sandbox.run_code("…").stdout == "a"


@pytest.mark.parametrize("content", [b"", b"\n", ndjson(("stdout", "half"))])
def test_a_stream_without_an_exit_code_is_an_error(
    host: ScriptedHost, sandbox: Sandbox, content: bytes
) -> None:
    host.on("POST", EXEC_PATH, httpx.Response(200, content=content))
    with pytest.raises(ProtocolError, match="without an exit code"):
        sandbox.run_code("…")


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"3",
        b"[" * 100_000,
        b"\xff",
        b'{"type": "stdout", "data": "no seq", "ts": 0}',
        b'{"type": "stdout", "data": 3, "seq": 0, "ts": 0}',
        b'{"type": "exit", "data": "0", "seq": 0, "ts": 0}',
        b'{"type": "exit", "data": true, "seq": 0, "ts": 0}',
        b'{"type": "exit", "data": null, "seq": 0, "ts": 0}',
        b'{"type": "exit", "data": 0, "seq": "0", "ts": 0}',
        b'{"type": "exit", "data": 0, "seq": 0, "ts": 0.5}',
        b'{"type": [], "data": 0, "seq": 0, "ts": 0}',
    ],
)
def test_a_line_that_is_not_an_event_is_an_error_that_shows_it(
    host: ScriptedHost, sandbox: Sandbox, line: bytes
) -> None:
    host.on("POST", EXEC_PATH, httpx.Response(200, content=line + b"\n"))
    with pytest.raises(ProtocolError) as caught:
        sandbox.run_code("…")
    assert repr(line[:200]) in str(caught.value)


def test_a_refused_execution_shows_the_hosts_sentence(host: ScriptedHost, sandbox: Sandbox) -> None:
    sentence = "sandbox not found: its guest kernel panicked"
    host.on(
        "POST",
        EXEC_PATH,
        lambda _: httpx.Response(404, content=iter([f'{{"error": "{sentence}"}}'.encode()])),
    )
    with pytest.raises(SandboxNotFoundError, match=sentence):
        sandbox.run_code("…")


def test_silence_in_the_middle_of_a_stream_is_a_timeout(host: ScriptedHost, sandbox: Sandbox) -> None:
    class Silent(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield ndjson(("stdout", "a"))
            raise httpx.ReadTimeout("timed out")

    host.on("POST", EXEC_PATH, lambda _: httpx.Response(200, stream=Silent()))
    stream = sandbox.run_code_stream("…")
    assert next(stream).data == "a"
    with pytest.raises(HostTimeoutError, match="silent"):
        next(stream)


def test_replay_reads_events_of_many_executions(host: ScriptedHost, sandbox: Sandbox) -> None:
    content = ndjson(("stdout", "a"), ("exit", 0)) + b"\n" + ndjson(("stdout", "b"))
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/replay", httpx.Response(200, content=content))
    assert [event.data for event in sandbox.replay()] == ["a", 0, "b"]

"""Terminals: what is asked of the host, and what becomes of its streams."""

import base64
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from podflare import (
    Client,
    ConnectionLostError,
    ProtocolError,
    PtyError,
    PtyNotFoundError,
    PtySessionInfo,
    Sandbox,
    SandboxNotFoundError,
)

from .conftest import SANDBOX_ID, ScriptedHost

PTY_ID = "pty_00000000000000000000000000000001"
PTYS = f"/v1/sandboxes/{SANDBOX_ID}/pty"
PTY = f"{PTYS}/{PTY_ID}"
READY: dict[str, object] = {"type": "pty_ready", "session_id": PTY_ID}
DEADLINE_SECONDS = 60.0


def data(text: bytes, seq: int = 0) -> dict[str, object]:
    return {"type": "pty_data", "data_b64": base64.b64encode(text).decode(), "seq": seq}


def exit_of(code: object) -> dict[str, object]:
    return {"type": "pty_exit", "data": code}


def stream(*lines: object) -> httpx.Response:
    """Answer with events; None is a heartbeat."""
    content = b"".join(b"\n" if line is None else json.dumps(line).encode() + b"\n" for line in lines)
    return httpx.Response(200, content=content)


class Open(httpx.SyncByteStream):
    """A stream that says one thing, and then nothing until it may."""

    def __init__(self, first: dict[str, object], last: bytes = b"") -> None:
        self.first = first
        self.last = last
        self.may_go_on = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield json.dumps(self.first).encode() + b"\n"
        assert self.may_go_on.wait(DEADLINE_SECONDS)
        yield self.last


def test_the_request_is_the_published_one(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("POST", PTYS, stream(READY, exit_of(0)))
    sandbox.pty.create(cmd="top", cols=120, rows=40, env={"A": "b"}, cwd="/srv").wait()
    assert host.body() == {"shellCmd": "top", "cols": 120, "rows": 40, "env": [["A", "b"]], "cwd": "/srv"}
    sandbox.pty.create(cmd=["ls", "-l"]).wait()
    assert host.body() == {"argv": ["ls", "-l"], "cols": 80, "rows": 24}


def test_no_program_is_refused_without_a_request(host: ScriptedHost, sandbox: Sandbox) -> None:
    calls = len(host.requests)
    with pytest.raises(ValueError, match="cmd"):
        sandbox.pty.create(cmd=[])
    assert len(host.requests) == calls


def test_output_and_exit_code_are_handed_over_in_order(host: ScriptedHost, sandbox: Sandbox) -> None:
    answer = stream(None, READY, data(b"a\xff"), None, {"type": "later"}, data(b"b", 2), exit_of(7))
    host.on("POST", PTYS, answer)
    seen: list[bytes | int] = []
    pty = sandbox.pty.create(cmd="x", on_data=seen.append, on_exit=seen.append)
    assert pty.id == PTY_ID
    assert pty.wait(DEADLINE_SECONDS) == 7
    assert pty.wait() == 7
    assert seen == [b"a\xff", b"b", 7]


def test_a_callback_that_fails_costs_nothing_but_itself(
    host: ScriptedHost, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    host.on("POST", PTYS, stream(READY, data(b"a"), data(b"b"), exit_of(0)))
    seen = []

    def fail(output: bytes) -> None:
        seen.append(output)
        raise KeyError("mine")

    assert sandbox.pty.create(cmd="x", on_data=fail).wait() == 0
    assert seen == [b"a", b"b"]
    assert capsys.readouterr().err.count("KeyError: 'mine'") == 2


def test_a_program_that_does_not_start_is_an_error_where_it_was_asked_for(
    host: ScriptedHost, sandbox: Sandbox
) -> None:
    host.on("POST", PTYS, stream({"type": "pty_error", "message": "no such program"}))
    with pytest.raises(PtyError, match="no such program") as caught:
        sandbox.pty.create(cmd=["nonsense"])
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    "answer", [stream(), stream(data(b"x")), stream({"type": "pty_ready"}), stream([]), stream(3)]
)
def test_a_terminal_that_is_not_named_is_an_error(
    host: ScriptedHost, sandbox: Sandbox, answer: httpx.Response
) -> None:
    host.on("POST", PTYS, answer)
    with pytest.raises(ProtocolError):
        sandbox.pty.create(cmd="x")


def test_a_sandbox_that_is_gone_is_an_error_where_it_was_asked_for(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxNotFoundError):
        sandbox.pty.create(cmd="x")


def test_a_terminal_that_is_not_there_is_another_error_than_a_sandbox(
    host: ScriptedHost, sandbox: Sandbox
) -> None:
    answer = httpx.Response(404, json={"error": "terminal not found"})
    host.on("GET", f"{PTY}/attach", answer)
    with pytest.raises(PtyNotFoundError):
        sandbox.pty.attach(PTY_ID)
    host.on("POST", f"{PTY}/read", answer)
    with pytest.raises(PtyNotFoundError):
        sandbox._client.pty_read(SANDBOX_ID, PTY_ID, 0)


def test_whoever_attaches_gets_all_from_the_first_event_on(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("GET", f"{PTY}/attach", stream(data(b"before"), exit_of(3)))
    seen: list[bytes] = []
    pty = sandbox.pty.attach(PTY_ID, on_data=seen.append)
    assert (pty.id, pty.wait(), seen) == (PTY_ID, 3, [b"before"])


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (b"", ProtocolError),
        (json.dumps({"type": "pty_error", "message": "it has ended"}).encode(), PtyError),
        (b'{"type": "pty_data", "data_b64": "%"}', ProtocolError),
        (b'{"type": "pty_data"}', ProtocolError),
        (b'{"type": "pty_exit", "data": "0"}', ProtocolError),
        (b"nonsense", ProtocolError),
    ],
)
def test_a_lost_terminal_is_an_error_where_it_is_waited_for(
    host: ScriptedHost, sandbox: Sandbox, last: bytes, error: type[Exception]
) -> None:
    opened = Open(READY, last)
    opened.may_go_on.set()
    host.on("POST", PTYS, httpx.Response(200, stream=opened))
    with pytest.raises(error):
        sandbox.pty.create(cmd="x").wait(DEADLINE_SECONDS)


def test_a_connection_that_breaks_is_an_error_where_it_is_waited_for(
    host: ScriptedHost, sandbox: Sandbox
) -> None:
    class Breaking(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield json.dumps(READY).encode() + b"\n"
            raise httpx.ReadError("gone")

    host.on("POST", PTYS, httpx.Response(200, stream=Breaking()))
    with pytest.raises(ConnectionLostError):
        sandbox.pty.create(cmd="x").wait(DEADLINE_SECONDS)


def test_waiting_may_have_an_end_and_may_be_repeated(host: ScriptedHost, sandbox: Sandbox) -> None:
    opened = Open(READY, json.dumps(exit_of(0)).encode())
    host.on("POST", PTYS, httpx.Response(200, stream=opened))
    pty = sandbox.pty.create(cmd="x")
    with pytest.raises(TimeoutError):
        pty.wait(timeout=0.01)
    opened.may_go_on.set()
    assert pty.wait(DEADLINE_SECONDS) == 0


def test_a_closed_handle_calls_nobody_and_the_program_goes_on(host: ScriptedHost, sandbox: Sandbox) -> None:
    opened = Open(READY, json.dumps(data(b"late")).encode() + b"\n")
    host.on("POST", PTYS, httpx.Response(200, stream=opened))
    seen: list[bytes] = []
    pty = sandbox.pty.create(cmd="x", on_data=seen.append)
    pty.close()
    pty.close()
    opened.may_go_on.set()
    with pytest.raises(PtyError, match="closed"):
        pty.wait(DEADLINE_SECONDS)
    assert seen == []
    assert host.calls()[-1] == f"POST {PTYS}"


def test_what_is_done_with_a_terminal_is_asked_of_the_host(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("POST", PTYS, stream(READY, exit_of(0)))
    for action in ("input", "resize", "kill"):
        host.on("POST", f"{PTY}/{action}", httpx.Response(204))
    pty = sandbox.pty.create(cmd="x")
    pty.send_input("ä\r")
    assert host.body() == {"data_b64": "w6QN"}
    pty.send_input(b"\x03")
    assert host.body() == {"data_b64": "Aw=="}
    pty.resize(cols=200, rows=50)
    assert host.body() == {"cols": 200, "rows": 50}
    pty.kill()
    assert host.calls()[-1] == f"POST {PTY}/kill"
    assert host.requests[-1].content == b""


def test_a_program_that_runs_for_too_long_is_killed(host: ScriptedHost, sandbox: Sandbox) -> None:
    opened = Open(READY, json.dumps(exit_of(137)).encode())
    host.on("POST", PTYS, httpx.Response(200, stream=opened))

    def killed(_: httpx.Request) -> httpx.Response:
        opened.may_go_on.set()
        return httpx.Response(204)

    host.on("POST", f"{PTY}/kill", killed)
    assert sandbox.pty.create(cmd="x", timeout_ms=1).wait(DEADLINE_SECONDS) == 137


def test_terminals_are_listed(host: ScriptedHost, sandbox: Sandbox) -> None:
    runs = {"pty_id": PTY_ID, "cmd_label": "top", "created_at_ms": 5, "exit_code": None, "later": 1}
    host.on("GET", PTYS, httpx.Response(200, json=[runs, {**runs, "exit_code": 3}]))
    assert sandbox.pty.list() == [PtySessionInfo(PTY_ID, "top", 5), PtySessionInfo(PTY_ID, "top", 5, 3)]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [3],
        [{}],
        [{"pty_id": "x", "cmd_label": "", "created_at_ms": 0, "exit_code": "0"}],
        [{"pty_id": "x", "cmd_label": None, "created_at_ms": 0}],
    ],
)
def test_a_list_that_is_none_is_an_error(host: ScriptedHost, sandbox: Sandbox, answer: object) -> None:
    host.on("GET", PTYS, httpx.Response(200, json=answer))
    with pytest.raises(ProtocolError):
        sandbox.pty.list()


def test_a_read_is_the_published_one(host: ScriptedHost, client: Client) -> None:
    chunk = {"data_b64": "eA==", "next_seq": 8, "exit_code": None, "truncated": False}
    host.on("POST", f"{PTY}/read", httpx.Response(200, json=chunk))
    assert client.pty_read(SANDBOX_ID, PTY_ID, 7) == chunk
    assert host.body() == {"since_seq": 7, "max_bytes": 65_536, "timeout_ms": 10_000}
    client.pty_read(SANDBOX_ID, PTY_ID, 8, max_bytes=1, timeout_ms=0)
    assert host.body() == {"since_seq": 8, "max_bytes": 1, "timeout_ms": 0}

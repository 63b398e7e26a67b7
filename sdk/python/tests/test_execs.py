"""What goes with code, and executions as things of their own."""

import inspect
import json

import httpx
import pytest

from podflare import Client, Event, ProtocolError, Sandbox

from .conftest import SANDBOX_ID, ScriptedHost

EXECS_PATH = f"/v1/sandboxes/{SANDBOX_ID}/execs"
EXEC_ID = "exe_00000000000000000000000000000001"


def test_the_request_carries_only_what_was_asked_for(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 0))
    sandbox.run_code(
        "cat", "bash", env={"A": "b"}, cwd="/srv", stdin="ä", timeout_ms=5, cancel_on_disconnect=True
    )
    assert host.body() == {
        "code": "cat",
        "language": "bash",
        "env": {"A": "b"},
        "cwd": "/srv",
        "stdin": "ä",
        "timeout_ms": 5,
        "cancel_on_disconnect": True,
    }
    sandbox.run_code("1", env={}, stdin="")
    assert host.body() == {"code": "1", "language": "python", "stdin": ""}


def test_input_of_bytes_travels_as_base64(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 0))
    list(sandbox.run_code_stream("1", stdin=b"\xff\0"))
    assert host.body() == {"code": "1", "language": "python", "stdin_b64": "/wA="}


def test_what_is_new_can_only_be_named() -> None:
    for function in (Sandbox.run_code, Sandbox.run_code_stream, Client.exec_stream):
        parameters = inspect.signature(function).parameters
        for name in ("env", "cwd", "stdin", "timeout_ms", "cancel_on_disconnect"):
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_exit_tells_whose_it_is_and_why(host: ScriptedHost, sandbox: Sandbox) -> None:
    line = {"type": "exit", "data": 124, "seq": 0, "ts": 0, "exec_id": EXEC_ID, "reason": "timeout"}
    answer = httpx.Response(200, content=json.dumps(line).encode() + b"\n")
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", answer)
    result = sandbox.run_code("…")
    assert (result.exit_code, result.reason) == (124, "timeout")
    assert list(sandbox.run_code_stream("…")) == [Event("exit", 124, 0, 0, EXEC_ID, "timeout")]


def test_a_code_that_ended_by_itself_has_no_reason(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 3))
    assert sandbox.run_code("…").reason is None


def test_a_result_that_is_not_waited_for_is_no_longer_read(host: ScriptedHost, sandbox: Sandbox) -> None:
    closed = []

    class Interrupted(httpx.SyncByteStream):
        def __iter__(self) -> "Interrupted":
            return self

        def __next__(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None:
            closed.append(True)

    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", httpx.Response(200, stream=Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        sandbox.run_code("…", cancel_on_disconnect=True)
    assert closed


def test_executions_are_listed_as_the_host_tells_them(host: ScriptedHost, sandbox: Sandbox) -> None:
    execs = [{"id": EXEC_ID, "state": "running", "language": "python", "code": "x", "inherited": False}]
    host.on("GET", EXECS_PATH, httpx.Response(200, json={"execs": execs}))
    assert sandbox.execs() == execs


@pytest.mark.parametrize("answer", [[], {}, {"execs": 3}, {"execs": [3]}, {"execs": [{"id": None}]}])
def test_a_list_that_is_none_is_an_error(host: ScriptedHost, sandbox: Sandbox, answer: object) -> None:
    host.on("GET", EXECS_PATH, httpx.Response(200, json=answer))
    with pytest.raises(ProtocolError):
        sandbox.execs()


def test_cancelling_names_the_execution(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("DELETE", f"{EXECS_PATH}/{EXEC_ID}", httpx.Response(204))
    sandbox.cancel(EXEC_ID)
    assert host.calls()[-1] == f"DELETE {EXECS_PATH}/{EXEC_ID}"

"""The terminals of the published SDK work here without a change."""

from __future__ import annotations

import base64
import threading
import time

import pytest

from podflare import Sandbox

DEADLINE_SECONDS = 240.0


class Screen:
    """What a terminal has printed to one who is attached."""

    def __init__(self) -> None:
        self.text = b""
        self._printed = threading.Condition()

    def take(self, data: bytes) -> None:
        with self._printed:
            self.text += data
            self._printed.notify_all()

    def wait_for(self, text: bytes) -> None:
        with self._printed:
            there = self._printed.wait_for(lambda: text in self.text, DEADLINE_SECONDS)
            assert there, f"no {text!r} in {self.text!r}"


def test_a_shell_takes_input_and_ends_with_its_code(sandbox: Sandbox) -> None:
    screen = Screen()
    codes: list[int] = []
    pty = sandbox.pty.create(
        cmd="stty size; pwd; echo $A; exec bash",
        cols=100,
        rows=30,
        on_data=screen.take,
        on_exit=codes.append,
        env={"A": "b"},
        cwd="/usr",
        timeout_ms=0,
    )
    screen.wait_for(b"30 100\r\n/usr\r\nb\r\n")
    pty.resize(cols=132, rows=50)
    pty.send_input("stty size\r")
    screen.wait_for(b"50 132\r\n")
    pty.send_input(b"exit 7\r")
    assert pty.wait(DEADLINE_SECONDS) == 7
    assert codes == [7]


def test_a_silent_terminal_outlasts_the_clients_patience(sandbox: Sandbox) -> None:
    pty = sandbox.pty.create(cmd=["sleep", "33"])
    assert pty.wait(DEADLINE_SECONDS) == 0


def test_sessions_are_listed_attached_to_and_killed(sandbox: Sandbox) -> None:
    first = sandbox.pty.create(cmd=["bash", "-c", "echo be''fore; sleep 4711"])
    screen = Screen()
    codes: list[int] = []
    pty = sandbox.pty.attach(first.id, on_data=screen.take, on_exit=codes.append)
    screen.wait_for(b"before\r\n")
    [info] = sandbox.pty.list()
    assert (info.pty_id, info.exit_code) == (first.id, None)
    assert info.cmd_label.startswith("bash -c")
    assert info.created_at_ms > 0
    pty.kill()
    assert [pty.wait(DEADLINE_SECONDS), first.wait(DEADLINE_SECONDS)] == [137, 137]
    assert codes == [137]


def test_a_program_that_does_not_start_is_a_runtime_error(sandbox: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="pty_create failed"):
        sandbox.pty.create(cmd="true", cwd="/nonexistent")


def test_a_read_waits_and_goes_on_where_the_last_one_ended(sandbox: Sandbox) -> None:
    pty = sandbox.pty.create(cmd="read line; echo got $line")
    client = sandbox._client
    begun = time.monotonic()
    chunk = client.pty_read(sandbox.id, pty.id, 0, timeout_ms=500)
    assert chunk["data_b64"] == ""
    assert time.monotonic() - begun >= 0.5
    pty.send_input("it\r")
    text, place = b"", chunk["next_seq"]
    while chunk["exit_code"] is None:
        chunk = client.pty_read(sandbox.id, pty.id, place)
        text, place = text + base64.b64decode(chunk["data_b64"]), chunk["next_seq"]
    assert (text, chunk["exit_code"]) == (b"it\r\ngot it\r\n", 0)

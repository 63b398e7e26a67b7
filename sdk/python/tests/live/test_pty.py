"""Terminals: programs that draw and ask, and those who sit at them, leave and return."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest

from podflare import ApiError, Client, PtyError, PtyHandle, PtyNotFoundError, Sandbox

from .vocabulary import DEADLINE_SECONDS, assert_works, bash, forked, python, wait_until

pytestmark = pytest.mark.live


class Screen:
    """What a terminal has printed to one who is attached."""

    def __init__(self) -> None:
        self._text = ""
        self._exit_code: int | None = None
        self._printed = threading.Condition()

    def take(self, data: bytes) -> None:
        with self._printed:
            self._text += data.decode(errors="replace")
            self._printed.notify_all()

    def wait_for(self, text: str) -> str:
        """Return all output once the text is in it."""
        with self._printed:
            there = self._printed.wait_for(lambda: text in self._text, DEADLINE_SECONDS)
            assert there, f"no {text!r} in {self._text!r}"
            return self._text

    @property
    def text(self) -> str:
        return self._text


def opened(
    sandbox: Sandbox, cmd: str | list[str], cols: int = 80, rows: int = 24, env: dict[str, str] | None = None
) -> tuple[PtyHandle, Screen]:
    screen = Screen()
    return sandbox.pty.create(cmd=cmd, cols=cols, rows=rows, on_data=screen.take, env=env), screen


def attached(sandbox: Sandbox, pty_id: str) -> tuple[PtyHandle, Screen]:
    screen = Screen()
    return sandbox.pty.attach(pty_id, on_data=screen.take), screen


def test_a_program_has_a_terminal_of_its_size_and_ends_with_its_code(sandbox: Sandbox) -> None:
    pty, screen = opened(
        sandbox, "tty && stty size && echo $A in $PWD; exit 7", cols=100, rows=30, env={"A": "b"}
    )
    assert pty.wait(DEADLINE_SECONDS) == 7
    assert screen.text.startswith("/dev/pts/")
    assert screen.text.endswith("\r\n30 100\r\nb in /root\r\n")


def test_a_list_is_executed_without_a_shell(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["/bin/echo", "$HOME", "*"])
    assert pty.wait(DEADLINE_SECONDS) == 0
    assert screen.text == "$HOME *\r\n"
    with pytest.raises(PtyError, match="nonexistent"):
        sandbox.pty.create(cmd="true", cwd="/nonexistent")


def test_a_shell_is_interactive_and_sees_each_resize(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["bash", "-l"])
    pty.send_input("stty size; test -t 0 && echo interac''tive\r")
    screen.wait_for("24 80\r\n")
    screen.wait_for("interactive")
    pty.resize(cols=132, rows=50)
    pty.send_input("stty size\r")
    screen.wait_for("50 132\r\n")
    pty.send_input("exit 5\r")
    assert pty.wait(DEADLINE_SECONDS) == 5


def test_ctrl_c_interrupts_what_is_in_the_foreground(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["bash", "-l"])
    pty.send_input("sh -c 'echo be''gun; exec sleep 4711'\r")
    screen.wait_for("begun")
    pty.send_input(b"\x03")
    pty.send_input("echo code $?\r")
    screen.wait_for("code 130\r\n")
    pty.kill()
    assert pty.wait(DEADLINE_SECONDS) == 137


def test_an_interactive_python_answers(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["python3", "-i", "-q"])
    screen.wait_for(">>>")
    pty.send_input("6 * 7\r")
    screen.wait_for("42")
    pty.send_input("exit(3)\r")
    assert pty.wait(DEADLINE_SECONDS) == 3


def test_top_draws_until_it_is_told_to_quit(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, "top -d 1", cols=120, rows=40)
    screen.wait_for("COMMAND")
    pty.send_input("q")
    assert pty.wait(DEADLINE_SECONDS) == 0


def test_vim_edits_and_follows_the_size_of_its_terminal(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, "vim -u NONE note")
    screen.wait_for("note")
    pty.resize(100, 40)
    pty.send_input(":echo 'size' &columns &lines\r")
    screen.wait_for("size 100 40")
    pty.send_input("ihello\x1b:wq\r")
    assert pty.wait(DEADLINE_SECONDS) == 0
    assert bash(sandbox, "cat note") == "hello"


def test_who_returns_sees_what_was_printed_meanwhile_and_many_may_look_on(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["bash", "-l"])
    pty.send_input("echo fir''st\r")
    screen.wait_for("first")
    pty.close()
    pty.send_input("echo sec''ond\r")
    lookers = [attached(sandbox, pty.id) for _ in range(3)]
    for _, shown in lookers:
        assert "first" in shown.wait_for("second")
    lookers[0][0].send_input("exit 4\r")
    assert [looker.wait(DEADLINE_SECONDS) for looker, _ in lookers] == [4, 4, 4]
    [listed] = sandbox.pty.list()
    assert (listed.pty_id, listed.cmd_label, listed.exit_code) == (pty.id, "bash -l", 4)


def test_a_terminal_outlives_the_program_that_opened_it(sandbox: Sandbox, client: Client) -> None:
    program = f"""
from podflare import Client
stream = Client({client.host!r}).pty_create_stream({sandbox.id!r}, {{"argv": ["bash", "-l"]}})
print(next(event for event in stream if event)["session_id"], flush=True)
import os; os._exit(0)
"""
    pty_id = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=DEADLINE_SECONDS
    ).stdout.strip()
    assert [info.exit_code for info in sandbox.pty.list()] == [None]
    pty, screen = attached(sandbox, pty_id)
    pty.send_input("echo still he''re; exit\r")
    screen.wait_for("still here")
    assert pty.wait(DEADLINE_SECONDS) == 0


def test_killing_ends_the_program_and_its_children_and_may_be_repeated(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, "trap '' HUP TERM; echo on; sleep 4711")
    screen.wait_for("on")
    pty.kill()
    pty.kill()
    assert pty.wait(DEADLINE_SECONDS) == 137
    assert bash(sandbox, "pgrep -fc '^sleep 4711' || true") == "0"
    with pytest.raises(ApiError, match="409"):
        pty.send_input("x")


def test_output_can_be_read_piece_by_piece(sandbox: Sandbox, client: Client) -> None:
    pty, _ = opened(sandbox, "read line; echo got $line; exit 6")
    begun = time.monotonic()
    nothing = client.pty_read(sandbox.id, pty.id, 0, timeout_ms=1_000)
    assert (nothing["data_b64"], nothing["next_seq"], nothing["exit_code"]) == ("", 0, None)
    assert time.monotonic() - begun >= 1
    pty.send_input("it\r")
    text, place, exit_code = b"", 0, None
    while exit_code is None:
        chunk = client.pty_read(sandbox.id, pty.id, place, max_bytes=5, timeout_ms=30_000)
        text += base64.b64decode(chunk["data_b64"])
        place, exit_code = chunk["next_seq"], chunk["exit_code"]
    assert (text, exit_code) == (b"it\r\ngot it\r\n", 6)
    assert place == len(text)


def test_the_last_mebibyte_is_kept_whoever_reads(sandbox: Sandbox, client: Client) -> None:
    pty, _ = opened(sandbox, "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
    assert pty.wait(DEADLINE_SECONDS) == 0
    _, screen = attached(sandbox, pty.id)
    assert len(screen.wait_for("end\r\n")) == 1024 * 1024
    assert client.pty_read(sandbox.id, pty.id, 0)["truncated"]


def test_executions_and_terminals_do_not_wait_for_each_other(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, "while :; do date +%N; done")
    screen.wait_for("\r\n")
    assert_works(sandbox)
    with closing(sandbox.run_code_stream("import time\nprint(1, flush=True)\ntime.sleep(4711)")) as code:
        next(code)
        other, shown = opened(sandbox, "echo beside it")
        shown.wait_for("beside it")
        assert other.wait(DEADLINE_SECONDS) == 0
    pty.kill()


def test_a_fork_has_the_terminal_its_program_and_its_history(sandbox: Sandbox) -> None:
    pty, screen = opened(sandbox, ["bash", "-l"])
    pty.send_input("x=be''fore; echo $x\r")
    screen.wait_for("before\r\n")
    with forked(sandbox, 2) as children:
        for number, child in enumerate(children):
            copy, shown = attached(child, pty.id)
            shown.wait_for("before\r\n")
            copy.send_input(f"echo $x in {number}; exit {number}\r")
            shown.wait_for(f"before in {number}\r\n")
            assert copy.wait(DEADLINE_SECONDS) == number
    pty.send_input("echo $x in the par''ent\r")
    assert "in 0" not in screen.wait_for("before in the parent\r\n")
    pty.kill()


def test_a_sandbox_with_somebody_at_a_terminal_is_not_idle(client: Client) -> None:
    with Sandbox(client=client, idle_timeout_seconds=3) as sandbox:
        pty, _ = opened(sandbox, "sleep 4711")
        time.sleep(8)
        assert [info.exit_code for info in sandbox.pty.list()] == [None]
        pty.close()
        wait_until(lambda: not listed(client, sandbox), "nobody looks on, so it is idle")


def listed(client: Client, sandbox: Sandbox) -> bool:
    return sandbox.id in {info["id"] for info in client.list_sandboxes()}


def test_what_is_not_there_is_told(sandbox: Sandbox) -> None:
    pty, _ = opened(sandbox, "true")
    pty.wait(DEADLINE_SECONDS)
    with pytest.raises(PtyNotFoundError):
        sandbox.pty.attach("pty_" + "0" * 32)
    assert python(sandbox, "print(1)") == "1"

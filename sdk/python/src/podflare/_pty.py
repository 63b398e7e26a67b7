"""Terminals of a sandbox: programs that somebody sits at."""

from __future__ import annotations

import base64
import threading
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podflare._errors import PodflareError, ProtocolError, PtyError

if TYPE_CHECKING:
    from podflare._client import Client

OnData = Callable[[bytes], object]
OnExit = Callable[[int], object]
_Events = Generator[dict[str, Any], None, None]


@dataclass(frozen=True)
class PtySessionInfo:
    """What the host tells about a terminal.

    Attributes:
        pty_id: The host's name for it.
        cmd_label: The command's beginning, at most 256 bytes.
        created_at_ms: Milliseconds since 1970-01-01 UTC, by the sandbox's clock.
        exit_code: None while the program runs; 128 and the signal's number where a signal has ended it.
    """

    pty_id: str
    cmd_label: str
    created_at_ms: int
    exit_code: int | None = None

    @classmethod
    def from_json(cls, view: Mapping[str, Any]) -> PtySessionInfo:
        """Build it from its JSON object; keys that it does not know are ignored.

        Raises:
            ProtocolError: A key is missing, or its value of another type.
        """
        pty_id, label, created = view.get("pty_id"), view.get("cmd_label"), view.get("created_at_ms")
        exit_code = view.get("exit_code")
        if type(pty_id) is not str or type(label) is not str or type(created) is not int:
            raise ProtocolError(f"The host told something else than a terminal: {view!r}")
        if exit_code is not None and type(exit_code) is not int:
            raise ProtocolError(f"The host told something else than an exit code: {exit_code!r}")
        return cls(pty_id, label, created, exit_code)


class PtyHandle:
    """A program in a terminal, and your place at it; `Sandbox.pty` makes them.

    What the program prints is handed to `on_data` on a thread of this handle, in order. An exception there is
    printed and changes nothing. The program runs on when this handle, or this Python, is gone, until it is
    killed or its sandbox ends; `Sandbox.pty.attach` returns to it.

    Attributes:
        id: The host's name for the terminal.
    """

    id: str

    def __init__(
        self,
        client: Client,
        sandbox_id: str,
        pty_id: str,
        events: _Events,
        on_data: OnData | None,
        on_exit: OnExit | None,
        timeout_ms: int = 0,
    ) -> None:
        self.id = pty_id
        self._client = client
        self._sandbox_id = sandbox_id
        self._on_data = on_data
        self._on_exit = on_exit
        self._ended = threading.Event()
        self._is_closed = False
        self._exit_code: int | None = None
        self._failure: Exception | None = None
        self._time = threading.Timer(timeout_ms / 1000, self._time_is_over) if timeout_ms else None
        if self._time:
            self._time.daemon = True
            self._time.start()
        threading.Thread(target=self._follow, args=(events,), name=f"podflare {pty_id}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<PtyHandle {self.id} in {self._sandbox_id} on {self._client.host}>"

    def send_input(self, data: bytes | str) -> None:
        r"""Type; returns when the terminal has taken it.

        Args:
            data: Keys, up to 32 KiB; text is sent as UTF-8. Enter is "\r", Ctrl-C "\x03", Ctrl-D "\x04".

        Raises:
            BadRequestError: It is too long.
            ApiError: The program has ended (409), or does not read what was typed before.
            PtyNotFoundError: The terminal is gone.
        """
        self._client.pty_input(self._sandbox_id, self.id, data.encode() if isinstance(data, str) else data)

    def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size, 1 to 1000 each; its program gets SIGWINCH.

        Raises:
            BadRequestError: The size is out of range.
            ApiError: The program has ended (409).
            PtyNotFoundError: The terminal is gone.
        """
        self._client.pty_resize(self._sandbox_id, self.id, cols, rows)

    def kill(self) -> None:
        """Kill the program and what it has in the foreground; `wait` then returns 137, unless it had ended.

        Raises:
            PtyNotFoundError: The terminal is gone.
        """
        self._client.pty_kill(self._sandbox_id, self.id)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program's end, and for its last output to be handed over. Return its exit code.

        Args:
            timeout: Longest wait, in seconds.

        Raises:
            TimeoutError: The time was over first. The program goes on.
            PtyError: The sandbox has ended, or this handle was closed.
            PodflareError: The host went away; `Sandbox.pty.attach` may find the program still there.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"The program in {self.id} has not ended within {timeout} s")
        if self._exit_code is None:
            raise self._failure or PtyError(f"The handle of {self.id} was closed before the program's end")
        return self._exit_code

    def close(self) -> None:
        """Look no longer, and call nobody back; the program goes on. May be called twice."""
        self._is_closed = True
        self._ended.set()

    def _follow(self, events: _Events) -> None:
        try:
            with closing(events):
                for event in events:
                    # The host says something every few seconds, be it nothing.
                    if self._is_closed or self._take(event):
                        return
            self._failure = ProtocolError(f"The stream of {self.id} ended without an exit code")
        except Exception as error:  # noqa: BLE001  It is raised where somebody waits.
            self._failure = error
        finally:
            if self._time:
                self._time.cancel()
            self._ended.set()

    def _take(self, event: dict[str, Any]) -> bool:
        """Take an event; return whether it was the last."""
        match event.get("type"):
            case "pty_data":
                data = _bytes(event)
                self._call(self._on_data, data)
            case "pty_exit":
                code = event.get("data")
                if type(code) is not int:
                    raise ProtocolError(f"The host told something else than an exit code: {code!r}")
                self._exit_code = code
                self._call(self._on_exit, code)
                return True
            case "pty_error":
                raise PtyError(str(event.get("message")))
        return False

    def _call(self, callback: Callable[[Any], object] | None, value: object) -> None:
        if callback is None:
            return
        try:
            callback(value)
        except Exception:  # noqa: BLE001  The rest of the output must not be lost with it.
            traceback.print_exc()

    def _time_is_over(self) -> None:
        # Whoever waits learns from the stream how the program fares.
        with suppress(PodflareError):
            self.kill()


class PtyNamespace:
    """The terminals of one sandbox.

    A terminal belongs to its sandbox, not to who opened it: it stays when that program ends or loses its
    connection, and so does its latest output, 1 MiB. A fork's children have copies of it that go their own
    ways. While somebody is attached the sandbox is not idle.
    """

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id

    def create(
        self,
        *,
        cmd: str | Sequence[str],
        cols: int = 80,
        rows: int = 24,
        on_data: OnData | None = None,
        on_exit: OnExit | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_ms: int = 0,
    ) -> PtyHandle:
        """Start a program in a new terminal, and attach to it.

        Args:
            cmd: A command line, for `bash -lc`; or a program and its arguments, executed as they are.
            cols: Columns, 1 to 1000.
            rows: Rows, 1 to 1000.
            on_data: Called with the bytes that the program prints, as they come.
            on_exit: Called with the program's exit code, after all output.
            env: Environment variables, beside those of a login (TERM is xterm-256color).
            cwd: Directory to start in, an absolute path; otherwise /root.
            timeout_ms: Kill the program when it has run for so long, as long as this Python runs. 0 is never.

        Raises:
            ValueError: cmd is an empty list.
            BadRequestError: An argument is out of range.
            SandboxNotFoundError: The sandbox is gone.
            PtyError: The program cannot be started, or 32 run in terminals of this sandbox already.
        """
        if not isinstance(cmd, str) and not cmd:
            raise ValueError("cmd must name a program")
        body: dict[str, object] = {"shellCmd": cmd} if isinstance(cmd, str) else {"argv": list(cmd)}
        body |= {"cols": cols, "rows": rows}
        if env:
            body["env"] = [[name, value] for name, value in env.items()]
        if cwd is not None:
            body["cwd"] = cwd
        events = self._client.pty_create_stream(self._sandbox_id, body)
        pty_id = _ready(events)
        return PtyHandle(self._client, self._sandbox_id, pty_id, events, on_data, on_exit, timeout_ms)

    def attach(
        self, pty_id: str, *, on_data: OnData | None = None, on_exit: OnExit | None = None
    ) -> PtyHandle:
        """Come to a terminal that is there, from wherever and as many as like.

        Its latest output comes first, up to 1 MiB, then what is printed; of a program that has ended, its
        exit code.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
            PtyNotFoundError: There is no such terminal.
        """
        events = self._client.pty_attach_stream(self._sandbox_id, pty_id)
        # The host's refusal, if it refuses, is raised here and not on another thread.
        first = next(events, None)
        return PtyHandle(self._client, self._sandbox_id, pty_id, _with(first, events), on_data, on_exit)

    def list(self) -> list[PtySessionInfo]:
        """List the terminals, in the order of their making; those whose programs have ended stay for a while.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return [PtySessionInfo.from_json(view) for view in self._client.pty_list(self._sandbox_id)]


def _ready(events: _Events) -> str:
    """Return the new terminal's id, which is the first that the host says."""
    for event in events:
        if event.get("type") == "pty_error":
            raise PtyError(str(event.get("message")))
        if event.get("type") == "pty_ready" and type(event.get("session_id")) is str:
            session_id: str = event["session_id"]
            return session_id
        if event:
            break
    raise ProtocolError("The host did not name the new terminal")


def _with(first: dict[str, Any] | None, events: _Events) -> _Events:
    with closing(events):
        if first is not None:
            yield first
        yield from events


def _bytes(event: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(event["data_b64"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError("The host sent output that is not base64") from error

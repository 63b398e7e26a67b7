"""The HTTP client: one method for each endpoint, no state of sandboxes."""

from __future__ import annotations

import base64
import os
import re
import threading
import weakref
from collections.abc import Generator, Mapping
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import httpx

from podflare._errors import ProtocolError, api_error, transport_errors
from podflare._stream import events, execution_events, terminal_events
from podflare._types import (
    CheckpointInfo,
    Event,
    ExecInfo,
    ForkFailure,
    Language,
    PtyChunk,
    SandboxInfo,
    exec_body,
)
from podflare._version import __version__

DEFAULT_HOST = "http://127.0.0.1:7070"

_CONNECT_TIMEOUT_SECONDS = 5.0
# A host may have to build or boot something before it answers one of these.
_SLOW_TIMEOUT_SECONDS = 120.0
_EXCERPT_LEN = 200
_GUEST_TIMING = re.compile(r"\bguest;dur=(\d+(?:\.\d+)?)")
_KEEPALIVE = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=60.0)


class Client:
    """A connection pool to one host; may be shared by many sandboxes and threads.

    Args:
        host: Base URL. Otherwise PODFLARE_HOSTD_URL, then PODFLARE_HOST, then http://127.0.0.1:7070.
        timeout: Longest silence of the host, in seconds. Running code is not silent: the host sends
            heartbeats. Creating, forking and merging may take up to 120 seconds in any case.
        traceparent: W3C trace context, sent with every request. Otherwise PODFLARE_TRACEPARENT.
        api_key: Bearer key. Otherwise PODFLARE_API_KEY.
        transport: Replaces the network, as with httpx: for tests and for measuring.

    Raises:
        ValueError: The host is not an http:// or https:// URL.
    """

    def __init__(
        self,
        host: str | None = None,
        timeout: float = 30.0,
        traceparent: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.host = resolve_host(host)
        self.traceparent = traceparent or os.environ.get("PODFLARE_TRACEPARENT") or None
        self.api_key = api_key or os.environ.get("PODFLARE_API_KEY") or None
        self._timeout = timeout
        self._http = httpx.Client(
            base_url=self.host,
            headers=self._headers(),
            transport=transport or httpx.HTTPTransport(retries=1, limits=_KEEPALIVE),
        )
        # Fork children share their parent's client and may outlive it, so that nobody but the garbage
        # collector knows when the last user is gone.
        self._close = weakref.finalize(self, self._http.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.host}>"

    def close(self) -> None:
        """Close the connections; sandboxes stay. May be called twice; other calls raise RuntimeError then."""
        self._close()

    def healthz(self) -> bool:
        """Ask whether the host is up.

        Raises:
            PodflareError: Nothing answers.
        """
        with transport_errors(self.host):
            response = self._http.get("/v1/healthz", timeout=self._timeouts(self._timeout))
        return response.status_code == httpx.codes.OK and response.text.strip() == "ok"

    def capacity(self) -> dict[str, Any]:
        """Ask for the counters of the host's pools of ready VMs."""
        return _answer(self._request("GET", "/v1/capacity"))

    def create_sandbox(
        self,
        template: str | None = None,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        ram_mib: int | None = None,
        rootfs_gb: int | None = None,
        persistent: bool | None = None,
        egress: bool | None = None,
    ) -> str:
        """Create a sandbox and return its id; see `Sandbox` for the arguments.

        Raises:
            ApiError: The host refused or failed.
        """
        info = self.create_sandbox_info(
            template,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            ram_mib=ram_mib,
            rootfs_gb=rootfs_gb,
            persistent=persistent,
            egress=egress,
        )
        return info["id"]

    def create_sandbox_info(
        self,
        template: str | None = None,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        ram_mib: int | None = None,
        rootfs_gb: int | None = None,
        persistent: bool | None = None,
        egress: bool | None = None,
    ) -> SandboxInfo:
        """Create a sandbox and return what the host tells about it.

        Raises:
            ApiError: The host refused or failed.
        """
        wanted = {
            "template": template,
            "timeout_seconds": timeout_seconds,
            "idle_timeout_seconds": idle_timeout_seconds,
            "ram_mib": ram_mib,
            "rootfs_gb": rootfs_gb,
            "persistent": persistent,
            "egress": egress,
        }
        body = {name: value for name, value in wanted.items() if value is not None}
        return _info(_answer(self._request("POST", "/v1/sandboxes", body=body, slow=True)))

    def list_sandboxes(self) -> list[SandboxInfo]:
        """List the sandboxes of this API key."""
        return [_info(view) for view in _list(self._request("GET", "/v1/sandboxes"), "sandboxes")]

    def sandbox_info(self, sandbox_id: str) -> SandboxInfo:
        """Look at a sandbox.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        return _info(_answer(self._request("GET", _sandbox_path(sandbox_id))))

    def destroy_sandbox(self, sandbox_id: str) -> None:
        """Destroy a sandbox and its checkpoints; hosts take an id that is already gone as success."""
        self._request("DELETE", _sandbox_path(sandbox_id), slow=True)

    def fork_sandbox(self, sandbox_id: str, n: int = 1) -> list[str]:
        """Make n children and return their ids.

        Raises:
            BadRequestError: n is not within 1 to 32.
            SandboxNotFoundError: There is no such sandbox.
        """
        response = self._request("POST", _sandbox_path(sandbox_id, "fork"), body={"n": n}, slow=True)
        return [_id(child) for child in _list(response, "children")]

    def fork_sandbox_partial(self, sandbox_id: str, n: int = 1) -> tuple[list[str], list[ForkFailure]]:
        """Make up to n children; return the ids of those that live, and why there are no others.

        Raises:
            BadRequestError: n is not within 1 to 32.
            SandboxNotFoundError: There is no such sandbox.
            HostError: No child could be made.
        """
        body = {"n": n, "partial": True}
        response = self._request("POST", _sandbox_path(sandbox_id, "fork"), body=body, slow=True)
        children = [_id(child) for child in _list(response, "children")]
        return children, ForkFailure.list_from_json(_answer(response).get("failures"))

    def create_checkpoint(self, sandbox_id: str, name: str | None = None) -> CheckpointInfo:
        """Keep a sandbox's state as it is now, and return what the host tells about the checkpoint.

        Raises:
            BadRequestError: The name is too long.
            SandboxNotFoundError: There is no such sandbox.
            CapacityError: The sandbox has 16 checkpoints, or the host is full.
        """
        body = {} if name is None else {"name": name}
        path = _sandbox_path(sandbox_id, "checkpoints")
        return _checkpoint(_answer(self._request("POST", path, body=body, slow=True)))

    def list_checkpoints(self, sandbox_id: str | None = None) -> list[CheckpointInfo]:
        """List the checkpoints of a sandbox, or of all, oldest first.

        Raises:
            SandboxNotFoundError: There is no such sandbox, and it has left no checkpoints.
        """
        path = "/v1/checkpoints" if sandbox_id is None else _sandbox_path(sandbox_id, "checkpoints")
        return [_checkpoint(view) for view in _list(self._request("GET", path), "checkpoints")]

    def checkpoint_info(self, checkpoint_id: str) -> CheckpointInfo:
        """Look at a checkpoint.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint.
        """
        return _checkpoint(_answer(self._request("GET", _checkpoint_path(checkpoint_id))))

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Delete a checkpoint; hosts take an id that is already gone as success."""
        self._request("DELETE", _checkpoint_path(checkpoint_id), slow=True)

    def fork_checkpoint(self, checkpoint_id: str, n: int = 1) -> list[str]:
        """Make n sandboxes of a checkpoint and return their ids.

        Raises:
            BadRequestError: n is not within 1 to 32.
            CheckpointNotFoundError: There is no such checkpoint.
        """
        path = _checkpoint_path(checkpoint_id, "fork")
        return [
            _id(child) for child in _list(self._request("POST", path, body={"n": n}, slow=True), "children")
        ]

    def restore_sandbox(self, sandbox_id: str, checkpoint_id: str) -> None:
        """Let the sandbox's id name a copy of the checkpoint from now on.

        Raises:
            BadRequestError: The checkpoint is another sandbox's.
            SandboxNotFoundError: There is no such sandbox.
            CheckpointNotFoundError: There is no such checkpoint.
        """
        body = {"checkpoint": checkpoint_id}
        self._request("POST", _sandbox_path(sandbox_id, "restore"), body=body, slow=True)

    def merge_into(self, parent_id: str, winner_id: str) -> None:
        """Let the parent's id name the winner's VM from now on; the winner's id is gone.

        Raises:
            BadRequestError: Both are the same sandbox.
            SandboxNotFoundError: There is no such sandbox.
        """
        self._request("POST", _sandbox_path(parent_id, "merge_into", winner_id), slow=True)

    def ping(self, sandbox_id: str) -> float:
        """Ask the sandbox's guest for an answer; return its round trip by the host's clock, in milliseconds.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            HostError: The guest did not answer in time.
            ProtocolError: The host did not tell how long it took.
        """
        response = self._request("GET", _sandbox_path(sandbox_id, "ping"))
        timing = _GUEST_TIMING.search(response.headers.get("server-timing", ""))
        if timing is None:
            raise ProtocolError(f"{response.request.url} did not tell how long the guest took")
        return float(timing[1])

    def replay(self, sandbox_id: str) -> list[Event]:
        """Return the sandbox's latest events, at most 1000.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        return list(events([self._request("GET", _sandbox_path(sandbox_id, "replay")).content]))

    def exec_stream(
        self,
        sandbox_id: str,
        code: str,
        language: Language = "python",
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | bytes | None = None,
        timeout_ms: int | None = None,
        cancel_on_disconnect: bool = False,
    ) -> Generator[Event, None, None]:
        """Run code and yield its events as they arrive; see `Sandbox.run_code` for the arguments.

        The request is sent with the first `next`. Closing the generator stops the reading, and the code only
        with `cancel_on_disconnect`: otherwise that runs on, and the sandbox's later executions wait for it.

        Raises:
            BadRequestError: An argument is out of range.
            SandboxNotFoundError: There is no such sandbox.
            ProtocolError: The stream ended without an exit code.
            PodflareError: The host failed or went away.
        """
        path = _sandbox_path(sandbox_id, "exec")
        body = exec_body(code, language, env, cwd, stdin, timeout_ms, cancel_on_disconnect)
        timeouts = self._timeouts(self._timeout)
        with (
            transport_errors(self.host),
            self._http.stream("POST", path, json=body, timeout=timeouts) as response,
        ):
            if not response.is_success:
                response.read()
                raise api_error(response)
            yield from execution_events(response.iter_bytes())

    def list_execs(self, sandbox_id: str) -> list[ExecInfo]:
        """List the executions that run or wait in a sandbox, in the order of their requests.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        return [
            _exec(view) for view in _list(self._request("GET", _sandbox_path(sandbox_id, "execs")), "execs")
        ]

    def cancel_exec(self, sandbox_id: str, exec_id: str) -> None:
        """Cancel an execution; one that is over, or was never there, is success. Does not wait for its end.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        self._request("DELETE", _sandbox_path(sandbox_id, "execs", exec_id))

    def pty_create_stream(
        self, sandbox_id: str, body: Mapping[str, object]
    ) -> Generator[dict[str, Any], None, None]:
        """Start a program in a new terminal and yield its events; a heartbeat is an empty one.

        The request is sent with the first `next`; see `Sandbox.pty` for what is easier to use.

        Raises:
            BadRequestError: The body is wrong.
            SandboxNotFoundError: There is no such sandbox.
            PodflareError: The host failed or went away.
        """
        return self._terminal_events("POST", _sandbox_path(sandbox_id, "pty"), body)

    def pty_attach_stream(self, sandbox_id: str, pty_id: str) -> Generator[dict[str, Any], None, None]:
        """Yield the events of a terminal: what is kept of its output first, then what comes.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            PtyNotFoundError: There is no such terminal.
            PodflareError: The host failed or went away.
        """
        return self._terminal_events("GET", _sandbox_path(sandbox_id, "pty", pty_id, "attach"))

    def pty_input(self, sandbox_id: str, pty_id: str, data: bytes) -> None:
        """Type into a terminal; see `PtyHandle.send_input`."""
        body = {"data_b64": base64.b64encode(data).decode()}
        self._request("POST", _sandbox_path(sandbox_id, "pty", pty_id, "input"), body=body)

    def pty_resize(self, sandbox_id: str, pty_id: str, cols: int, rows: int) -> None:
        """Give a terminal another size; see `PtyHandle.resize`."""
        body = {"cols": cols, "rows": rows}
        self._request("POST", _sandbox_path(sandbox_id, "pty", pty_id, "resize"), body=body)

    def pty_kill(self, sandbox_id: str, pty_id: str) -> None:
        """Kill the program in a terminal; see `PtyHandle.kill`."""
        self._request("POST", _sandbox_path(sandbox_id, "pty", pty_id, "kill"))

    def pty_list(self, sandbox_id: str) -> list[dict[str, Any]]:
        """List the terminals of a sandbox, as the host tells of them.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        response = self._request("GET", _sandbox_path(sandbox_id, "pty"))
        try:
            views = response.json()
        except (ValueError, RecursionError):
            views = None
        if not isinstance(views, list) or not all(isinstance(view, dict) for view in views):
            raise ProtocolError(f"{response.request.url} did not answer with a list of terminals")
        return views

    def pty_read(
        self,
        sandbox_id: str,
        pty_id: str,
        since_seq: int,
        max_bytes: int = 65_536,
        timeout_ms: int = 10_000,
    ) -> PtyChunk:
        """Read a terminal's output from a place on, for who cannot hold a stream open.

        Args:
            sandbox_id: The sandbox.
            pty_id: The terminal.
            since_seq: Where to begin: 0, or the `next_seq` of the last answer.
            max_bytes: The most to return, 1 to 262,144.
            timeout_ms: Longest wait for output if there is none yet; hosts wait 30 seconds at most. Then the
                answer has no data.

        Raises:
            BadRequestError: There is no such place yet, or an argument is out of range.
            SandboxNotFoundError: There is no such sandbox.
            PtyNotFoundError: There is no such terminal.
        """
        body = {"since_seq": since_seq, "max_bytes": max_bytes, "timeout_ms": timeout_ms}
        path = _sandbox_path(sandbox_id, "pty", pty_id, "read")
        return cast("PtyChunk", _answer(self._request("POST", path, body=body, slow=True)))

    def _terminal_events(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> Generator[dict[str, Any], None, None]:
        timeouts = self._timeouts(self._timeout)
        with (
            transport_errors(self.host),
            self._http.stream(method, path, json=body, timeout=timeouts) as response,
        ):
            if not response.is_success:
                response.read()
                raise api_error(response)
            yield from terminal_events(response.iter_bytes())

    def _request(
        self, method: str, path: str, *, body: Mapping[str, object] | None = None, slow: bool = False
    ) -> httpx.Response:
        read = max(self._timeout, _SLOW_TIMEOUT_SECONDS) if slow else self._timeout
        with transport_errors(self.host):
            response = self._http.request(method, path, json=body, timeout=self._timeouts(read))
        if not response.is_success:
            raise api_error(response)
        return response

    def _timeouts(self, read_seconds: float) -> httpx.Timeout:
        return httpx.Timeout(self._timeout, connect=_CONNECT_TIMEOUT_SECONDS, read=read_seconds)

    def _headers(self) -> dict[str, str]:
        headers = {"user-agent": f"podflare-python/{__version__}"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        if self.traceparent:
            headers["traceparent"] = self.traceparent
        return headers


def resolve_host(host: str | None, region: str | None = None) -> str:
    """Return the base URL for the arguments and the environment, without a slash at the end.

    Raises:
        ValueError: The host is not an http:// or https:// URL.
    """
    environment = os.environ.get("PODFLARE_HOSTD_URL") or os.environ.get("PODFLARE_HOST")
    url = (host or environment or DEFAULT_HOST).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"The host must start with http:// or https://, unlike {url!r}")
    return f"{url}/r/{quote(region, safe='')}" if region else url


_shared: dict[tuple[str, str | None, str | None], Client] = {}
_shared_lock = threading.Lock()


def shared_client(host: str) -> Client:
    """Return the client that all sandboxes of a host share, unless they bring their own settings."""
    settings = (host, os.environ.get("PODFLARE_API_KEY"), os.environ.get("PODFLARE_TRACEPARENT"))
    with _shared_lock:
        if settings not in _shared:
            _shared[settings] = Client(host)
        return _shared[settings]


def close_default_client() -> None:
    """Close the connections that sandboxes made without a client or a key share; may be called twice."""
    with _shared_lock:
        for client in _shared.values():
            client.close()
        _shared.clear()


def _sandbox_path(*parts: str) -> str:
    return "/v1/sandboxes/" + "/".join(quote(part, safe="") for part in parts)


def _checkpoint_path(*parts: str) -> str:
    return "/v1/checkpoints/" + "/".join(quote(part, safe="") for part in parts)


def _answer(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ProtocolError(f"{response.request.url} did not answer with a JSON object")
    return answer


def _list(response: httpx.Response, key: str) -> list[object]:
    value = _answer(response).get(key)
    if not isinstance(value, list):
        raise ProtocolError(f"{response.request.url} did not answer with a list of {key}")
    return value


def _info(view: object) -> SandboxInfo:
    if not isinstance(view, dict):
        raise ProtocolError(f"The host told something else than a sandbox: {repr(view)[:_EXCERPT_LEN]}")
    _id(view.get("id"))
    return cast("SandboxInfo", view)


def _checkpoint(view: object) -> CheckpointInfo:
    if not isinstance(view, dict):
        raise ProtocolError(f"The host told something else than a checkpoint: {repr(view)[:_EXCERPT_LEN]}")
    _id(view.get("id"))
    _id(view.get("sandbox"))
    return cast("CheckpointInfo", view)


def _exec(view: object) -> ExecInfo:
    if not isinstance(view, dict):
        raise ProtocolError(f"The host told something else than an execution: {repr(view)[:_EXCERPT_LEN]}")
    _id(view.get("id"))
    return cast("ExecInfo", view)


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"The host told something else than an id: {repr(value)[:_EXCERPT_LEN]}")
    return value

"""The HTTP client: one method for each endpoint, no state of sandboxes."""

from __future__ import annotations

import base64
import os
import re
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import httpx

from podflare._errors import CapacityError, ProtocolError, api_error, file_error, transport_errors
from podflare._stream import events, execution_events, file_events, terminal_events
from podflare._types import (
    CheckpointInfo,
    Egress,
    Event,
    ExecInfo,
    FileEntry,
    FileEvent,
    ForkFailure,
    Language,
    NetworkInfo,
    PtyChunk,
    RemotePath,
    SandboxInfo,
    SpaceInfo,
    TemplateInfo,
    encoded,
    exec_body,
)
from podflare._version import __version__

DEFAULT_HOST = "http://127.0.0.1:7070"

_CONNECT_TIMEOUT_SECONDS = 5.0
# A host may have to build or boot something before it answers one of these.
_SLOW_TIMEOUT_SECONDS = 120.0
# A freeze writes for ten minutes at most, after others, and after what all of its template have in common.
_FREEZE_TIMEOUT_SECONDS = 900.0
_EXCERPT_LEN = 200
_GUEST_TIMING = re.compile(r"\bguest;dur=(\d+(?:\.\d+)?)")
_KEEPALIVE = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=60.0)


class Client:
    """A connection pool to one host; may be shared by many sandboxes and threads.

    Args:
        host: Base URL. Otherwise PODFLARE_HOSTD_URL, then PODFLARE_HOST, then http://127.0.0.1:7070.
        timeout: Longest silence of the host, in seconds. Running code is not silent: the host sends
            heartbeats. Creating, forking and merging may take up to 120 seconds in any case, and freezing
            900.
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
        vcpus: int | None = None,
        rootfs_gb: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
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
            vcpus=vcpus,
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
        vcpus: int | None = None,
        rootfs_gb: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
    ) -> SandboxInfo:
        """Create a sandbox and return what the host tells about it.

        A host that says when to come back, because it boots a template or is busy, is asked again for two
        minutes.

        Raises:
            ApiError: The host refused or failed.
        """
        wanted = {
            "template": template,
            "timeout_seconds": timeout_seconds,
            "idle_timeout_seconds": idle_timeout_seconds,
            "ram_mib": ram_mib,
            "vcpus": vcpus,
            "rootfs_gb": rootfs_gb,
            "persistent": persistent,
            "egress": egress,
        }
        return self._create("/v1/sandboxes", wanted)

    def _create(self, path: str, wanted: Mapping[str, object]) -> SandboxInfo:
        body = _asked_for(wanted)
        deadline = time.monotonic() + _SLOW_TIMEOUT_SECONDS
        while True:
            try:
                return _info(_answer(self._request("POST", path, body=body, slow=True)))
            except CapacityError as error:
                pause = _retry_after(error.response)
                if pause is None or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)

    def templates(self) -> list[TemplateInfo]:
        """List the templates that sandboxes can be made of, "default" first."""
        return [
            cast(TemplateInfo, view) for view in _list(self._request("GET", "/v1/templates"), "templates")
        ]

    def template_info(self, name: str) -> TemplateInfo:
        """Look at a template.

        Raises:
            ApiError: There is no such template; the message lists those that there are.
        """
        path = f"/v1/templates/{quote(name, safe='')}"
        return cast(TemplateInfo, _answer(self._request("GET", path)))

    def list_sandboxes(self) -> list[SandboxInfo]:
        """List the sandboxes of this API key."""
        return [_info(view) for view in _list(self._request("GET", "/v1/sandboxes"), "sandboxes")]

    def sandbox_info(self, sandbox_id: str) -> SandboxInfo:
        """Look at a sandbox.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        return _info(_answer(self._request("GET", _sandbox_path(sandbox_id))))

    def network(self, sandbox_id: str) -> NetworkInfo:
        """Ask what a sandbox may reach, and what has gone through its network card.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        return cast(NetworkInfo, _answer(self._request("GET", _sandbox_path(sandbox_id, "network"))))

    def set_egress(self, sandbox_id: str, egress: Egress) -> NetworkInfo:
        """Change what a sandbox may reach, from the answer on, also for connections that are open.

        Raises:
            BadRequestError: The list has an entry that is none; the message names it.
            SandboxNotFoundError: There is no such sandbox.
            ApiError: The host has no network for its sandboxes (409), or failed.
        """
        path = _sandbox_path(sandbox_id, "egress")
        return cast(NetworkInfo, _answer(self._request("PUT", path, body={"egress": egress})))

    def extend_sandbox(
        self,
        sandbox_id: str,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        persistent: bool | None = None,
    ) -> SandboxInfo:
        """Give a sandbox more time, or less; see `Sandbox.extend` for the arguments.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
        """
        wanted = {
            "timeout_seconds": timeout_seconds,
            "idle_timeout_seconds": idle_timeout_seconds,
            "persistent": persistent,
        }
        return _info(_answer(self._request("PATCH", _sandbox_path(sandbox_id), body=_asked_for(wanted))))

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

    def freeze_sandbox(self, sandbox_id: str) -> SpaceInfo:
        """Freeze a sandbox, whose id is gone then, and return what the host tells about the Space.

        Raises:
            SandboxNotFoundError: There is no such sandbox.
            CapacityError: This API key has as many Spaces as it may have, or the host is busy.
            ApiError: The sandbox is being frozen already (409), the host's disk is full (507), or it failed;
                the sandbox goes on.
            HostTimeoutError: The host has not answered for 15 minutes. It goes on freezing, and the Space
                is listed when it is there.
        """
        path = _sandbox_path(sandbox_id, "freeze")
        return _space(_answer(self._request("POST", path, slow=True, slowest=_FREEZE_TIMEOUT_SECONDS)))

    def list_spaces(self) -> list[SpaceInfo]:
        """List the Spaces of this API key that can be resumed, oldest first."""
        return [_space(view) for view in _list(self._request("GET", "/v1/spaces"), "spaces")]

    def space_info(self, space_id: str) -> SpaceInfo:
        """Look at a Space.

        Raises:
            SpaceNotFoundError: There is no such Space, or it has been resumed.
            ApiError: Another version of the host has written it, and this one cannot read it (409).
        """
        return _space(_answer(self._request("GET", _space_path(space_id))))

    def resume_space(
        self,
        space_id: str,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
        keep: bool = False,
    ) -> SandboxInfo:
        """Make a sandbox of a Space and return what the host tells about it; see `Space.resume`.

        A host that is busy and says when to come back is asked again for two minutes.

        Raises:
            SpaceNotFoundError: There is no such Space, or it has been resumed.
            CapacityError: The host is full.
            ApiError: It cannot be resumed on this host (409; the message says why), or the host failed; the
                Space is as it was.
        """
        wanted = {
            "timeout_seconds": timeout_seconds,
            "idle_timeout_seconds": idle_timeout_seconds,
            "persistent": persistent,
            "egress": egress,
            "keep": keep or None,
        }
        return self._create(_space_path(space_id, "resume"), wanted)

    def delete_space(self, space_id: str) -> None:
        """Delete a Space; hosts take an id that is already gone as success."""
        self._request("DELETE", _space_path(space_id), slow=True)

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

    def upload_file(
        self,
        sandbox_id: str,
        path: RemotePath,
        content: bytes | Iterable[bytes],
        *,
        mode: int | None = None,
    ) -> FileEntry:
        """Write a file, whole or not at all, making its folders.

        Args:
            sandbox_id: The sandbox.
            path: Where it goes; relative paths start in /root.
            content: Bytes, a file that was opened in binary mode, or anything that yields bytes.
            mode: Permissions; without them, a file that is replaced keeps its own.

        Raises:
            FileTransferError: It cannot be written there; what was there is as it was.
            SandboxNotFoundError: There is no such sandbox.
        """
        query = {} if mode is None else {"mode": f"{mode:04o}"}
        url = _file_url(sandbox_id, path=path, **query)
        return _entry(_answer(self._file_request("PUT", url, path, content=content)))

    @contextmanager
    def download_file(self, sandbox_id: str, path: RemotePath) -> Iterator[Iterator[bytes]]:
        """Read a file in parts, within a `with` block.

        Raises:
            FileTransferError: It cannot be read.
            SandboxNotFoundError: There is no such sandbox.
            ConnectionLostError: It was not read to its end.
        """
        with self._file_stream(_file_url(sandbox_id, path=path), path) as response:
            yield response.iter_bytes()

    def stat_file(self, sandbox_id: str, path: RemotePath) -> FileEntry:
        """Look at a file or folder, or at a symbolic link itself.

        Raises:
            FileTransferError: It cannot be looked at.
            SandboxNotFoundError: There is no such sandbox.
        """
        url = _file_url(sandbox_id, "stat", path=path)
        return _entry(_answer(self._file_request("GET", url, path)))

    def list_files(self, sandbox_id: str, path: RemotePath, depth: int = 1) -> list[FileEntry]:
        """List a folder and what is below it, by name; at most 100,000 entries, and links are not followed.

        Raises:
            FileTransferError: It cannot be listed.
            SandboxNotFoundError: There is no such sandbox.
        """
        url = _file_url(sandbox_id, "list", path=path, depth=str(depth))
        entries = _list(self._file_request("GET", url, path), "entries")
        return [_entry(entry) for entry in entries]

    def make_directory(self, sandbox_id: str, path: RemotePath, *, mode: int | None = None) -> FileEntry:
        """Make a folder and its parents; one that is there stays as it is.

        Raises:
            FileTransferError: It cannot be made.
            SandboxNotFoundError: There is no such sandbox.
        """
        query = {} if mode is None else {"mode": f"{mode:04o}"}
        url = _file_url(sandbox_id, "mkdir", path=path, **query)
        return _entry(_answer(self._file_request("POST", url, path)))

    def move_file(self, sandbox_id: str, path: RemotePath, to: RemotePath) -> FileEntry:
        """Rename a file or folder within its file system; a file of that name is replaced.

        Raises:
            FileTransferError: It cannot be moved.
            SandboxNotFoundError: There is no such sandbox.
        """
        url = _file_url(sandbox_id, "move", **{"from": path, "to": to})
        return _entry(_answer(self._file_request("POST", url, path)))

    def remove_file(self, sandbox_id: str, path: RemotePath, *, recursive: bool = False) -> None:
        """Remove a file, a symbolic link itself, or a folder, which must be empty unless recursive.

        Raises:
            FileTransferError: It cannot be removed.
            SandboxNotFoundError: There is no such sandbox.
        """
        url = _file_url(sandbox_id, path=path, recursive=str(recursive).lower())
        self._file_request("DELETE", url, path)

    @contextmanager
    def watch_files(
        self, sandbox_id: str, path: RemotePath, *, recursive: bool = False
    ) -> Iterator[Iterator[FileEvent]]:
        """Watch a file or folder within a `with` block; the events end when it is gone.

        Raises:
            FileTransferError: It cannot be watched.
            SandboxNotFoundError: There is no such sandbox.
        """
        url = _file_url(sandbox_id, "watch", path=path, recursive=str(recursive).lower())
        with self._file_stream(url, path) as response:
            yield file_events(response.iter_bytes())

    def _file_request(
        self, method: str, url: str, path: RemotePath, *, content: bytes | Iterable[bytes] | None = None
    ) -> httpx.Response:
        timeouts = self._timeouts(max(self._timeout, _SLOW_TIMEOUT_SECONDS))
        with transport_errors(self.host):
            response = self._http.request(method, url, content=content, timeout=timeouts)
        if not response.is_success:
            raise file_error(response, path)
        return response

    @contextmanager
    def _file_stream(self, url: str, path: RemotePath) -> Iterator[httpx.Response]:
        with (
            transport_errors(self.host),
            self._http.stream("GET", url, timeout=self._timeouts(self._timeout)) as response,
        ):
            if not response.is_success:
                response.read()
                raise file_error(response, path)
            yield response

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
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, object] | None = None,
        slow: bool = False,
        slowest: float = _SLOW_TIMEOUT_SECONDS,
    ) -> httpx.Response:
        read = max(self._timeout, slowest) if slow else self._timeout
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


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds after which a host wants to be asked again, if it says so in seconds."""
    told = response.headers.get("retry-after", "")
    return min(float(told), _SLOW_TIMEOUT_SECONDS) if told.isdecimal() else None


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


def _file_url(sandbox_id: str, *parts: str, **query: RemotePath) -> str:
    path = _sandbox_path(sandbox_id, "files", *parts)
    return path + "?" + "&".join(f"{name}={encoded(value)}" for name, value in query.items())


def _checkpoint_path(*parts: str) -> str:
    return "/v1/checkpoints/" + "/".join(quote(part, safe="") for part in parts)


def _space_path(*parts: str) -> str:
    return "/v1/spaces/" + "/".join(quote(part, safe="") for part in parts)


def _asked_for(wanted: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in wanted.items() if value is not None}


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


def _space(view: object) -> SpaceInfo:
    if not isinstance(view, dict):
        raise ProtocolError(f"The host told something else than a Space: {repr(view)[:_EXCERPT_LEN]}")
    _id(view.get("id"))
    _id(view.get("sandbox"))
    return cast("SpaceInfo", view)


def _entry(told: object) -> FileEntry:
    if isinstance(told, dict):
        with suppress(ValueError):
            return FileEntry.from_json(told)
    raise ProtocolError(f"The host told something else than a file: {repr(told)[:_EXCERPT_LEN]}")


def _exec(view: object) -> ExecInfo:
    if not isinstance(view, dict):
        raise ProtocolError(f"The host told something else than an execution: {repr(view)[:_EXCERPT_LEN]}")
    _id(view.get("id"))
    return cast("ExecInfo", view)


def _id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"The host told something else than an id: {repr(value)[:_EXCERPT_LEN]}")
    return value

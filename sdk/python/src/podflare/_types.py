"""What the host answers, as plain values."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import quote, unquote_to_bytes

Language = Literal["python", "bash"]
# Of a sandbox. Bytes that are not UTF-8 are in it as Python has them in paths of this machine.
RemotePath = str | os.PathLike[str]

FORK_CHILDREN_MAX = 32

# Of the events that are known; others may carry anything.
_DATA_TYPES: dict[str, type] = {"stdout": str, "stderr": str, "exit": int}


@dataclass(frozen=True)
class Event:
    """One event of an execution.

    Attributes:
        type: "stdout", "stderr" or "exit"; later hosts may send others.
        data: A line of output without its newline, or the exit code.
        seq: Counts the events of one execution, from 0.
        ts: Milliseconds since 1970-01-01 UTC, by the host's clock.
        exec_id: Of which execution this is the end; on exit events only.
        reason: Why the code did not end by itself: "timeout", "cancelled", "killed", "not_started" or
            "sandbox_ended"; on exit events only.
    """

    type: str
    data: str | int
    seq: int
    ts: int
    exec_id: str | None = None
    reason: str | None = None

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Event:
        """Build an event from its JSON object; keys that it does not know are ignored.

        Raises:
            KeyError: One of the four keys is missing.
            ValueError: The value of one is of another type.
        """
        kind, data, seq, ts = event["type"], event["data"], event["seq"], event["ts"]
        # Exact types: JSON's true and false are int to isinstance.
        if type(kind) is not str or type(data) is not _DATA_TYPES.get(kind, type(data)):
            raise ValueError(f"An event of type {kind!r} cannot have the data {data!r}")
        if type(seq) is not int or type(ts) is not int:
            raise ValueError(f"An event cannot be numbered {seq!r} and timed {ts!r}")
        return cls(kind, event["data"], seq, ts, _text(event.get("exec_id")), _text(event.get("reason")))


@dataclass(frozen=True)
class ExecResult:
    """What an execution printed and how it ended.

    Attributes:
        stdout: Lines of output, joined by newlines; without a newline at the end.
        stderr: Lines of error output, likewise.
        exit_code: 0 for success; 1 after an uncaught Python exception.
        reason: Why the code did not end by itself: "timeout" (exit code 124), "cancelled" (130), "killed",
            "not_started" or "sandbox_ended".
    """

    stdout: str
    stderr: str
    exit_code: int
    reason: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> ExecResult:
        """Drain an execution's events."""
        output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        exit_code, reason = -1, None
        for event in events:
            if event.type in output:
                output[event.type].append(str(event.data))
            elif event.type == "exit":
                exit_code, reason = int(event.data), event.reason
        return cls("\n".join(output["stdout"]), "\n".join(output["stderr"]), exit_code, reason)


class ExecInfo(TypedDict, total=False):
    """What the host tells about an execution that runs or waits."""

    id: str
    language: Language
    state: Literal["queued", "running"]
    code: str
    """The code's beginning, at most 256 bytes."""
    requested_at_ms: int
    """Milliseconds since 1970-01-01 UTC; so is started_at_ms."""
    started_at_ms: int | None
    timeout_ms: int | None
    inherited: bool
    """It has run since before this sandbox was copied: its source's execution, which goes on here too."""


class EgressList(TypedDict):
    """What a sandbox may reach, entry by entry."""

    allow: list[str]
    """"example.org" (that name alone), "*.example.org" (every name under it), "192.0.2.7", "10.1.0.0/16";
    each with ":PORT" behind it for TCP and UDP to that port only. At most 256."""


Egress = bool | EgressList
"""What a sandbox may reach: everything public (True), nothing (False), or what is on a list. In no case: the
host's own services, other sandboxes, and the metadata address of clouds; private networks only if they are on
a list."""


class NetworkInfo(TypedDict):
    """What a sandbox may reach, and what has gone through its network card."""

    egress: Egress
    address: str | None
    """Its address inside the sandboxes' network; None on a host without one."""
    sent_bytes: int
    """Since its machine was made, headers included; so is received_bytes."""
    received_bytes: int
    connections: int
    """Connections and flows that were let out."""


@dataclass(frozen=True)
class FileEntry:
    """What is known of a file, a folder or another entry of a sandbox.

    Attributes:
        path: Absolute; of a file that was written through a symbolic link, the file itself.
        name: The last part of the path.
        type: "file", "directory", "symlink", or "special" for pipes, sockets and devices.
        size_bytes: Its size.
        mode: Permissions with the set-id and sticky bits.
        uid: Its owner's number.
        gid: Its group's number.
        modified_at_ms: Milliseconds since 1970-01-01 UTC, by the sandbox's clock.
        target: What a symbolic link points to, as it is written there.
    """

    path: str
    name: str
    type: str
    size_bytes: int
    mode: int
    uid: int
    gid: int
    modified_at_ms: int
    target: str | None = None

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> FileEntry:
        """Build an entry from its JSON object; keys that it does not know are ignored.

        Raises:
            ValueError: It is none.
        """
        try:
            path = _path(entry)
            return cls(
                path=path,
                name=path.rstrip("/").rpartition("/")[2],
                type=str(entry["type"]),
                size_bytes=int(entry["size_bytes"]),
                mode=int(entry["mode"], 8),
                uid=int(entry["uid"]),
                gid=int(entry["gid"]),
                modified_at_ms=int(entry["modified_at_ms"]),
                target=entry.get("target"),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"Not a file: {entry!r}") from error


@dataclass(frozen=True)
class FileEvent:
    """Something that happened to a file of a sandbox.

    Attributes:
        type: "create", "modify", "close_write", "attributes", "delete", "moved_from" or "moved_to", as
            inotify tells them; "overflow" when events were lost, so that only a listing tells what there is.
        path: What it happened to; of an overflow, what is watched.
        is_directory: Whether that is a folder.
        cookie: The same in both events of one move; else 0.
    """

    type: str
    path: str
    is_directory: bool
    cookie: int

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> FileEvent:
        """Build an event from its JSON object; keys that it does not know are ignored.

        Raises:
            KeyError: A key is missing.
        """
        return cls(str(event["type"]), _path(event), bool(event["is_directory"]), int(event["cookie"]))


def encoded(path: RemotePath) -> str:
    """Write a path, or another value, as a query takes it."""
    return quote(os.fsencode(path), safe="/")


def _path(told: Mapping[str, Any]) -> str:
    if "encoded_path" in told:
        return os.fsdecode(unquote_to_bytes(str(told["encoded_path"])))
    return str(told["path"])


class PtyChunk(TypedDict):
    """Output of a terminal from a place on."""

    data_b64: str
    next_seq: int
    """Where the next read begins."""
    exit_code: int | None
    """Told with the program's last output."""
    truncated: bool
    """Output between `since_seq` and this is no longer kept: the last 1 MiB is."""


class SandboxInfo(TypedDict, total=False):
    """What the host tells about a sandbox: one part when it is made, another whenever it is asked."""

    id: str
    state: str
    template: str
    ram_mib: int
    rootfs_gb: int
    vcpus: int
    timeout_seconds: int
    """Longest life, from its creation."""
    idle_timeout_seconds: int
    persistent: bool
    """Whether it is frozen into a Space when its time is over."""
    egress: Egress
    """False also on a host that has no network for its sandboxes."""
    created_at_ms: int
    """Milliseconds since 1970-01-01 UTC. From here on, told when the host is asked."""
    parent: str | None
    """The sandbox that this one was forked from, even if that is gone."""
    checkpoint: str | None
    """The checkpoint that its machine was copied from, even if that is gone. From here on, after a merge or a
    restore, of the machine that took over."""
    generation: int
    """Forks between the template and its machine."""
    forked_at_ms: int
    """When its machine was copied; for one that waited in the pool, before the sandbox was created."""
    renewed: bool
    """The guest's clock, entropy and name are its own."""
    executions: int


class TemplateSize(TypedDict):
    """A size in which the host has a template booted, or boots it."""

    ram_mib: int
    vcpus: int
    state: str
    """"ready" or "booting"."""


class TemplateInfo(TypedDict, total=False):
    """What the host tells about a template."""

    name: str
    description: str
    ram_mib: int
    """What its sandboxes have if nothing else is asked for; so are vcpus and rootfs_gb."""
    vcpus: int
    rootfs_gb: int
    built_at_ms: int | None
    """Milliseconds since 1970-01-01 UTC; None for "default", which comes with the host's image."""
    state: str
    """In its own size: "ready"; "booting", and creates wait for it; "cold", and the next create boots it."""
    sizes: list[TemplateSize]
    """All sizes that are booted or boot."""


class CheckpointInfo(TypedDict, total=False):
    """What the host tells about a checkpoint."""

    id: str
    name: str | None
    sandbox: str
    """The sandbox that can be restored to it."""
    template: str
    generation: int
    """Forks between the template and the sandbox, as it was then."""
    created_at_ms: int
    """Milliseconds since 1970-01-01 UTC; so is expires_at_ms."""
    expires_at_ms: int


class SpaceInfo(TypedDict, total=False):
    """What the host tells about a Space."""

    id: str
    sandbox: str
    """The sandbox that was frozen, whose id names nothing any more."""
    template: str
    ram_mib: int
    rootfs_gb: int
    vcpus: int
    generation: int
    """Forks between the template and the sandbox."""
    frozen_at_ms: int
    """Milliseconds since 1970-01-01 UTC."""
    bytes: int
    """What it takes on the host's disk, beside what it shares with others of its template."""
    egress: Egress
    """What a resumed sandbox may reach if nothing else is asked for; likewise the two that follow."""
    timeout_seconds: int
    idle_timeout_seconds: int


@dataclass(frozen=True)
class ForkFailure:
    """A child of a fork that could not be made.

    Attributes:
        child: Which of the fork's children, from 0.
        error: The host's sentence.
    """

    child: int
    error: str

    @classmethod
    def list_from_json(cls, failures: object) -> list[ForkFailure]:
        """Build failures from what a host lists; what is none is left out."""
        if not isinstance(failures, list):
            return []
        whole = [failure for failure in failures if isinstance(failure, dict)]
        return [
            cls(failure["child"], failure["error"])
            for failure in whole
            if type(failure.get("child")) is int and type(failure.get("error")) is str
        ]


def exec_body(
    code: str,
    language: Language,
    env: Mapping[str, str] | None,
    cwd: str | None,
    stdin: str | bytes | None,
    timeout_ms: int | None,
    cancel_on_disconnect: bool,
) -> dict[str, object]:
    """Build the body of a request to run code, without what is not asked for."""
    body: dict[str, object] = {"code": code, "language": language}
    if env:
        body["env"] = dict(env)
    if cwd is not None:
        body["cwd"] = cwd
    if isinstance(stdin, str):
        body["stdin"] = stdin
    elif stdin is not None:
        body["stdin_b64"] = base64.b64encode(stdin).decode()
    if timeout_ms is not None:
        body["timeout_ms"] = timeout_ms
    if cancel_on_disconnect:
        body["cancel_on_disconnect"] = True
    return body


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def check_children(n: int) -> None:
    """Refuse a number of children that no host makes.

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= FORK_CHILDREN_MAX:
        raise ValueError(f"fork makes 1 to {FORK_CHILDREN_MAX} children, not {n}")

"""What the host answers, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Language = Literal["python", "bash"]

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
    """

    type: str
    data: str | int
    seq: int
    ts: int

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
        return cls(kind, event["data"], seq, ts)


@dataclass(frozen=True)
class ExecResult:
    """What an execution printed and how it ended.

    Attributes:
        stdout: Lines of output, joined by newlines; without a newline at the end.
        stderr: Lines of error output, likewise.
        exit_code: 0 for success; 1 after an uncaught Python exception.
    """

    stdout: str
    stderr: str
    exit_code: int

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> ExecResult:
        """Drain an execution's events."""
        output: dict[str, list[str]] = {"stdout": [], "stderr": []}
        exit_code = -1
        for event in events:
            if event.type in output:
                output[event.type].append(str(event.data))
            elif event.type == "exit":
                exit_code = int(event.data)
        return cls("\n".join(output["stdout"]), "\n".join(output["stderr"]), exit_code)


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
    """Told when it is made, and only then."""
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


def check_children(n: int) -> None:
    """Refuse a number of children that no host makes.

    Raises:
        ValueError: n is out of range.
    """
    if not 1 <= n <= FORK_CHILDREN_MAX:
        raise ValueError(f"fork makes 1 to {FORK_CHILDREN_MAX} children, not {n}")

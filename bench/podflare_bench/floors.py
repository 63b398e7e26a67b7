"""What an operation takes at least on this machine: sums of what was measured beside it in the same run.

A floor is not a target. It shows how much of a figure is the machine's, and how much is ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from podflare_bench import operations
from podflare_bench.circumstances import Machine
from podflare_bench.host import Figures
from podflare_bench.results import Results

FORK = "floor: fork(2)"
VM_CREATED = "floor: KVM VM and vCPUs made"
VM_DESTROYED = "floor: KVM VM and vCPUs gone"
DISK_SYNC = "floor: 4 KiB written and synced by the host"
DISK_WRITE = "floor: 64 MiB written and synced by the host"

_US_PER_MS = 1000


@dataclass(frozen=True)
class KernelFloors:
    """What the program bench-floors has measured where sandboxes run.

    Attributes:
        machine: Where it ran.
        touched_mib: Memory of the process whose fork(2) was measured: what a template holds.
        vcpus: Of each VM.
        samples_ms: As in `Results`.
    """

    machine: Machine
    touched_mib: int
    vcpus: int
    samples_ms: dict[str, Figures]

    @staticmethod
    def read(path: Path) -> KernelFloors:
        """Read its report.

        Raises:
            OSError: The file cannot be read.
            ValueError: It holds something else.
        """
        report = json.loads(path.read_text(encoding="utf-8"))
        try:
            columns = {
                FORK: "fork_us",
                VM_CREATED: "vm_created_us",
                VM_DESTROYED: "vm_destroyed_us",
                DISK_SYNC: "disk_sync_us",
                DISK_WRITE: "disk_write_us",
            }
            return KernelFloors(
                machine=Machine(**report["machine"]),
                touched_mib=round(report["touched_kib"] / 1024),
                vcpus=report["vcpus"],
                samples_ms={
                    floor: {"kernel": [us / _US_PER_MS for us in report[column]]}
                    for floor, column in columns.items()
                },
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not what bench-floors prints: {error!r}") from error


@dataclass(frozen=True)
class Part:
    """One summand: the median of a figure of a floor.

    Attributes:
        times: How often it is needed; as many at a time as there are processors.
    """

    name: str
    floor: str
    figure: str
    times: int = 1

    def many(self, times: int) -> Part:
        """Return what so many of it ask for."""
        return Part(self.name, self.floor, self.figure, times)

    def __str__(self) -> str:
        return self.name if self.times == 1 else f"{self.times} × {self.name}"


HTTP = Part("HTTP", operations.HTTP_ANSWER, "caller")
PING = Part("ping", operations.PING, "guest")
PYTHON = Part("Python", operations.PYTHON, "guest")
KERNEL_FORK = Part("fork(2)", FORK, "kernel")
VM = Part("VM", VM_CREATED, "kernel")
HOST_SYNC = Part("host's own", DISK_SYNC, "kernel")
HOST_WRITE = Part("host's own", DISK_WRITE, "kernel")


@dataclass(frozen=True)
class Floor:
    """The least that an operation takes, and what that is made of."""

    ms: float
    parts: str


def floor_of(parts: Sequence[Part], results: Results) -> Floor | None:
    """Add up the parts; there is no floor if one of them was not measured."""
    machine = results.circumstances.sandboxes or results.circumstances.caller
    ms = 0.0
    for part in parts:
        p50 = results.p50(part.floor, part.figure)
        if p50 is None:
            return None
        ms += p50 * max(1.0, part.times / machine.processors)
    return Floor(ms, " + ".join(map(str, parts))) if parts else None


def fork_parts(children: int) -> tuple[Part, ...]:
    """Return what a fork asks for until all children have answered: each is renewed, and runs code."""
    return (HTTP, KERNEL_FORK, VM.many(children), PING.many(2 * children), PYTHON.many(children))

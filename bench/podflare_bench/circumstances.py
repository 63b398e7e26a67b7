"""What the figures depend on: the machine, the host's kind, the programs. Read, never typed in."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HostKind = Literal["native", "emulated", "unknown"]

_STATUS_HOST = re.compile(r"^Host at (\S+): ", re.MULTILINE)
_STATUS_KIND = re.compile(r"^Runs (natively|in an emulated host): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """A machine, real or emulated."""

    processor: str
    processors: int
    memory_mib: int
    kernel: str

    def __str__(self) -> str:
        processors = "1 processor" if self.processors == 1 else f"{self.processors} processors"
        return f"{processors} ({self.processor}), {self.memory_mib} MiB, Linux {self.kernel}"


@dataclass(frozen=True)
class Circumstances:
    """All of it.

    Attributes:
        reason: Why the host is of this kind, in a sentence of its own.
        caller: The machine that measures.
        sandboxes: The machine that sandboxes run on: in an emulated host, the emulated one. None if it was
            not asked, which is done where the floors are measured.
        qemu: The version of the emulator, if there is one.
        vcpus: Of each sandbox.
        revision: Of this repository.
    """

    kind: HostKind
    reason: str
    url: str
    caller: Machine
    sandboxes: Machine | None
    qemu: str | None
    pool_size: int
    vcpus: int | None
    revision: str
    python: str
    measured_at: str

    def line(self) -> str:
        """Say it in a sentence that stands above a table."""
        machine = f"this machine: {self.caller}" if self.kind != "native" else f"{self.caller}"
        emulated = f"{self.sandboxes or 'a machine that was not asked'}, {self.qemu}; " if self.qemu else ""
        return (
            f"{_KIND_NAMES[self.kind]}: {emulated}{machine}. Sandboxes of {self.vcpus or '?'} vCPU, "
            f"{self.pool_size} kept ready. Revision {self.revision}, {self.measured_at}. Milliseconds."
        )


_KIND_NAMES: Mapping[HostKind, str] = {
    "native": "Native host",
    "emulated": "Emulated host",
    "unknown": "Host of unknown kind",
}


def host_kind(status: str, url: str) -> tuple[HostKind, str]:
    """Read what `podflare status` prints, if it is about the host at this URL."""
    at, kind = _STATUS_HOST.search(status), _STATUS_KIND.search(status)
    if not at or not kind or at[1] != url:
        return "unknown", "`podflare status` does not tell of this host."
    return ("native" if kind[1] == "natively" else "emulated"), kind[2]


def status_of(podflare: Path) -> str:
    """Return what `podflare status` prints; nothing if the program does not run."""
    return _printed([str(podflare), "status"])


def this_machine() -> Machine:
    """Describe the machine that this program runs on."""
    cpuinfo = re.search(r"model name\s*: (.*)", _text(Path("/proc/cpuinfo")))
    memory_kib = re.search(r"MemTotal:\s*(\d+)", _text(Path("/proc/meminfo")))
    return Machine(
        processor=cpuinfo[1] if cpuinfo else platform.processor(),
        processors=os.cpu_count() or 1,
        memory_mib=int(memory_kib[1]) // 1024 if memory_kib else 0,
        kernel=platform.release(),
    )


def qemu_version() -> str | None:
    """Return the emulator's name and version, if it is installed."""
    version = re.search(r"version (\S+)", _printed(["qemu-system-x86_64", "--version"]))
    return f"QEMU {version[1]}" if version else None


def revision(repository: Path) -> str:
    """Return the commit that is checked out, and whether files differ from it."""
    commit = _printed(["git", "-C", str(repository), "rev-parse", "--short=12", "HEAD"]).strip()
    changed = _printed(
        ["git", "-C", str(repository), "status", "--porcelain", "--untracked-files=no"]
    ).strip()
    return (commit or "unknown") + (" with changes" if changed else "")


def now() -> str:
    """Return the time, UTC, as ISO 8601 has it."""
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _printed(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""

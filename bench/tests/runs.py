"""Results as a run would have them."""

from __future__ import annotations

from podflare_bench.circumstances import Circumstances, HostKind, Machine
from podflare_bench.host import Figures
from podflare_bench.results import Results

MACHINE = Machine("Some processor", processors=1, memory_mib=4096, kernel="6.12")


def run(samples_ms: dict[str, Figures], kind: HostKind = "emulated", processors: int = 1) -> Results:
    """Make the results of a run on a machine of so many processors."""
    machine = Machine("Some processor", processors, memory_mib=4096, kernel="6.12")
    circumstances = Circumstances(
        kind=kind,
        reason="A test.",
        url="http://127.0.0.1:7070",
        caller=MACHINE,
        sandboxes=machine,
        qemu="QEMU 7.2.1" if kind == "emulated" else None,
        pool_size=4,
        vcpus=1,
        revision="0123456789ab",
        python="3.11.2",
        measured_at="2026-01-01T00:00Z",
    )
    return Results(circumstances, samples_ms)

"""Measures a running host and prints a Markdown table: `python -m podflare_bench --help`.

Writes the table and every raw sample to bench/results: latest.md and latest.json, or partial.md and
partial.json if not all operations were measured.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

from podflare import PodflareError

from podflare_bench import circumstances
from podflare_bench.circumstances import Circumstances
from podflare_bench.floors import KernelFloors
from podflare_bench.host import Figures, Host
from podflare_bench.operations import OPERATIONS
from podflare_bench.results import Results
from podflare_bench.run import chosen, measure_all
from podflare_bench.table import report

BENCH = Path(__file__).resolve().parent.parent
REPOSITORY = BENCH.parent
PROGRAMS = REPOSITORY / "target/x86_64-unknown-linux-gnu/release"
QUICK_N = 10


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="podflare_bench", description="Measures a running host.")
    parser.add_argument("--host", metavar="URL", help="base URL; otherwise as the SDK finds it")
    parser.add_argument("--n", type=int, default=100, help="samples of what is cheap (default: 100)")
    parser.add_argument("--quick", action="store_true", help=f"the same as --n {QUICK_N}")
    parser.add_argument("--only", metavar="REGEX", default="", help="only operations whose name this finds")
    parser.add_argument("--floors", type=Path, metavar="FILE", help="what bench-floors has printed")
    return parser.parse_args()


def circumstances_of(host: Host, floors: KernelFloors | None) -> Circumstances:
    """Collect them."""
    status = circumstances.status_of(PROGRAMS / "podflare")
    kind, reason = circumstances.host_kind(status, host.client.host)
    with host.sandbox() as sandbox:
        vcpus = sandbox.info().get("vcpus")
    return Circumstances(
        kind=kind,
        reason=reason,
        url=host.client.host,
        caller=circumstances.this_machine(),
        sandboxes=floors.machine if floors else None,
        qemu=circumstances.qemu_version() if kind == "emulated" else None,
        pool_size=host.pool().size,
        vcpus=vcpus,
        revision=circumstances.revision(REPOSITORY),
        python=sys.version.split()[0],
        measured_at=circumstances.now(),
    )


def main() -> int:
    """Measure, print, and keep the samples; the exit status is 1 if an operation was cut short."""
    wanted = arguments()
    operations = chosen(wanted.only)
    floors = KernelFloors.read(wanted.floors) if wanted.floors else None
    (BENCH / "results").mkdir(exist_ok=True)
    name = "latest" if len(operations) == len(OPERATIONS) else "partial"
    with closing(Host(wanted.host)) as host:
        results = Results(circumstances_of(host, floors), dict(floors.samples_ms) if floors else {})

        def keep(operation: str, figures: Figures, failure: str | None) -> None:
            results.samples_ms[operation] = dict(figures)
            if failure:
                results.failures[operation] = failure
            results.never_idle = host.never_idle
            results.write(BENCH / f"results/{name}.json")

        try:
            measure_all(host, operations, QUICK_N if wanted.quick else wanted.n, keep)
        finally:
            # What was measured is shown even if the run is interrupted.
            text = report(results)
            (BENCH / f"results/{name}.md").write_text(text, encoding="utf-8")
            sys.stdout.write(text)
    return 1 if results.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PodflareError, OSError, ValueError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\nbench: interrupted; what was measured is in bench/results\n")
        # As the shell tells it of a program that the signal ended.
        sys.exit(130)

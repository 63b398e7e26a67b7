"""Measures two builds in turn, and prints how they compare: `python -m podflare_bench.compare --help`.

The builds take turns (A B, B A, …), each with a host of its own, since a machine is never twice the same.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from podflare import PodflareError

from podflare_bench import circumstances
from podflare_bench.__main__ import PROGRAMS, REPOSITORY
from podflare_bench.builds import Build, build_at, commit_of, copy_programs, running_host, say
from podflare_bench.host import Figures, Host
from podflare_bench.operations import Operation
from podflare_bench.run import chosen, measure_all
from podflare_bench.summary import Ratio, ratio_of_medians, summarise
from podflare_bench.table import MISSING, ROWS, Row, milliseconds

Rounds = list[list[float]]

# With fewer, a machine that drifts makes differences that no resampling of the same rounds shows to be none.
ROUNDS_MIN = 4


@dataclass
class Samples:
    """What one build was measured at: milliseconds by operation and figure, one list for each round."""

    rounds: dict[tuple[str, str], Rounds] = field(default_factory=lambda: defaultdict(list))

    def keep(self, operation: str, figures: Figures) -> None:
        """Add a round of one operation."""
        for figure, samples in figures.items():
            self.rounds[operation, figure].append(samples)

    def p50(self, row: Row) -> float | None:
        """Return the median over all rounds."""
        rounds = self.rounds.get((row.operation, row.figure), [])
        summary = summarise([ms for samples in rounds for ms in samples])
        return summary.p50 if summary else None


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="podflare_bench.compare", description="Compares two builds.")
    parser.add_argument("revision", help="the commit to compare what is built here with")
    parser.add_argument("--n", type=int, default=20, help="samples of what is cheap, per round (default: 20)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each build (default: 4)")
    parser.add_argument("--only", metavar="REGEX", default="", help="only operations whose name this finds")
    parser.add_argument("--home", type=Path, required=True, help="where images are kept (PODFLARE_HOME)")
    parser.add_argument("--port", type=int, default=7272, help="of the hosts, on loopback (default: 7272)")
    return parser.parse_args()


def order(builds: Sequence[Build], round_number: int) -> Sequence[Build]:
    """Return who goes first: whoever went last before, so that a drift of the machine is nobody's."""
    return builds if round_number % 2 == 0 else builds[::-1]


def table(old: Samples, new: Samples, names: tuple[str, str]) -> str:
    """Return a row for each figure that one of the builds was measured at, in Markdown."""
    head = ("operation", f"{names[0]}, p50", f"{names[1]}, p50", "ratio of the second to the first", "95 %")
    rows = [_cells(row, old, new) for row in ROWS]
    lines = [head, tuple("---" for _ in head), *(row for row in rows if row[1:3] != (MISSING, MISSING))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def measure_round(
    build: Build, wanted: argparse.Namespace, operations: Sequence[Operation], into: Samples
) -> None:
    """Start a host of the build, measure, and stop it."""
    home: Path = wanted.home / "compare/home"

    def keep(operation: str, figures: Figures, failure: str | None) -> None:
        into.keep(operation, figures)
        if failure:
            say(f"{build.name}: {operation} was cut short: {failure}")

    with (
        running_host(build, home, wanted.home / "images", wanted.port) as url,
        closing(Host(url)) as host,
    ):
        measure_all(host, operations, wanted.n, keep)


def main() -> None:
    """Build, measure in turn, and print the table after each round."""
    wanted = arguments()
    wanted.home = wanted.home.resolve()
    operations = chosen(wanted.only)
    commit = commit_of(REPOSITORY, wanted.revision)
    compare: Path = wanted.home / "compare"
    old = build_at(REPOSITORY, commit, compare / commit[:12])
    new = Build("here", compare / "here/programs")
    copy_programs(PROGRAMS, new.programs)
    samples: Mapping[str, Samples] = {old.name: Samples(), new.name: Samples()}
    for number in range(wanted.rounds):
        for build in order((old, new), number):
            say(f"round {number + 1} of {wanted.rounds}: {build.name}")
            measure_round(build, wanted, operations, samples[build.name])
    here = circumstances.revision(REPOSITORY)
    print(f"{old.name} is {wanted.revision}, here is {here}; {wanted.rounds} rounds of n = {wanted.n}.")
    print(f"{circumstances.this_machine()}. Medians in milliseconds.\n")
    if wanted.rounds < ROUNDS_MIN:
        print(f"Fewer than {ROUNDS_MIN} rounds cannot tell a difference from a drift of the machine.\n")
    print(table(samples[old.name], samples[new.name], (old.name, new.name)), end="")


def _cells(row: Row, old: Samples, new: Samples) -> tuple[str, ...]:
    key = (row.operation, row.figure)
    ratio = ratio_of_medians(new.rounds.get(key, []), old.rounds.get(key, []))
    return (row.name, milliseconds(old.p50(row)), milliseconds(new.p50(row)), *_ratio_cells(ratio))


def _ratio_cells(ratio: Ratio | None) -> tuple[str, str]:
    if not ratio:
        return MISSING, MISSING
    spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
    return f"{ratio.value:.2f}", f"{spread}{', noise' if ratio.is_noise else ''}"


def _interrupt(signal_number: int, _: object) -> None:
    raise KeyboardInterrupt(signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except (PodflareError, OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit("\nbench: interrupted; the host is stopped and nothing is left of it")

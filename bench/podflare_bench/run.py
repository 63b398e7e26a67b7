"""Measures operations one after the other. One that fails ends with its reason, the others go on."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import httpx
from podflare import PodflareError

from podflare_bench.host import Figures, Host
from podflare_bench.operations import OPERATIONS, Operation
from podflare_bench.progress import Progress

WARM_UP = 3

_FAILURES = (PodflareError, httpx.HTTPError, OSError)
# What is said of a failure, in characters.
_REASON_LEN = 300


def chosen(only: str) -> list[Operation]:
    """Return the operations whose name the regular expression finds; all, if it is empty.

    Raises:
        ValueError: It is no regular expression, or finds nothing.
    """
    try:
        found = [operation for operation in OPERATIONS if re.search(only, operation.name)]
    except re.error as error:
        raise ValueError(f"{only!r} is no regular expression: {error}") from error
    if not found:
        names = "\n  ".join(operation.name for operation in OPERATIONS)
        raise ValueError(f"{only!r} finds no operation. There are:\n  {names}")
    return found


def measure_all(
    host: Host, wanted: Sequence[Operation], n: int, keep: Callable[[str, Figures, str | None], None]
) -> None:
    """Measure each operation, and give its name, figures and the reason of its failure to `keep`."""
    for number, operation in enumerate(wanted, start=1):
        step = f"[{number}/{len(wanted)}] {operation.name}"
        keep(operation.name, *measure(host, operation, operation.count(n), step))


def measure(host: Host, operation: Operation, n: int, step: str) -> tuple[Figures, str | None]:
    """Take n samples after a warm-up; return their figures and, if there are fewer, why."""
    figures: Figures = defaultdict(list)
    try:
        with Progress(step, n) as progress, host.sandbox() as sandbox:
            for _ in range(WARM_UP):
                operation.sample(host, sandbox)
            host.settle()
            for _ in range(n):
                for figure, samples in operation.sample(host, sandbox).items():
                    figures[figure].extend(samples)
                progress.sample()
    except _FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return figures, reason[:_REASON_LEN]
    return figures, None

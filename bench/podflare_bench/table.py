"""The Markdown that goes into docs/promises.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from podflare_bench import floors, operations, promises
from podflare_bench.floors import (
    HOST_SYNC,
    HOST_WRITE,
    HTTP,
    KERNEL_FORK,
    PING,
    PYTHON,
    VM,
    Part,
    floor_of,
    fork_parts,
)
from podflare_bench.promises import Verdict
from podflare_bench.results import Results

MISSING = "–"
_HEAD = (
    "operation",
    "n",
    "p50",
    "p95",
    "p99",
    "max",
    "host p50",
    "floor",
    "promise",
    "kept, share of the bound",
)
# A part of an answer whose time is the host's own says something only beside others.
_PHASES_MIN = 2


@dataclass(frozen=True)
class Row:
    """One figure of an operation.

    Attributes:
        label: Said after the operation's name.
        floor: What it takes at least.
    """

    operation: str
    figure: str = "caller"
    label: str = ""
    floor: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """What stands in the first column."""
        return f"{self.operation}{self.label}"

    @property
    def shows_host(self) -> bool:
        """Whether the host's figure is about the same thing as the caller's, and stands beside it."""
        return self.figure in ("caller", "each") and self.operation not in _FORKS


_FORKS = (operations.FORK_1, operations.FORK_5, operations.FORK_32)


def _fork_rows(operation: str, children: int) -> tuple[Row, ...]:
    answer = (HTTP, KERNEL_FORK, VM.many(children), PING.many(children))
    return (
        Row(operation, "pause", ": source pause", (KERNEL_FORK,)),
        Row(operation, "host", ": answered by the host", answer[1:]),
        Row(operation, "caller", " → all children have answered", fork_parts(children)),
    )


ROWS = (
    Row(operations.HTTP_ANSWER),
    Row(operations.PING, "guest"),
    Row(operations.PYTHON, "guest"),
    Row(floors.FORK, "kernel"),
    Row(floors.VM_CREATED, "kernel"),
    Row(floors.VM_DESTROYED, "kernel"),
    Row(floors.DISK_SYNC, "kernel"),
    Row(floors.DISK_WRITE, "kernel"),
    Row(operations.CREATE, floor=(HTTP,)),
    Row(operations.CREATE_AND_RUN, floor=(HTTP.many(2), PING, PYTHON)),
    Row(operations.RUN_PYTHON, floor=(HTTP, PING, PYTHON)),
    Row(operations.RUN_BASH, floor=(HTTP, PING)),
    Row(operations.RUN_AFTER_FORK, floor=(HTTP, PING, PYTHON)),
    *_fork_rows(operations.FORK_1, 1),
    *_fork_rows(operations.FORK_5, 5),
    *_fork_rows(operations.FORK_32, 32),
    Row(operations.BURST_CREATE, "each", ": each", (HTTP,)),
    Row(operations.BURST_CREATE, "all", ": until all are answered"),
    Row(operations.SEQUENCE_CREATE, "each", ": each", (HTTP,)),
    Row(operations.SEQUENCE_CREATE, "all", ": until all are answered"),
    Row(operations.REFILL, label=", per VM", floor=(KERNEL_FORK, VM, PING)),
    Row(operations.MERGE, floor=(HTTP,)),
    Row(operations.DESTROY, floor=(HTTP,)),
    Row(operations.UPLOAD, floor=(HTTP, PING)),
    Row(operations.DOWNLOAD, floor=(HTTP, PING)),
    Row(operations.UPLOAD_LONG, floor=(HTTP, PING)),
    Row(operations.DOWNLOAD_LONG, floor=(HTTP, PING)),
    Row(operations.DISK_SYNC, "guest", floor=(HOST_SYNC,)),
    Row(operations.DISK_WRITE, "guest", floor=(HOST_WRITE,)),
    Row(operations.CHECKPOINT, floor=(HTTP, KERNEL_FORK)),
    Row(operations.RESTORE, floor=(HTTP, KERNEL_FORK, VM, PING)),
    Row(operations.FREEZE, floor=(HTTP, KERNEL_FORK)),
    Row(operations.RESUME, floor=(HTTP, KERNEL_FORK, VM, PING)),
    Row(operations.RESUME, "print", ": its first print(1)", (HTTP, PING, PYTHON)),
    Row(operations.RESUME, "fork pause", ": its first fork's pause", (KERNEL_FORK,)),
)


def report(results: Results) -> str:
    """Return the circumstances, the table, and what is to be said about it."""
    rows = [cells(row, results) for row in ROWS if _was_tried(row, results)]
    lines = [_line(_HEAD), "|" + "---|" * len(_HEAD), *map(_line, rows)]
    return "\n".join([results.circumstances.line(), "", *lines, "", *notes(results)]).rstrip() + "\n"


def cells(row: Row, results: Results) -> tuple[str, ...]:
    """Return what stands in one row."""
    summary = results.summary(row.operation, row.figure)
    verdicts = promises.judge_row(row.operation, _judged_figures(row), results)
    floor = floor_of(row.floor, results)
    if summary is None:
        return (row.name, "0", *[MISSING] * 5, _floor_cell(floor), *_promise_cells(verdicts))
    return (
        row.name,
        str(summary.n),
        *(milliseconds(ms) for ms in (summary.p50, summary.p95, summary.p99, summary.max)),
        milliseconds(results.p50(row.operation, "host")) if row.shows_host else "",
        _floor_cell(floor),
        *_promise_cells(verdicts),
    )


def milliseconds(ms: float | None) -> str:
    """Format a time: three digits, or all that stand before the point."""
    if ms is None:
        return MISSING
    return f"{ms:,.{0 if ms >= 100 else 1 if ms >= 10 else 2}f}"


def notes(results: Results) -> Iterator[str]:
    """Say what does not fit into a row."""
    if ratio := promises.fork_ratio(results):
        kept = _ratio_kept(ratio, results)
        yield f"- fork(5) → all children have answered takes {ratio:.2f} × what fork(1) takes ({kept})."
    for operation in operations.OPERATIONS:
        if phases := _phases(operation.name, results):
            yield f"- {operation.name}, phases at the host, p50: {phases}."
    long = (
        (operations.UPLOAD_LONG, "caller"),
        (operations.DOWNLOAD_LONG, "caller"),
        (operations.DISK_WRITE, "guest"),
    )
    for operation_name, figure in long:
        if p50_ms := results.p50(operation_name, figure):
            rate = operations.LONG_FILE_LEN / 2**20 / (p50_ms / 1000)
            yield f"- {operation_name}: {rate:,.0f} MiB/s."
    if results.never_idle:
        yield f"- The host was still busy {results.never_idle} times when a sample began."
    for operation_name, reason in results.failures.items():
        yield f"- {operation_name} was cut short: {reason}"


def _ratio_kept(ratio: float, results: Results) -> str:
    processors = (results.circumstances.sandboxes or results.circumstances.caller).processors
    promised = f"promised: ≤ {promises.FORK_RATIO_MAX:g}"
    if processors < promises.FORK_RATIO_PROCESSORS_MIN:
        return f"{promised} on two processors or more, here is one"
    return f"{promised}, {'kept' if ratio <= promises.FORK_RATIO_MAX else '**not kept**'}"


def _was_tried(row: Row, results: Results) -> bool:
    return row.operation in results.samples_ms or row.operation in results.failures


def _judged_figures(row: Row) -> tuple[str, ...]:
    return (row.figure, "host") if row.shows_host else (row.figure,)


def _floor_cell(floor: floors.Floor | None) -> str:
    return f"{milliseconds(floor.ms)} ({floor.parts})" if floor else ""


def _promise_cells(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    return "; ".join(map(_promised, verdicts)), "; ".join(map(_kept, verdicts))


def _promised(verdict: Verdict) -> str:
    promise = verdict.promise
    whose = "host " if promise.figure == "host" else ""
    bound = str(verdict.bound)
    if verdict.bound_ms is not None and milliseconds(verdict.bound_ms) != milliseconds(_fixed_ms(verdict)):
        bound = f"{milliseconds(verdict.bound_ms)} = {bound}"
    return f"{whose}{promise.statistic} ≤ {bound}"


def _fixed_ms(verdict: Verdict) -> float:
    return verdict.bound.ms if verdict.bound else 0.0


def _kept(verdict: Verdict) -> str:
    if verdict.share is None:
        return "not measured"
    return f"{'yes' if verdict.share <= 1 else '**no**'}, {verdict.share:.0%}"


def _phases(operation: str, results: Results) -> str:
    whole = ("caller", "host", "guest", "each", "all")
    parts = [figure for figure in results.samples_ms.get(operation, {}) if figure not in whole]
    if len(parts) < _PHASES_MIN:
        return ""
    return ", ".join(f"{part} {milliseconds(results.p50(operation, part))}" for part in parts)


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"

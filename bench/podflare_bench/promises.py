"""The promises of docs/promises.md as data, and whether a run has kept them."""

from __future__ import annotations

from dataclasses import dataclass

from podflare_bench import floors, operations
from podflare_bench.results import Results
from podflare_bench.summary import Statistic


@dataclass(frozen=True)
class Bound:
    """So many milliseconds, round trips to the guest and runs of print(1) in Python itself, together."""

    ms: float = 0
    pings: float = 0
    pythons: float = 0

    def in_ms(self, results: Results) -> float | None:
        """Return the bound in this run, if all that it is made of was measured."""
        summands = [self.ms]
        for times, part in ((self.pings, floors.PING), (self.pythons, floors.PYTHON)):
            if times:
                p50 = results.p50(part.floor, part.figure)
                if p50 is None:
                    return None
                summands.append(times * p50)
        return sum(summands)

    def __str__(self) -> str:
        summands = [f"{self.ms:g}"] if self.ms else []
        for times, part in ((self.pings, floors.PING), (self.pythons, floors.PYTHON)):
            if times:
                summands.append(part.name if times == 1 else f"{times:g} × {part.name}")
        return " + ".join(summands)


@dataclass(frozen=True)
class Promise:
    """A bound on one statistic of one figure of an operation.

    Attributes:
        native: On bare metal; None means that the figure is only reported.
        emulated: In an emulated host, likewise.
    """

    operation: str
    figure: str
    statistic: Statistic = "p50"
    native: Bound | None = None
    emulated: Bound | None = None


PROMISES = (
    Promise(operations.CREATE, "host", native=Bound(1), emulated=Bound(10)),
    Promise(operations.CREATE, "host", "p99", native=Bound(3)),
    Promise(operations.CREATE_AND_RUN, "caller", native=Bound(4), emulated=Bound(60)),
    Promise(operations.RUN_PYTHON, "caller", native=Bound(1), emulated=Bound(pings=1.5, pythons=1)),
    Promise(operations.FORK_1, "pause", native=Bound(2), emulated=Bound(15)),
    Promise(operations.FORK_1, "caller", native=Bound(6), emulated=Bound(80)),
    Promise(operations.FORK_5, "caller", native=Bound(12), emulated=Bound(150)),
    Promise(operations.FORK_32, "caller", native=Bound(60)),
    Promise(operations.MERGE, "host", native=Bound(1), emulated=Bound(15)),
    Promise(operations.REFILL, "caller", native=Bound(4)),
    Promise(operations.DESTROY, "host", native=Bound(1), emulated=Bound(10)),
    Promise(operations.UPLOAD, "caller", native=Bound(2)),
    Promise(operations.RESUME, "caller", native=Bound(10)),
)

# fork(5) until all five have answered, over the same for fork(1), where there are two processors or more.
FORK_RATIO_MAX = 2.5
FORK_RATIO_PROCESSORS_MIN = 2


@dataclass(frozen=True)
class Verdict:
    """How a promise stands.

    Attributes:
        measured_ms: None if it was not measured, or too seldom for its statistic.
        bound_ms: None if nothing is promised on this kind of host, or the bound's own parts are missing.
    """

    promise: Promise
    bound: Bound | None
    measured_ms: float | None
    bound_ms: float | None

    @property
    def share(self) -> float | None:
        """How much of its bound the figure takes; above 1, the promise is not kept."""
        return self.measured_ms / self.bound_ms if self.measured_ms is not None and self.bound_ms else None


def judge(promise: Promise, results: Results) -> Verdict:
    """Compare a promise with what was measured."""
    kind = results.circumstances.kind
    bound = {"native": promise.native, "emulated": promise.emulated, "unknown": None}[kind]
    summary = results.summary(promise.operation, promise.figure)
    return Verdict(
        promise=promise,
        bound=bound,
        measured_ms=summary.at(promise.statistic) if summary else None,
        bound_ms=bound.in_ms(results) if bound else None,
    )


def judge_row(operation: str, figures: tuple[str, ...], results: Results) -> list[Verdict]:
    """Judge the promises about these figures of an operation that hold on this kind of host."""
    about = (promise for promise in PROMISES if promise.operation == operation and promise.figure in figures)
    return [verdict for verdict in (judge(promise, results) for promise in about) if verdict.bound]


def fork_ratio(results: Results) -> float | None:
    """Return how many times longer fork(5) takes than fork(1), until all children have answered."""
    one, five = results.p50(operations.FORK_1, "caller"), results.p50(operations.FORK_5, "caller")
    return five / one if one and five else None

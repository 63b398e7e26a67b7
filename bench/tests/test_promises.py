"""Whether promises are kept, and what the floors are."""

from __future__ import annotations

import pytest
from runs import run

from podflare_bench import floors, operations, promises
from podflare_bench.floors import floor_of, fork_parts
from podflare_bench.promises import PROMISES, Bound, Promise, judge, judge_row

PROMISE = Promise("walk", "host", native=Bound(1), emulated=Bound(10))
FLOORS = {
    operations.HTTP_ANSWER: {"caller": [1.0]},
    operations.PING: {"guest": [8.0]},
    operations.PYTHON: {"guest": [2.0]},
    floors.FORK: {"kernel": [3.0]},
    floors.VM_CREATED: {"kernel": [4.0]},
}


def test_a_promise_is_kept_within_its_bound() -> None:
    assert judge(PROMISE, run({"walk": {"host": [10.0]}})).share == 1
    assert judge(PROMISE, run({"walk": {"host": [25.0]}})).share == 2.5


def test_each_kind_of_host_has_its_own_bound() -> None:
    walk = {"walk": {"host": [5.0]}}
    assert judge(PROMISE, run(walk, "native")).share == 5
    assert judge(PROMISE, run(walk, "emulated")).share == 0.5
    assert judge(PROMISE, run(walk, "unknown")).share is None


def test_what_was_not_measured_is_not_kept_either() -> None:
    assert judge(PROMISE, run({})).share is None
    assert (
        judge(Promise("walk", "host", "p99", native=Bound(3)), run({"walk": {"host": [1.0]}})).share is None
    )


def test_a_bound_may_be_made_of_floors() -> None:
    bound = Bound(pings=1.5, pythons=1)
    assert bound.in_ms(run(FLOORS)) == 14
    assert bound.in_ms(run({})) is None
    assert str(bound) == "1.5 × ping + Python"


def test_only_promises_for_this_kind_of_host_are_judged() -> None:
    create = {operations.CREATE: {"host": [0.5] * 100}}
    judged = {
        kind: [
            verdict.promise.statistic
            for verdict in judge_row(operations.CREATE, ("host",), run(create, kind))
        ]
        for kind in ("native", "emulated")
    }
    assert judged == {"native": ["p50", "p99"], "emulated": ["p50"]}


def test_every_promise_is_about_something_that_is_measured() -> None:
    assert {promise.operation for promise in PROMISES} <= {one.name for one in operations.OPERATIONS}


def test_the_ratio_of_forks_needs_both() -> None:
    one, five = {operations.FORK_1: {"caller": [10.0]}}, {operations.FORK_5: {"caller": [25.0]}}
    assert promises.fork_ratio(run(one | five)) == 2.5
    assert promises.fork_ratio(run(one)) is None


@pytest.mark.parametrize(
    ("processors", "ms"), [(1, 1 + 3 + 5 * 4 + 10 * 8 + 5 * 2), (5, 1 + 3 + 4 + 2 * 8 + 2)]
)
def test_processors_share_what_children_need(processors: int, ms: float) -> None:
    floor = floor_of(fork_parts(5), run(FLOORS, processors=processors))
    assert floor is not None
    assert floor.ms == ms
    assert floor.parts == "HTTP + fork(2) + 5 × VM + 10 × ping + 5 × Python"


def test_a_floor_without_all_its_parts_is_none() -> None:
    assert floor_of(fork_parts(1), run({})) is None
    assert floor_of((), run(FLOORS)) is None

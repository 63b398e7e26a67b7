"""What is printed."""

from __future__ import annotations

import pytest
from runs import run

from podflare_bench import operations
from podflare_bench.summary import Ratio
from podflare_bench.table import MISSING, ROWS, Row, cells, milliseconds, report

CREATE = {operations.CREATE: {"caller": [2.0, 3.0, 4.0], "host": [12.0, 12.0, 12.0]}}


@pytest.mark.parametrize(
    ("ms", "text"), [(None, MISSING), (0.123, "0.12"), (12.34, "12.3"), (123.4, "123"), (1234.0, "1,234")]
)
def test_a_time_has_three_digits(ms: float | None, text: str) -> None:
    assert milliseconds(ms) == text


def test_a_row_has_the_figure_its_floor_and_its_promise() -> None:
    results = run(CREATE | {operations.HTTP_ANSWER: {"caller": [1.0]}})
    [row] = [row for row in ROWS if row.operation == operations.CREATE]
    assert cells(row, results) == (
        *(operations.CREATE, "3", "3.00", MISSING, MISSING, "4.00", "12.0"),
        *("1.00 (HTTP)", "host p50 ≤ 10", "**no**, 120%"),
    )


def test_a_bound_made_of_floors_is_shown_as_their_sum() -> None:
    floors = {operations.PING: {"guest": [8.0]}, operations.PYTHON: {"guest": [2.0]}}
    results = run(floors | {operations.RUN_PYTHON: {"caller": [7.0]}})
    [row] = [row for row in ROWS if row.operation == operations.RUN_PYTHON]
    assert cells(row, results)[-2:] == ("p50 ≤ 14.0 = 1.5 × ping + Python", "yes, 50%")


def test_what_failed_has_a_row_and_a_note() -> None:
    results = run({operations.PING: {}})
    results.failures[operations.PING] = "404"
    text = report(results)
    assert f"| {operations.PING} | 0 | – | – | – | – | – |" in text
    assert f"- {operations.PING} was cut short: 404" in text


def test_what_was_not_wanted_has_no_row() -> None:
    assert operations.DESTROY not in report(run(CREATE))


def test_all_lines_of_the_table_have_as_many_cells() -> None:
    lines = [line for line in report(run(CREATE)).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_kind_of_host_stands_above() -> None:
    assert report(run(CREATE)).startswith(
        "Emulated host: 1 processor (Some processor), 4096 MiB, Linux 6.12, QEMU"
    )
    assert report(run(CREATE, "native")).startswith("Native host: 1 processor")


def test_phases_are_told_if_there_are_several() -> None:
    fork = {operations.FORK_1: {"caller": [9.0], "host": [8.0], "pause": [1.0], "renew": [2.0]}}
    assert "- fork(1), phases at the host, p50: pause 1.00, renew 2.00." in report(run(fork))
    assert "phases" not in report(run(CREATE))


def test_the_ratio_of_forks_is_judged_on_two_processors() -> None:
    forks = {operations.FORK_1: {"caller": [10.0]}, operations.FORK_5: {"caller": [30.0]}}
    assert "3.00 × what fork(1) takes (promised: ≤ 2.5, **not kept**)" in report(run(forks, processors=2))
    assert "on two processors or more, here is one" in report(run(forks, processors=1))


def test_every_operation_has_a_row() -> None:
    assert {row.operation for row in ROWS} >= {operation.name for operation in operations.OPERATIONS}


def test_rows_are_named_differently() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert Row("walk", label=": each").name == "walk: each"


def test_noise_is_what_includes_one() -> None:
    assert Ratio(1.1, 0.9, 1.3).is_noise
    assert not Ratio(1.2, 1.1, 1.3).is_noise

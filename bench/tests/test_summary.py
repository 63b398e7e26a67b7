"""Percentiles and ratios."""

from __future__ import annotations

import pytest

from podflare_bench.summary import Summary, ratio_of_medians, summarise


def test_percentiles_are_interpolated() -> None:
    summary = summarise([float(ms) for ms in range(101)])
    assert summary == Summary(n=101, p50=50, p95=95, p99=99, max=100)


def test_the_order_of_the_samples_does_not_matter() -> None:
    assert summarise([3, 1, 2]) == summarise([1, 2, 3])


@pytest.mark.parametrize(
    ("n", "has_p95", "has_p99"), [(19, False, False), (20, True, False), (100, True, True)]
)
def test_a_percentile_is_left_out_where_samples_are_few(n: int, has_p95: bool, has_p99: bool) -> None:
    summary = summarise([1.0] * n)
    assert summary is not None
    assert (summary.p95 is not None, summary.p99 is not None) == (has_p95, has_p99)


def test_one_sample_is_its_own_median_and_none_is_no_summary() -> None:
    assert summarise([4.0]) == Summary(n=1, p50=4, p95=None, p99=None, max=4)
    assert summarise([]) is None


def test_a_statistic_is_found_by_its_name() -> None:
    summary = Summary(n=1, p50=1, p95=2, p99=None, max=4)
    assert [summary.at("p50"), summary.at("p95"), summary.at("p99"), summary.at("max")] == [1, 2, None, 4]


def test_a_clear_difference_is_no_noise() -> None:
    ratio = ratio_of_medians([[20.0, 21, 22], [19, 20, 21]], [[10.0, 10.5, 11], [9.5, 10, 10.5]])
    assert ratio is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert not ratio.is_noise
    assert ratio.value == pytest.approx(2, rel=0.1)


def test_rounds_that_disagree_are_noise() -> None:
    ratio = ratio_of_medians([[10.0, 10, 10], [30, 30, 30]], [[30.0, 30, 30], [10, 10, 10]])
    assert ratio is not None
    assert ratio.is_noise


def test_the_same_samples_give_the_same_ratio() -> None:
    rounds = [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
    assert ratio_of_medians(rounds, rounds) == ratio_of_medians(rounds, rounds)


def test_nothing_on_one_side_is_no_ratio() -> None:
    assert ratio_of_medians([], [[1.0]]) is None
    assert ratio_of_medians([[1.0]], [[]]) is None

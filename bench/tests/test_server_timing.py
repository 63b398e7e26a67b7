"""Reading `Server-Timing`."""

from __future__ import annotations

import pytest

from podflare_bench.server_timing import parse


@pytest.mark.parametrize(
    ("header", "durations"),
    [
        ("", {}),
        ("pause;dur=1.500, total;dur=20.000", {"pause": 1.5, "total": 20}),
        ("total;dur=3", {"total": 3}),
        ('cache;desc="a, b;dur=9";dur=2, total;dur=3', {"cache": 2, "total": 3}),
        ('total ; dur="4.5"', {"total": 4.5}),
        ("miss, total;DUR=1", {"total": 1}),
        ("total;dur=soon", {}),
        ("total;dur=1, ;;;", {"total": 1}),
        ("no sense", {}),
    ],
)
def test_durations_are_read_by_their_metrics(header: str, durations: dict[str, float]) -> None:
    assert parse(header) == durations

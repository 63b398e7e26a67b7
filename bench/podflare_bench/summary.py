"""What many samples come down to. Nothing here knows what was measured."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Statistic = Literal["p50", "p95", "p99", "max"]

# With fewer samples a percentile is little else than the maximum, which stands beside it.
P95_SAMPLES_MIN = 20
P99_SAMPLES_MIN = 100

_RESAMPLES = 2000
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Summary:
    """Percentiles of samples, in their unit; those that the samples are too few for are None."""

    n: int
    p50: float
    p95: float | None
    p99: float | None
    max: float

    def at(self, statistic: Statistic) -> float | None:
        """Return one of them by its name."""
        return {"p50": self.p50, "p95": self.p95, "p99": self.p99, "max": self.max}[statistic]


def summarise(samples: Sequence[float]) -> Summary | None:
    """Summarise samples; percentiles are interpolated linearly. Without samples there is no summary."""
    if not samples:
        return None
    n = len(samples)
    # One sample is all of its own percentiles.
    cuts = statistics.quantiles(samples if n > 1 else [*samples, *samples], n=100, method="inclusive")
    return Summary(
        n=n,
        p50=cuts[49],
        p95=cuts[94] if n >= P95_SAMPLES_MIN else None,
        p99=cuts[98] if n >= P99_SAMPLES_MIN else None,
        max=max(samples),
    )


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians, and between what bounds it lies in 95 of 100 resamplings."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the two may well be the same."""
        return self.low <= 1 <= self.high


def ratio_of_medians(
    numerators: Sequence[Sequence[float]], denominators: Sequence[Sequence[float]]
) -> Ratio | None:
    """Compare samples that were taken in rounds.

    Rounds are drawn first and samples within them second (a bootstrap of two levels), because the samples of
    one round share its circumstances. Without samples on both sides there is no ratio.
    """
    above = [samples for samples in numerators if samples]
    below = [samples for samples in denominators if samples]
    if not above or not below:
        return None
    # Always the same draws: the same samples give the same interval.
    draws = random.Random(0)
    ratios = sorted(
        _median(_redrawn(above, draws)) / _median(_redrawn(below, draws)) for _ in range(_RESAMPLES)
    )
    low, high = (ratios[round(quantile * (_RESAMPLES - 1))] for quantile in _INTERVAL)
    return Ratio(_median(above) / _median(below), low, high)


def _redrawn(rounds: Sequence[Sequence[float]], draws: random.Random) -> list[list[float]]:
    return [draws.choices(samples, k=len(samples)) for samples in draws.choices(rounds, k=len(rounds))]


def _median(rounds: Sequence[Sequence[float]]) -> float:
    return statistics.median(sample for samples in rounds for sample in samples)

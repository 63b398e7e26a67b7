"""Reads `Server-Timing`, where a host says how long an answer and its parts took it."""

from __future__ import annotations

import re

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rf'"(?:[^"\\]|\\.)*"|{_NAME}'
_PARAMETER = re.compile(rf"\s*;\s*({_NAME})\s*(?:=\s*({_VALUE}))?")
_METRIC = re.compile(rf"\s*({_NAME})((?:{_PARAMETER.pattern})*)\s*(?:,|$)")


def parse(header: str) -> dict[str, float]:
    """Return the durations in milliseconds by the names of their metrics; those without one are left out.

    What comes after the first mistake of the header is left out, too.
    """
    durations: dict[str, float] = {}
    position = 0
    while metric := _METRIC.match(header, position):
        position = metric.end()
        for name, value in _PARAMETER.findall(metric[2]):
            if name.lower() == "dur" and (ms := _number(value.strip('"'))) is not None:
                durations[metric[1]] = ms
    return durations


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

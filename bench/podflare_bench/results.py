"""What a run has measured, and the file that keeps it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from podflare_bench.circumstances import Circumstances
from podflare_bench.host import Figures
from podflare_bench.summary import Summary, summarise


@dataclass
class Results:
    """Every raw sample of a run.

    Attributes:
        samples_ms: Milliseconds by operation and figure.
        failures: Why an operation has fewer samples than it should, or none.
        never_idle: How often an operation began although the host was still busy.
    """

    circumstances: Circumstances
    samples_ms: dict[str, Figures] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    never_idle: int = 0

    def summary(self, operation: str, figure: str) -> Summary | None:
        """Summarise one figure of an operation, if it was measured."""
        return summarise(self.samples_ms.get(operation, {}).get(figure, []))

    def p50(self, operation: str, figure: str) -> float | None:
        """Return the median of one figure of an operation, if it was measured."""
        summary = self.summary(operation, figure)
        return summary.p50 if summary else None

    def write(self, path: Path) -> None:
        """Keep all of it as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

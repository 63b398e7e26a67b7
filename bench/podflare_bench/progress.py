"""Tells on standard error what is being measured, and how far it is."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """One line for each step; on a terminal it counts while the step goes on."""

    def __init__(self, step: str, samples: int) -> None:
        self._step, self._samples, self._done = step, samples, 0
        self._begun = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self._show()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        took_seconds = time.monotonic() - self._begun
        self._write(f"{self._step}: {self._done} of {self._samples} in {took_seconds:.0f} s", ending="\n")

    def sample(self) -> None:
        """Count one more."""
        self._done += 1
        self._show()

    def _show(self) -> None:
        if self._is_terminal:
            self._write(f"{self._step}: {self._done} of {self._samples}", ending="")

    def _write(self, text: str, ending: str) -> None:
        start = "\r\x1b[K" if self._is_terminal else ""
        print(f"{start}bench: {text}", end=ending, file=sys.stderr, flush=True)

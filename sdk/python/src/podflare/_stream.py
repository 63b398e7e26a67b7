"""Reads NDJSON streams of events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from podflare._errors import ProtocolError
from podflare._types import Event, FileEvent

_EXCERPT_LEN = 200


def events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Parse a stream as it arrives; blank lines are the host's heartbeats.

    Raises:
        ProtocolError: A line is not an event.
    """
    for line in _lines(chunks):
        if line.strip():
            yield _event(line)


def execution_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Parse the stream of one execution, which must end with an exit code.

    Raises:
        ProtocolError: A line is not an event, or the exit code is missing.
    """
    last = None
    for last in events(chunks):
        yield last
    if last is None or last.type != "exit":
        raise ProtocolError(
            "The execution's stream ended without an exit code: the sandbox or its host went away"
        )


def file_events(chunks: Iterable[bytes]) -> Iterator[FileEvent]:
    """Parse the stream of a watch; blank lines are the host's heartbeats.

    Raises:
        ProtocolError: A line is not an event.
    """
    for line in _lines(chunks):
        if line.strip():
            try:
                event = FileEvent.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ProtocolError(
                    f"The host sent a line that is not an event: {line[:_EXCERPT_LEN]!r}"
                ) from error
            yield event


def terminal_events(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Parse the stream of a terminal as it arrives; a heartbeat is an empty event.

    Raises:
        ProtocolError: A line is not a JSON object.
    """
    for line in _lines(chunks):
        if not line.strip():
            yield {}
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise ProtocolError(f"The host sent a line that is not an event: {line[:_EXCERPT_LEN]!r}")
        yield event


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Only b"\n" ends a line. httpx's own splitter also cuts at U+2028 and other characters that a JSON
    # string may hold.
    pending: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*pending, line])
            pending.clear()
        pending.append(rest)
    yield b"".join(pending)


def _event(line: bytes) -> Event:
    try:
        return Event.from_json(json.loads(line))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProtocolError(f"The host sent a line that is not an event: {line[:_EXCERPT_LEN]!r}") from error

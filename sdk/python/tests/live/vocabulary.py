"""What the live tests say: run this, fork that, wait until."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from textwrap import dedent
from typing import TypeVar

from podflare import ApiError, ExecResult, ProtocolError, Sandbox

DEADLINE_SECONDS = 240.0
_POLL_SECONDS = 0.2

Item = TypeVar("Item")
Value = TypeVar("Value")


def python(sandbox: Sandbox, code: str) -> str:
    """Run Python that must succeed, and return what it printed."""
    return _output(sandbox.run_code(dedent(code)))


def bash(sandbox: Sandbox, command: str) -> str:
    """Run a bash command that must succeed, and return what it printed."""
    return _output(sandbox.run_code(command, "bash"))


def attempt(sandbox: Sandbox, code: str) -> str:
    """Run Python that must not succeed, and return what the user is told."""
    return _complaint(lambda: sandbox.run_code(dedent(code)))


def attempt_bash(sandbox: Sandbox, command: str) -> str:
    """Run a bash command that must not succeed, and return what the user is told."""
    return _complaint(lambda: sandbox.run_code(command, "bash"))


@contextmanager
def forked(parent: Sandbox, n: int = 1) -> Iterator[list[Sandbox]]:
    """Fork, and close the children afterwards."""
    children = parent.fork(n)
    with ExitStack() as closing:
        for child in children:
            closing.callback(child.close)
        yield children


def in_parallel(function: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """Call the function with all items at once, each in its own thread."""
    items = list(items)
    with ThreadPoolExecutor(max_workers=len(items)) as pool:
        return list(pool.map(function, items))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until the condition holds.

    Raises:
        AssertionError: It does not, within DEADLINE_SECONDS.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:.0f} s: {what}"
        time.sleep(_POLL_SECONDS)


def assert_works(sandbox: Sandbox) -> None:
    """Both languages answer."""
    assert python(sandbox, "print(6 * 7)") == "42"
    assert bash(sandbox, "echo $((6 * 7))") == "42"


def _output(result: ExecResult) -> str:
    assert result.ok, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def _complaint(run: Callable[[], ExecResult]) -> str:
    try:
        result = run()
    except (ApiError, ProtocolError) as error:
        return str(error)
    assert not result.ok, f"it succeeded and printed {result.stdout!r}"
    return result.stderr

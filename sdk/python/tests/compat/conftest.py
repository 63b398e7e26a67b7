"""The published SDK, unmodified, against the host under test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

# When imported, the published SDK reads the address of a hosted region from disk, and prefers it.
CACHE = tempfile.TemporaryDirectory(prefix="podflare-compat-")
os.environ["XDG_CACHE_HOME"] = CACHE.name

import podflare

PUBLISHED_VERSION = "0.0.22"


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    CACHE.cleanup()


@pytest.fixture(scope="session")
def host() -> str:
    """The host under test; a missing host or another SDK is a failure, never a skip."""
    if podflare.__version__ != PUBLISHED_VERSION:
        pytest.fail(f"this suite tests podflare {PUBLISHED_VERSION}, but {podflare.__version__} is installed")
    host = os.environ.get("PODFLARE_TEST_HOST")
    if not host:
        pytest.fail("PODFLARE_TEST_HOST is not set: name a running host, such as http://127.0.0.1:7070")
    if not podflare.Client(host=host).healthz():
        pytest.fail(f"{host} does not say that it is well")
    return host


@pytest.fixture
def sandbox(host: str) -> Iterator[podflare.Sandbox]:
    with podflare.Sandbox(host=host) as sandbox:
        yield sandbox

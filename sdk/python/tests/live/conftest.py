"""A client of the host under test, and sandboxes that are closed whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from podflare import Client, Sandbox


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A client of the host under test; a missing or dead host is a failure, never a skip."""
    host = os.environ.get("PODFLARE_TEST_HOST")
    if not host:
        pytest.fail("PODFLARE_TEST_HOST is not set: name a running host, such as http://127.0.0.1:7070")
    with Client(host, timeout=120.0) as client:
        if not client.healthz():
            pytest.fail(f"{host} does not say that it is well")
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    with Sandbox(client=client) as sandbox:
        yield sandbox


@pytest.fixture
def bystander(client: Client) -> Iterator[Sandbox]:
    """Another sandbox, to which nothing may happen."""
    with Sandbox(client=client) as sandbox:
        yield sandbox

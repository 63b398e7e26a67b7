"""Templates, and hosts that first boot what is asked for."""

import time
from collections.abc import Callable

import httpx
import pytest

from podflare import ApiError, CapacityError, Client, Sandbox, TemplateInfo

from .conftest import SANDBOX_ID, ScriptedHost

VIEW: TemplateInfo = {
    "name": "python-datasci",
    "description": "numbers",
    "ram_mib": 1024,
    "vcpus": 2,
    "rootfs_gb": 4,
    "built_at_ms": 7,
    "state": "ready",
    "sizes": [{"ram_mib": 1024, "vcpus": 2, "state": "ready"}],
}


def test_templates_are_told(host: ScriptedHost, client: Client) -> None:
    host.on("GET", "/v1/templates", httpx.Response(200, json={"templates": [VIEW]}))
    host.on("GET", "/v1/templates/python-datasci", httpx.Response(200, json=VIEW))
    assert client.templates() == [VIEW]
    assert client.template_info("python-datasci") == VIEW


def test_a_template_that_is_not_there_is_an_error_that_lists_those_that_are(
    host: ScriptedHost, client: Client
) -> None:
    sentence = 'template "windows" not found; this host has: default'
    host.on("POST", "/v1/sandboxes", httpx.Response(404, json={"error": sentence}))
    with pytest.raises(ApiError, match="this host has: default"):
        Sandbox(client=client, template="windows")


def answers(*responses: httpx.Response) -> Callable[[httpx.Request], httpx.Response]:
    """One after the other, the last again and again."""
    left = list(responses)

    def answer(_: httpx.Request) -> httpx.Response:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def booting(retry_after: str) -> httpx.Response:
    headers = {"retry-after": retry_after}
    return httpx.Response(503, json={"error": "The template boots"}, headers=headers)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted, and then over."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(pauses))
    return pauses


def test_a_create_asks_again_when_the_host_says_when(
    host: ScriptedHost, client: Client, pauses: list[float]
) -> None:
    created = httpx.Response(200, json={"id": SANDBOX_ID, "state": "ready"})
    host.on("POST", "/v1/sandboxes", answers(booting("5"), booting("3"), created))
    assert Sandbox(client=client, ram_mib=2048).id == SANDBOX_ID
    assert pauses == [5.0, 3.0]


def test_a_create_does_not_ask_for_ever(host: ScriptedHost, client: Client, pauses: list[float]) -> None:
    host.on("POST", "/v1/sandboxes", answers(booting("50")))
    with pytest.raises(CapacityError, match="boots"):
        Sandbox(client=client)
    assert pauses == [50.0, 50.0]


@pytest.mark.parametrize("told", ["", "soon", "-1", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_host_that_does_not_say_when_is_not_asked_again(
    host: ScriptedHost, client: Client, pauses: list[float], told: str
) -> None:
    host.on("POST", "/v1/sandboxes", answers(booting(told)))
    with pytest.raises(CapacityError):
        Sandbox(client=client)
    assert pauses == []

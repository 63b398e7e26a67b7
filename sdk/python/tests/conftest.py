"""A host that a test scripts: it records requests and answers what it was told to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from podflare import Client, Sandbox, close_default_client

SANDBOX_ID = "sbx_00000000000000000000000000000001"
Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


def ndjson(*events: tuple[str, str | int]) -> bytes:
    """Encode events as the host does, numbering them."""
    lines = [{"type": kind, "data": data, "seq": seq, "ts": 0} for seq, (kind, data) in enumerate(events)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@dataclass
class ScriptedHost:
    """Answers by method and path; anything else is 404."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    requests: list[httpx.Request] = field(default_factory=list)

    def on(self, method: str, path: str, answer: Answer) -> None:
        self.answers[method, path] = answer

    def on_exec(self, *events: tuple[str, str | int]) -> None:
        self.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", httpx.Response(200, content=ndjson(*events)))

    def handle(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.get((request.method, request.url.path))
        if answer is None:
            return httpx.Response(404, json={"error": "no such thing"})
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def calls(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]

    def body(self) -> dict[str, object]:
        body: dict[str, object] = json.loads(self.requests[-1].content)
        return body

    def client(
        self, timeout: float = 30.0, traceparent: str | None = None, api_key: str | None = None
    ) -> Client:
        transport = httpx.MockTransport(self.handle)
        return Client("http://host.test", timeout, traceparent, api_key, transport=transport)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("PODFLARE_HOSTD_URL", "PODFLARE_HOST", "PODFLARE_API_KEY", "PODFLARE_TRACEPARENT"):
        monkeypatch.delenv(name, raising=False)
    yield
    close_default_client()


@pytest.fixture
def host() -> ScriptedHost:
    """A host that can create and destroy one sandbox."""
    host = ScriptedHost()
    host.on("POST", "/v1/sandboxes", httpx.Response(200, json={"id": SANDBOX_ID, "state": "ready"}))
    host.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(204))
    return host


@pytest.fixture
def client(host: ScriptedHost) -> Client:
    return host.client()


@pytest.fixture
def sandbox(client: Client) -> Sandbox:
    return Sandbox(client=client)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say aloud what was not run."""
    if config.getoption("markexpr") == "not live":
        terminalreporter.write_line(
            "Live tests were NOT selected: PODFLARE_TEST_HOST=http://… pytest -m live tests/live runs them."
        )

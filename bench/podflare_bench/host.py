"""The host under measurement, as one caller sees it."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from podflare import Client, PodflareError, Sandbox

from podflare_bench import server_timing

# Milliseconds by the name of what they are: "caller" is what the caller waits for, "host" what the host says
# about its answer as a whole, and what has another name it says about a part of that.
Figures = dict[str, list[float]]

_READY_DEADLINE_SECONDS = 300.0
_POOL_POLL_SECONDS = 0.01
_TIMEOUT_SECONDS = 120.0
# A sandbox lives for as long as its operation is measured.
_LIFE_SECONDS = 6 * 3600

# A host is idle if it answers so many times in a row not much later than it did before anything was measured.
_IDLE_ANSWERS = 3
_IDLE_FACTOR = 1.5
_IDLE_DEADLINE_SECONDS = 10.0
_REFERENCE_ANSWERS = 21

_KEEPALIVE = httpx.Limits(max_connections=None, max_keepalive_connections=64)


class TimingTransport(httpx.BaseTransport):
    """Keeps the `Server-Timing` of the first answer since `forget`, for each thread by itself."""

    def __init__(self) -> None:
        self._network = httpx.HTTPTransport(limits=_KEEPALIVE)
        self._thread = threading.local()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and note what the host says about it."""
        response = self._network.handle_request(request)
        if self.first is None:
            self._thread.first = server_timing.parse(response.headers.get("server-timing", ""))
        return response

    @property
    def first(self) -> dict[str, float] | None:
        """Milliseconds by metric."""
        first: dict[str, float] | None = getattr(self._thread, "first", None)
        return first

    def forget(self) -> None:
        """Let this thread's next answer be the first."""
        self._thread.first = None

    def close(self) -> None:
        """Close the connections."""
        self._network.close()


class Host:
    """A host, and how fast it answers when it is idle.

    Args:
        url: Base URL; otherwise as the SDK finds it.

    Raises:
        TimeoutError: The template does not come to rest, or the pool does not get full.
        PodflareError: The host does not answer.
    """

    def __init__(self, url: str | None) -> None:
        self._transport = TimingTransport()
        self.client = Client(url, timeout=_TIMEOUT_SECONDS, transport=self._transport)
        self._http = httpx.Client(
            base_url=self.client.host, transport=self._transport, timeout=_TIMEOUT_SECONDS
        )
        if self.client.api_key:
            self._http.headers["authorization"] = f"Bearer {self.client.api_key}"
        self.never_idle = 0
        self._wait_for_rest()
        self.wait_for_full_pool()
        self._reference_ms = statistics.median(self._answer_ms() for _ in range(_REFERENCE_ANSWERS))

    @contextmanager
    def measured(self, *, streams: bool = False) -> Iterator[Figures]:
        """Measure the block; the host's own figures are those of its first request.

        Args:
            streams: They would be about the first byte of an answer that goes on, and are left out.
        """
        figures: Figures = defaultdict(list)
        self._transport.forget()
        start = time.perf_counter()
        yield figures
        figures["caller"].append((time.perf_counter() - start) * 1000)
        for metric, ms in (self._transport.first or {}).items() if not streams else ():
            figures["host" if metric == "total" else metric].append(ms)

    def sandbox(self) -> Sandbox:
        """Create a sandbox that outlives what is measured in it."""
        life = _LIFE_SECONDS
        return Sandbox(client=self.client, timeout_seconds=life, idle_timeout_seconds=life)

    def ping(self, sandbox: Sandbox) -> None:
        """Let the host ask the agent in the guest for a sign of life.

        Raises:
            httpx.HTTPError: The host refused, or does not know how.
        """
        self._http.get(f"/v1/sandboxes/{sandbox.id}/ping").raise_for_status()

    def settle(self) -> None:
        """Wait until the host neither makes VMs nor takes any down, so that a sample has it for itself.

        The host does not tell when a VM that was destroyed is gone; it answers late until then. Where it
        stays busy with something else, the wait has an end, and is counted.

        Raises:
            TimeoutError: The pool does not get full.
        """
        self.wait_for_full_pool()
        deadline = time.monotonic() + _IDLE_DEADLINE_SECONDS
        in_time = 0
        while in_time < _IDLE_ANSWERS:
            if time.monotonic() > deadline:
                self.never_idle += 1
                return
            in_time = in_time + 1 if self._answer_ms() <= self._reference_ms * _IDLE_FACTOR else 0

    def pool(self) -> Pool:
        """Ask for the counters of the default template's pool."""
        return Pool(self.client.capacity())

    def _wait_for_rest(self) -> None:
        deadline = time.monotonic() + _READY_DEADLINE_SECONDS
        while not self.pool().template_rested:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The template has not come to rest after {_READY_DEADLINE_SECONDS:.0f} s")
            time.sleep(_POOL_POLL_SECONDS)

    def wait_for_full_pool(self) -> Pool:
        """Return the pool's counters as soon as it is full.

        Raises:
            TimeoutError: It does not get full.
        """
        deadline = time.monotonic() + _READY_DEADLINE_SECONDS
        while not (pool := self.pool()).is_full:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The pool is not full after {_READY_DEADLINE_SECONDS:.0f} s")
            time.sleep(_POOL_POLL_SECONDS)
        return pool

    def _answer_ms(self) -> float:
        start = time.perf_counter()
        self.client.healthz()
        return (time.perf_counter() - start) * 1000

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self.client.close()


class Pool:
    """The default template's counters in `GET /v1/capacity`.

    Raises:
        PodflareError: They are not there.
    """

    def __init__(self, capacity: dict[str, object]) -> None:
        templates = capacity.get("templates")
        for template in templates if isinstance(templates, list) else []:
            if template["template"] == "default":
                self.size, self.ready = int(template["pool_size"]), int(template["pool_ready"])
                self._starting = int(template["pool_starting"])
                # A build from before templates did so, which a comparison may run, does not tell.
                self.template_rested = bool(template.get("rested", True))
                return
        raise PodflareError(f"The host does not tell how many VMs are ready: {json.dumps(capacity)[:200]}")

    @property
    def is_full(self) -> bool:
        """Whether a create finds a VM ready, and no other one is being made."""
        return self.ready >= max(1, self.size) and not self._starting

"""Measures the promises of docs/promises.md against a running host, each beside its floor from the same run.

    python bench/bench.py --host http://127.0.0.1:7070 --n 100

Prints a Markdown table and writes every raw sample to bench/results/latest.json, or to partial.json beside it
if only some operations were measured. A sample is what the caller waits for; rows marked "host:" are what the
host says about the same request in `Server-Timing`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from podflare import Client, PodflareError, Sandbox

RESULTS = Path(__file__).parent / "results"
WARM_UP = 3
POOL_DEADLINE_SECONDS = 300.0
POOL_POLL_SECONDS = 0.02
# With fewer samples a 99th percentile is an interpolation towards the maximum, which stands beside it.
P99_SAMPLES_MIN = 100

# A host is idle if it answers so many times in a row not much later than it did before anything was measured.
IDLE_ANSWERS = 3
IDLE_FACTOR = 1.5
IDLE_DEADLINE_SECONDS = 10.0
FLOOR_ANSWERS = 21
UPLOAD = os.urandom(256 * 1024)


class TimingTransport(httpx.BaseTransport):
    """Keeps the `Server-Timing` of the first answer since `forget`, in milliseconds by metric."""

    def __init__(self) -> None:
        self._network = httpx.HTTPTransport()
        self.first: dict[str, float] | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and note what the host says about it."""
        response = self._network.handle_request(request)
        if self.first is None:
            metrics = re.findall(
                r"([\w-]+)(?:;desc=[^;,]*)?;dur=([\d.]+)", response.headers.get("server-timing", "")
            )
            self.first = {name: float(ms) for name, ms in metrics}
        return response

    def forget(self) -> None:
        """Let the next answer be the first."""
        self.first = None

    def close(self) -> None:
        """Close the connections."""
        self._network.close()


@dataclass
class Sample:
    """One measurement: the caller's milliseconds, and the host's by metric."""

    ms: float = 0.0
    host_ms: dict[str, float] = field(default_factory=dict)


class Bench:
    """The host under measurement, with one sandbox that lives through the whole run."""

    def __init__(self, host: str | None) -> None:
        self._transport = TimingTransport()
        self.client = Client(host, timeout=120.0, transport=self._transport)
        self.sandbox = Sandbox(client=self.client)
        self.never_idle = 0
        self._floor_ms = float("inf")

    @contextmanager
    def measured(self) -> Iterator[Sample]:
        """Measure the block; the host's own figures are those of its first request."""
        sample = Sample()
        self._transport.forget()
        start = time.perf_counter()
        yield sample
        sample.ms = (time.perf_counter() - start) * 1000
        sample.host_ms = self._transport.first or {}

    def learn_floor(self) -> None:
        """Learn how fast the host answers when it is idle.

        Raises:
            TimeoutError: The pool does not get full.
        """
        self._fill_pool()
        self._floor_ms = statistics.median(self._answer_ms() for _ in range(FLOOR_ANSWERS))

    def settle(self) -> None:
        """Wait until the host neither makes VMs nor takes any down, so that a sample has it for itself.

        The host does not tell when a VM that was destroyed is gone; it answers late until then. Where it
        stays busy with something else, the wait has an end, and is counted.

        Raises:
            TimeoutError: The pool does not get full.
        """
        self._fill_pool()
        deadline = time.monotonic() + IDLE_DEADLINE_SECONDS
        in_time = 0
        while in_time < IDLE_ANSWERS:
            if time.monotonic() > deadline:
                self.never_idle += 1
                return
            in_time = in_time + 1 if self._answer_ms() <= self._floor_ms * IDLE_FACTOR else 0

    def _fill_pool(self) -> None:
        deadline = time.monotonic() + POOL_DEADLINE_SECONDS
        while not pool_is_full(self.client.capacity()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The pool is not full after {POOL_DEADLINE_SECONDS:.0f} s")
            time.sleep(POOL_POLL_SECONDS)

    def _answer_ms(self) -> float:
        start = time.perf_counter()
        self.client.healthz()
        return (time.perf_counter() - start) * 1000

    def close(self) -> None:
        """Leave nothing behind."""
        self.sandbox.close()
        self.client.close()


def pool_is_full(capacity: dict[str, object]) -> bool:
    """Read the default template's counters out of `GET /v1/capacity`."""
    templates = capacity.get("templates")
    for pool in templates if isinstance(templates, list) else []:
        if pool["template"] == "default":
            return bool(pool["pool_ready"] >= max(1, pool["pool_size"]) and not pool["pool_starting"])
    raise PodflareError(f"The host does not tell how many VMs are ready: {json.dumps(capacity)[:200]}")


def healthz(bench: Bench) -> Sample:
    """Ask for nothing: what any answer over HTTP costs at least."""
    with bench.measured() as sample:
        bench.client.healthz()
    return sample


def create(bench: Bench) -> Sample:
    """Take a ready VM from the pool."""
    bench.settle()
    with bench.measured() as sample:
        sandbox = Sandbox(client=bench.client)
    sandbox.close()
    return sample


def create_and_run(bench: Bench) -> Sample:
    """Take a ready VM from the pool and run its first code."""
    bench.settle()
    with bench.measured() as sample:
        sandbox = Sandbox(client=bench.client)
        run(sandbox)
    sandbox.close()
    return sample


def run_hot(bench: Bench) -> Sample:
    """Run code in a sandbox that has run some before."""
    with bench.measured() as sample:
        run(bench.sandbox)
    return sample


def run_after_fork(bench: Bench) -> Sample:
    """Run code in a sandbox whose pages are write-protected anew."""
    bench.settle()
    [child] = bench.sandbox.fork()
    with child:
        return run_hot(bench)


def fork_and_run(n: int) -> Callable[[Bench], Sample]:
    """Fork n ways, until all children have answered at once."""

    def fork_n_and_run(bench: Bench) -> Sample:
        bench.settle()
        with ExitStack() as closing, ThreadPoolExecutor(n) as threads, bench.measured() as sample:
            children = bench.sandbox.fork(n)
            for child in children:
                closing.callback(child.close)
            list(threads.map(run, children))
        return sample

    return fork_n_and_run


def merge(bench: Bench) -> Sample:
    """Put a child in its parent's place."""
    with Sandbox(client=bench.client) as parent:
        [winner] = parent.fork()
        run(winner)
        bench.settle()
        with bench.measured() as sample:
            parent.merge_into(winner)
    return sample


def destroy(bench: Bench) -> Sample:
    """Destroy a sandbox that has run code."""
    sandbox = Sandbox(client=bench.client)
    run(sandbox)
    bench.settle()
    with bench.measured() as sample:
        sandbox.close()
    return sample


def upload(bench: Bench) -> Sample:
    """Write a file of 256 KB."""
    with bench.measured() as sample:
        bench.sandbox.upload(UPLOAD, "/root/upload")
    return sample


def run(sandbox: Sandbox) -> None:
    """Run the least code that answers."""
    result = sandbox.run_code("print(1)")
    if result.stdout != "1":
        raise PodflareError(f"print(1) answered {result}")


@dataclass(frozen=True)
class Operation:
    """Something to measure.

    Attributes:
        costly: It is measured a fifth as often.
        streams: The host's figures would be about the first byte of an answer that goes on, and are left out.
    """

    name: str
    sample: Callable[[Bench], Sample]
    costly: bool = False
    streams: bool = False


OPERATIONS = [
    Operation("floor: loopback HTTP answer", healthz),
    Operation("create, pool hit", create),
    Operation("create → first print(1) answered", create_and_run),
    Operation("hot print(1)", run_hot, streams=True),
    Operation("print(1) right after a fork", run_after_fork, costly=True, streams=True),
    Operation("fork(1) → child answered", fork_and_run(1), costly=True),
    Operation("fork(5) → all answered", fork_and_run(5), costly=True),
    Operation("merge_into", merge, costly=True),
    Operation("destroy", destroy),
    Operation("upload 256 KB", upload, streams=True),
]


def measure(bench: Bench, operation: Operation, n: int) -> dict[str, list[float]]:
    """Take n samples after a warm-up; return the milliseconds of each row."""
    for _ in range(WARM_UP):
        operation.sample(bench)
    bench.settle()
    rows: dict[str, list[float]] = defaultdict(list)
    for _ in range(n):
        sample = operation.sample(bench)
        rows[operation.name].append(sample.ms)
        for metric, ms in sample.host_ms.items() if not operation.streams else ():
            rows[f"{operation.name} · host: {metric}"].append(ms)
    return rows


def table_row(name: str, samples: list[float]) -> str:
    """Format one row of the Markdown table; percentiles are interpolated linearly."""
    cuts = statistics.quantiles(samples, n=100, method="inclusive")
    p99 = f"{cuts[98]:.2f}" if len(samples) >= P99_SAMPLES_MIN else "–"
    return f"| {name} | {len(samples)} | {cuts[49]:.2f} | {cuts[94]:.2f} | {p99} | {max(samples):.2f} |"


def circumstances(client: Client, kvm: str) -> dict[str, object]:
    """Collect what the figures depend on, of this machine: the host does not tell what it runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    return {
        "host": client.host,
        "host_kvm": kvm,
        "client_cpu": cpu[1] if cpu else platform.processor(),
        "client_cpus": os.cpu_count(),
        "client_kernel": platform.release(),
        "python": platform.python_version(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measures a running host.")
    parser.add_argument("--host", help="base URL; otherwise as the SDK finds it")
    parser.add_argument("--n", type=int, default=100, help="samples of each cheap operation (default: 100)")
    parser.add_argument(
        "--kvm", choices=["native", "emulated", "unknown"], default="unknown", help="kind of host"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only operations whose name holds this")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and keep the samples."""
    wanted = arguments()
    with ExitStack() as closing:
        bench = Bench(wanted.host)
        closing.callback(bench.close)
        bench.learn_floor()
        facts = circumstances(bench.client, wanted.kvm)
        print(
            f"Client: {facts['client_cpu']} × {facts['client_cpus']}, Linux {facts['client_kernel']}. "
            f"Host: {bench.client.host}, KVM {wanted.kvm}. Milliseconds.\n"
        )
        print("| operation | n | p50 | p95 | p99 | max |\n|---|---|---|---|---|---|", flush=True)
        samples: dict[str, list[float]] = {}
        for operation in OPERATIONS:
            if wanted.only not in operation.name:
                continue
            rows = measure(bench, operation, max(2, wanted.n // 5 if operation.costly else wanted.n))
            samples |= rows
            for name, row in rows.items():
                print(table_row(name, row), flush=True)
        if bench.never_idle:
            print(f"\nThe host was still busy {bench.never_idle} times when an operation began.")
        facts["never_idle"] = bench.never_idle
    keep(wanted, {"circumstances": facts, "warm_up": WARM_UP, "samples_ms": samples})


def keep(wanted: argparse.Namespace, results: dict[str, object]) -> None:
    """Write the samples to a file; those of a part do not take the place of the whole."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("partial.json" if wanted.only else "latest.json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (PodflareError, TimeoutError) as error:
        sys.exit(f"bench: {error}")

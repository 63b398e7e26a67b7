"""What is measured. An operation does something once, in a sandbox of its own, and returns what it took."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from podflare import PodflareError, Sandbox

from podflare_bench.host import Figures, Host

BURST = 50
FILE_LEN = 256 * 1024
_FILE = os.urandom(FILE_LEN)
LONG_FILE_LEN = 64 * 1024 * 1024
_FILE_PATH = "/root/bench"
_LONG_FILE_PATH = "/root/bench-long"
_CLOSERS = 8

_OWN_RUNS = 20
_OWN_TIME = f"""
def own_time():
    import contextlib, io, time
    start = time.perf_counter_ns()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile("print(1)", "<bench>", "exec"), {{}})
    return (time.perf_counter_ns() - start) / 1e6
print([own_time() for _ in range({_OWN_RUNS})])
"""

_SYNCS = 20
_SYNC_TIME = """
def sync_times(length, count):
    import os, time
    block, times = os.urandom(1 << 20)[:length], []
    with open("/root/bench-disk", "wb", buffering=0) as file:
        for _ in range(count):
            start = time.perf_counter_ns()
            for _ in range(max(1, length >> 20)):
                file.write(block)
            os.fsync(file.fileno())
            times.append((time.perf_counter_ns() - start) / 1e6)
    os.remove("/root/bench-disk")
    return times
"""


def http_answer(host: Host, _: Sandbox) -> Figures:
    """Ask for nothing."""
    with host.measured() as figures:
        host.client.healthz()
    return figures


def ping(host: Host, sandbox: Sandbox) -> Figures:
    """Let the guest's agent answer; the metric "guest" is that round trip."""
    with host.measured() as figures:
        host.ping(sandbox)
    return figures


def python_own_time(_: Host, sandbox: Sandbox) -> Figures:
    """Let Python compile and run print(1) in the guest, which measures itself."""
    return {"guest": [float(ms) for ms in json.loads(output(sandbox, _OWN_TIME))]}


def create(host: Host, _: Sandbox) -> Figures:
    """Take a ready VM from the pool."""
    host.settle()
    with host.measured() as figures:
        sandbox = Sandbox(client=host.client)
    sandbox.close()
    return figures


def create_and_run(host: Host, _: Sandbox) -> Figures:
    """Take a ready VM from the pool and run its first code."""
    host.settle()
    with host.measured(streams=True) as figures:
        sandbox = Sandbox(client=host.client)
        print_one(sandbox)
    sandbox.close()
    return figures


def run_python(host: Host, sandbox: Sandbox) -> Figures:
    """Run code in a sandbox that has run some before."""
    with host.measured(streams=True) as figures:
        print_one(sandbox)
    return figures


def run_bash(host: Host, sandbox: Sandbox) -> Figures:
    """Start a shell that does nothing."""
    with host.measured(streams=True) as figures:
        output(sandbox, "true", bash=True)
    return figures


def run_after_fork(host: Host, sandbox: Sandbox) -> Figures:
    """Run code in a sandbox whose pages are write-protected anew."""
    host.settle()
    [child] = sandbox.fork()
    with child:
        return run_python(host, sandbox)


def fork_and_run(n: int) -> Callable[[Host, Sandbox], Figures]:
    """Fork n ways, until all children, asked at once, have answered."""

    def fork_n_and_run(host: Host, sandbox: Sandbox) -> Figures:
        host.settle()
        with ExitStack() as closing, ThreadPoolExecutor(n) as threads, host.measured() as figures:
            children = sandbox.fork(n)
            closing.callback(close_all, children)
            list(threads.map(print_one, children))
        return figures

    return fork_n_and_run


def burst(host: Host, _: Sandbox) -> Figures:
    """Create many at once; "each" is what each create took, "all" until the last was answered."""
    host.settle()
    with ExitStack() as closing, ThreadPoolExecutor(BURST) as threads:
        start = time.perf_counter()
        creates = [threads.submit(create_one, host, closing) for _ in range(BURST)]
        each = [create.result() for create in creates]
        all_ms = (time.perf_counter() - start) * 1000
    return joined(each) | {"all": [all_ms]}


def sequence(host: Host, _: Sandbox) -> Figures:
    """Create as many, one after the other, without waiting for the pool."""
    host.settle()
    with ExitStack() as closing:
        start = time.perf_counter()
        each = [create_one(host, closing) for _ in range(BURST)]
        all_ms = (time.perf_counter() - start) * 1000
    return joined(each) | {"all": [all_ms]}


def refill(host: Host, _: Sandbox) -> Figures:
    """Empty the pool; "caller" is the time until it is full again, for each VM that was made."""
    host.settle()
    before = host.pool()
    with ExitStack() as closing:
        start = time.perf_counter()
        for _claim in range(before.ready):
            closing.callback(Sandbox(client=host.client).close)
        after = host.wait_for_full_pool()
        took_ms = (time.perf_counter() - start) * 1000
    # All that were ready before are taken. The pool may have become larger meanwhile.
    return {"caller": [took_ms / max(1, after.ready)]}


def merge(host: Host, sandbox: Sandbox) -> Figures:
    """Put a child in its parent's place."""
    [winner] = sandbox.fork()
    print_one(winner)
    host.settle()
    with host.measured() as figures:
        sandbox.merge_into(winner)
    return figures


def destroy(host: Host, _: Sandbox) -> Figures:
    """Destroy a sandbox that has run code."""
    sandbox = Sandbox(client=host.client)
    print_one(sandbox)
    host.settle()
    with host.measured() as figures:
        sandbox.close()
    return figures


def upload(host: Host, sandbox: Sandbox) -> Figures:
    """Write a file."""
    with host.measured() as figures:
        sandbox.upload(_FILE, _FILE_PATH)
    return figures


def download(host: Host, sandbox: Sandbox) -> Figures:
    """Read the file that was written first."""
    sandbox.upload(_FILE, _FILE_PATH)
    with host.measured(streams=True) as figures:
        content = sandbox.download(_FILE_PATH)
    if content != _FILE:
        raise PodflareError("A file came back as another one")
    return figures


def upload_long(host: Host, sandbox: Sandbox) -> Figures:
    """Write a file that is longer than all buffers on its way."""
    content = _FILE * (LONG_FILE_LEN // FILE_LEN)
    with host.measured() as figures:
        sandbox.upload(content, _LONG_FILE_PATH)
    return figures


def download_long(host: Host, sandbox: Sandbox) -> Figures:
    """Read such a file part by part, and keep none of it."""
    sandbox.upload(_FILE * (LONG_FILE_LEN // FILE_LEN), _LONG_FILE_PATH)
    with host.measured(streams=True) as figures, sandbox.files.stream(_LONG_FILE_PATH) as parts:
        length = sum(len(part) for part in parts)
    if length != LONG_FILE_LEN:
        raise PodflareError(f"A file of {LONG_FILE_LEN} bytes came back with {length}")
    return figures


def disk_sync(_: Host, sandbox: Sandbox) -> Figures:
    """Let the guest write a block and sync it; it measures itself."""
    code = f"{_SYNC_TIME}\nprint(sync_times(4096, {_SYNCS}))"
    return {"guest": [float(ms) for ms in json.loads(output(sandbox, code))]}


def disk_write(_: Host, sandbox: Sandbox) -> Figures:
    """Let the guest write a long file and sync it; it measures itself."""
    code = f"{_SYNC_TIME}\nprint(sync_times({LONG_FILE_LEN}, 1))"
    return {"guest": [float(ms) for ms in json.loads(output(sandbox, code))]}


def checkpoint(host: Host, _: Sandbox) -> Figures:
    """Keep the state of a sandbox that has run code."""
    with host.sandbox() as sandbox:
        print_one(sandbox)
        host.settle()
        with host.measured() as figures:
            kept = sandbox.checkpoint()
        # It would outlive its sandbox.
        kept.delete()
    return figures


def restore(host: Host, _: Sandbox) -> Figures:
    """Go back to a state that was kept."""
    with host.sandbox() as sandbox:
        print_one(sandbox)
        with sandbox.checkpoint() as kept:
            host.settle()
            with host.measured() as figures:
                sandbox.restore(kept)
    return figures


def freeze(host: Host, _: Sandbox) -> Figures:
    """Write a sandbox that has run code to the disk."""
    with host.sandbox() as sandbox:
        print_one(sandbox)
        host.settle()
        with host.measured() as figures:
            space = sandbox.freeze()
    space.delete()
    return figures


def resume(host: Host, _: Sandbox) -> Figures:
    """Go on with a sandbox from the disk, whose files are in the page cache."""
    with host.sandbox() as sandbox:
        print_one(sandbox)
        space = sandbox.freeze()
    with space.resume(keep=True) as first:
        print_one(first)
    host.settle()
    with host.measured() as figures:
        resumed = space.resume(keep=True)
    with resumed:
        begun = time.perf_counter()
        print_one(resumed)
        figures["print"] = [(time.perf_counter() - begun) * 1000]
        with host.measured() as forked:
            [child] = resumed.fork(1)
        child.close()
        figures["fork pause"] = forked["pause"]
    space.delete()
    return figures


def print_one(sandbox: Sandbox) -> None:
    """Run the least code that answers."""
    answer = output(sandbox, "print(1)")
    if answer != "1":
        raise PodflareError(f"print(1) answered {answer!r}")


def output(sandbox: Sandbox, code: str, *, bash: bool = False) -> str:
    """Run code that must not fail, and return what it printed."""
    result = sandbox.run_code(code, "bash" if bash else "python")
    if not result.ok:
        raise PodflareError(f"{code!r} failed: {result}")
    return result.stdout


def create_one(host: Host, closing: ExitStack) -> Figures:
    """Create a sandbox that is closed later; may be called by many threads."""
    with host.measured() as figures:
        sandbox = Sandbox(client=host.client)
    closing.callback(sandbox.close)
    return figures


def close_all(sandboxes: list[Sandbox]) -> None:
    """Close sandboxes, several at a time."""
    with ThreadPoolExecutor(_CLOSERS) as threads:
        list(threads.map(Sandbox.close, sandboxes))


def joined(creates: list[Figures]) -> Figures:
    """Put the figures of many creates together."""
    each = [ms for figures in creates for ms in figures["caller"]]
    return {"each": each, "host": [ms for figures in creates for ms in figures.get("host", [])]}


@dataclass(frozen=True)
class Operation:
    """Something to measure.

    Attributes:
        rarity: It is measured so many times less often than what is cheap.
    """

    name: str
    sample: Callable[[Host, Sandbox], Figures]
    rarity: int = 1

    def count(self, n: int) -> int:
        """Return how often it is measured if what is cheap is measured n times."""
        return max(2, n // self.rarity)


# The names that other modules use.
HTTP_ANSWER = "floor: loopback HTTP answer"
PING = "floor: vsock ping"
PYTHON = "floor: Python's own print(1)"
CREATE = "create, pool hit"
CREATE_AND_RUN = "create → first print(1)"
RUN_PYTHON = "hot print(1)"
RUN_BASH = "hot bash true"
RUN_AFTER_FORK = "print(1) right after a fork, in the source"
FORK_1, FORK_5, FORK_32 = (f"fork({n})" for n in (1, 5, 32))
BURST_CREATE = f"{BURST} creates at once"
SEQUENCE_CREATE = f"{BURST} creates in a row"
REFILL = "pool refill"
MERGE = "merge_into"
DESTROY = "destroy"
UPLOAD = "upload 256 KB"
DOWNLOAD = "download 256 KB"
UPLOAD_LONG = "upload 64 MiB"
DOWNLOAD_LONG = "download 64 MiB"
DISK_SYNC = "disk: 4 KiB written and synced"
DISK_WRITE = "disk: 64 MiB written and synced"
CHECKPOINT = "checkpoint"
RESTORE = "restore"
FREEZE = "freeze into a Space"
RESUME = "resume a Space"

OPERATIONS = (
    Operation(HTTP_ANSWER, http_answer),
    Operation(PING, ping),
    Operation(PYTHON, python_own_time, rarity=10),
    Operation(CREATE, create),
    Operation(CREATE_AND_RUN, create_and_run),
    Operation(RUN_PYTHON, run_python),
    Operation(RUN_BASH, run_bash),
    Operation(RUN_AFTER_FORK, run_after_fork, rarity=2),
    Operation(FORK_1, fork_and_run(1)),
    Operation(FORK_5, fork_and_run(5), rarity=2),
    Operation(FORK_32, fork_and_run(32), rarity=10),
    Operation(BURST_CREATE, burst, rarity=20),
    Operation(SEQUENCE_CREATE, sequence, rarity=20),
    Operation(REFILL, refill, rarity=5),
    Operation(MERGE, merge, rarity=2),
    Operation(DESTROY, destroy),
    Operation(UPLOAD, upload),
    Operation(DOWNLOAD, download),
    Operation(UPLOAD_LONG, upload_long, rarity=20),
    Operation(DOWNLOAD_LONG, download_long, rarity=20),
    Operation(DISK_SYNC, disk_sync, rarity=20),
    Operation(DISK_WRITE, disk_write, rarity=20),
    Operation(CHECKPOINT, checkpoint, rarity=5),
    Operation(RESTORE, restore, rarity=5),
    Operation(FREEZE, freeze, rarity=5),
    Operation(RESUME, resume, rarity=5),
)

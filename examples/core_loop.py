"""The core loop: set up once, fork, try a different plan in each copy, keep the best.

It looks for a short round trip through 90 cities. Needs the `podflare` package and a running host, by default
on this machine; PODFLARE_HOSTD_URL names another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from podflare import PodflareError, Sandbox

SETUP = """
    import json, math, os, random, subprocess

    cities = [(random.random(), random.random()) for _ in range(90)]
    distance = [[math.dist(a, b) for b in cities] for a in cities]

    def length(tour):
        return sum(distance[a][b] for a, b in zip(tour, tour[1:] + tour[:1]))

    def nearest_next(start):
        tour, left = [start], set(range(len(cities))) - {start}
        while left:
            tour.append(min(left, key=distance[tour[-1]].__getitem__))
            left.remove(tour[-1])
        return tour

    def uncross(tour):
        for i in range(1, len(tour) - 1):
            for j in range(i + 2, len(tour) + 1):
                turned = tour[:i] + tour[i:j][::-1] + tour[j:]
                if length(turned) < length(tour):
                    tour = turned
        return tour

    tour = list(range(len(cities)))
    watcher = subprocess.Popen(["sleep", "1000000"])
    log = open("/root/log.txt", "w", buffering=1)
    print("opened before the fork", file=log)
"""

PLANS = {
    "shuffle 2,000 times": "tour = min((random.sample(tour, len(tour)) for _ in range(2000)), key=length)",
    "nearest next": "tour = nearest_next(0)",
    "nearest next, best start": "tour = min((nearest_next(start) for start in tour), key=length)",
    "uncross": "tour = uncross(tour)",
    "nearest next, uncross": "tour = uncross(nearest_next(0))",
}

REPORT = """
    print(f"a tour of length {length(tour):.2f}", file=log)
    watched = "running" if watcher.poll() is None else "gone"
    print(json.dumps([length(tour), os.uname().nodename, os.urandom(4).hex(), watched]))
"""


@dataclass
class Step:
    """What a step of the loop has to tell."""

    answer: str = ""


@dataclass
class Attempt:
    """One plan's result, and what its sandbox has of its own."""

    plan: str
    ms: float
    length: float
    hostname: str
    random: str
    background: str


def main() -> None:
    """Go through the loop once."""
    with ExitStack() as closing:
        with step("create a sandbox") as told:
            parent = closing.enter_context(Sandbox())
            told.answer = parent.id
        with step("python, twice") as told:
            run(parent, "x = 41")
            told.answer = "x + 1 is " + run(parent, "x + 1")
            check(told.answer.endswith("42"), "the variable stays from call to call")
        with step("bash") as told:
            told.answer = parent.run_code("uname -sr", "bash").stdout
        with step("expensive set-up, once") as told:
            run(parent, SETUP)
            before = float(run(parent, "length(tour)"))
            told.answer = f"90 cities, a tour of length {before:.2f}, a background process"

        with step(f"fork({len(PLANS)})") as told:
            children = parent.fork(len(PLANS))
            for child in children:
                closing.callback(child.close)
            told.answer = " ".join(f"{child.id[:10]}…" for child in children)
        with step("a plan in each, at once") as told, ThreadPoolExecutor(len(children)) as threads:
            attempts = list(threads.map(attempt, children, PLANS))
            best = min(attempts, key=lambda tried: tried.length)
            told.answer = f"the best is {best.plan!r}"
        check(len({tried.hostname for tried in attempts}) == len(PLANS), "every child has its own hostname")
        check(len({tried.random for tried in attempts}) == len(PLANS), "every child has its own randomness")
        check({tried.background for tried in attempts} == {"running"}, "background processes are forked too")

        with step("diff two of them") as told:
            diff = children[0].diff(children[1], ["/root"])
            told.answer = f"{diff['modified']} modified, {diff['added']} added"
            check("/root/log.txt" in diff["modified"], "each child went on with its own log")
        with step("merge the winner") as told:
            parent.merge_into(children[attempts.index(best)])
            after = float(run(parent, "length(tour)"))
            told.answer = f"the parent's tour is now {after:.2f} long, not {before:.2f}"
            check(after == best.length, "the parent has the winner's memory")
            log = parent.download("/root/log.txt").decode()
            check(
                log == f"opened before the fork\na tour of length {after:.2f}\n",
                "the parent has the winner's disk",
            )
        with step("close all"):
            closing.close()
    print_table(attempts, best)


def attempt(child: Sandbox, plan: str) -> Attempt:
    """Try a plan in a child, which has the cities and the functions already."""
    start = time.perf_counter()
    run(child, PLANS[plan])
    ms = (time.perf_counter() - start) * 1000
    return Attempt(plan, ms, *json.loads(run(child, REPORT)))


def run(sandbox: Sandbox, code: str) -> str:
    """Run Python that must succeed, and return what it printed."""
    result = sandbox.run_code(code)
    check(result.ok, f"the code ended with {result.exit_code}:\n{result.stderr}")
    return result.stdout


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Print one line for a step: its name, its milliseconds, its answer."""
    told = Step()
    start = time.perf_counter()
    yield told
    ms = (time.perf_counter() - start) * 1000
    print(f"{name:<24}{ms:10.1f} ms   {told.answer}"[:100].rstrip())


def print_table(attempts: list[Attempt], best: Attempt) -> None:
    """Print what the children found, and what each has of its own."""
    print(f"\n{'plan':<26}{'tour':>7}{'ms':>10}   {'hostname':<20}{'random':<11}background")
    for tried in attempts:
        private = f"{tried.hostname[:18]:<20}{tried.random:<11}{tried.background}"
        mark = "   ← merged" if tried is best else ""
        print(f"{tried.plan:<26}{tried.length:>7.2f}{tried.ms:>10.1f}   {private}{mark}")


def check(holds: bool, what: str) -> None:
    """End the demo, with every sandbox closed, if something is not as it must be."""
    if not holds:
        sys.exit(f"FAILED: {what}")


if __name__ == "__main__":
    try:
        main()
    except PodflareError as error:
        sys.exit(f"FAILED: {error}")

"""Forks: what children inherit, what they do not share, how deep it goes."""

import hashlib
from collections.abc import Callable
from contextlib import closing

import pytest

from podflare import Client, Sandbox

from .vocabulary import assert_works, bash, forked, in_parallel, python, wait_until

pytestmark = pytest.mark.live

GENERATIONS = 10
TICKS = "/root/ticks"


def test_children_have_the_parents_variables_and_files(sandbox: Sandbox) -> None:
    python(
        sandbox,
        "import json\nx = 42\ndef double(n): return 2 * n\nopen('/root/file', 'w').write('inherited')",
    )
    with forked(sandbox, 5) as children:
        assert len({child.id for child in children} | {sandbox.id}) == 6
        code = "print(json.dumps([double(x), open('/root/file').read()]))"
        assert in_parallel(lambda child: python(child, code), children) == ['[84, "inherited"]'] * 5


def test_a_file_opened_before_the_fork_continues_in_each_child(sandbox: Sandbox) -> None:
    python(sandbox, "log = open('/root/log', 'w'); log.write('before\\n'); log.flush()")
    with forked(sandbox, 5) as children:
        for number, child in enumerate(children):
            python(child, f"log.write('child {number}\\n'); log.flush()")
        logs = in_parallel(lambda child: bash(child, "cat /root/log"), children)
        assert logs == [f"before\nchild {number}" for number in range(5)]
    python(sandbox, "log.write('parent\\n'); log.close()")
    assert bash(sandbox, "cat /root/log") == "before\nparent"


def test_unflushed_output_of_a_file_is_inherited_too(sandbox: Sandbox) -> None:
    python(sandbox, "log = open('/root/log', 'w'); log.write('in the buffer')")
    with forked(sandbox) as [child]:
        assert python(child, "log.close(); print(open('/root/log').read())") == "in the buffer"
    assert python(sandbox, "print(repr(open('/root/log').read()))") == "''"


def test_a_process_of_the_repl_runs_on_in_each_child(sandbox: Sandbox) -> None:
    python(sandbox, "import subprocess; sleeper = subprocess.Popen(['sleep', '100000'])")
    with forked(sandbox, 5) as children:
        assert in_parallel(lambda child: python(child, "print(sleeper.poll())"), children) == ["None"] * 5
        assert python(children[0], "sleeper.kill(); print(sleeper.wait())") == "-9"
        assert python(children[1], "print(sleeper.poll())") == "None"
    assert python(sandbox, "print(sleeper.poll())") == "None"


def test_a_background_process_of_bash_runs_on_in_each_child(sandbox: Sandbox) -> None:
    loop = f"n=0; while :; do n=$((n + 1)); echo $n > {TICKS}.new; mv {TICKS}.new {TICKS}; sleep 0.1; done"
    bash(sandbox, f"nohup bash -c '{loop}' < /dev/null > /dev/null 2>&1 &")
    wait_until(lambda: ticks(sandbox) >= 3, "the loop runs")
    with forked(sandbox, 5) as children:
        assert min(in_parallel(ticks, children)) >= 3
        in_parallel(lambda child: assert_counts_on(lambda: ticks(child)), children)
    assert_counts_on(lambda: ticks(sandbox))


def ticks(sandbox: Sandbox) -> int:
    return int(bash(sandbox, f"cat {TICKS} 2>/dev/null || echo 0"))


def test_a_thread_of_the_repl_runs_on_in_each_child(sandbox: Sandbox) -> None:
    python(
        sandbox,
        """
        import threading, time
        count = 0
        def counting():
            global count
            while True:
                count += 1
                time.sleep(0.05)
        threading.Thread(target=counting, daemon=True).start()
        """,
    )
    with forked(sandbox, 2) as children:
        in_parallel(lambda child: assert_counts_on(lambda: int(python(child, "print(count)"))), children)


def assert_counts_on(counter: Callable[[], int]) -> None:
    seen = counter()
    wait_until(lambda: counter() > seen, f"the counter goes on from {seen}")


def test_children_diverge_and_the_parent_sees_nothing_of_it(sandbox: Sandbox) -> None:
    python(sandbox, "x = 0; open('/root/file', 'w').write('parent')")
    with forked(sandbox, 5) as children:
        for number, child in enumerate(children, start=1):
            python(child, f"x = {number}; open('/root/file', 'w').write('child {number}')")
        code = "print(x, open('/root/file').read())"
        assert [python(child, code) for child in children] == [f"{n} child {n}" for n in range(1, 6)]
        assert python(sandbox, code) == "0 parent"


def test_the_parent_goes_on_and_children_see_nothing_of_it(sandbox: Sandbox) -> None:
    python(sandbox, "x = 'before'")
    with forked(sandbox, 2) as children:
        python(sandbox, "x = 'after'; open('/root/after', 'w').close()")
        assert [
            python(child, "import os; print(x, os.path.exists('/root/after'))") for child in children
        ] == [
            "before False",
            "before False",
        ]


def test_a_child_outlives_its_parent_and_its_siblings(client: Client) -> None:
    with Sandbox(client=client) as parent:
        python(parent, "x = 42")
        survivor, sibling = parent.fork(2)
        sibling.close()
    with survivor:
        assert python(survivor, "print(x)") == "42"
        assert_works(survivor)


def test_children_can_be_forked_again(sandbox: Sandbox) -> None:
    python(sandbox, "path = ['parent']")
    with forked(sandbox, 2) as children:
        python(children[0], "path.append('child')")
        with forked(children[0], 2) as grandchildren:
            python(grandchildren[0], "path.append('grandchild')")
            assert python(grandchildren[0], "print(*path)") == "parent child grandchild"
            assert python(grandchildren[1], "print(*path)") == "parent child"
        assert python(children[1], "print(*path)") == "parent"


def test_generations_are_counted_and_parents_named(sandbox: Sandbox, client: Client) -> None:
    with forked(sandbox) as [child]:
        parent_info, child_info = client.sandbox_info(sandbox.id), client.sandbox_info(child.id)
        assert child_info["generation"] == parent_info["generation"] + 1
        assert child_info["parent"] == sandbox.id


# A generation's content: as large as its length says, and different in every page.
CONTENT = """
import hashlib
def content(generation, length):
    return hashlib.shake_128(str(generation).encode()).digest(length)
def digest(data):
    return hashlib.sha256(data).hexdigest()
"""
ROLLING_LEN = 8 << 20
KEPT_LEN = 1 << 20


def expected_digest(generation: int, length: int) -> str:
    content = hashlib.shake_128(str(generation).encode()).digest(length)
    return hashlib.sha256(content).hexdigest()


def test_memory_and_disk_are_right_ten_generations_deep(client: Client) -> None:
    current = Sandbox(client=client)
    try:
        python(current, CONTENT)
        python(current, f"rolling = bytearray({ROLLING_LEN}); kept = []")
        for generation in range(GENERATIONS + 1):
            python(
                current,
                f"""
                rolling[:] = content({generation}, {ROLLING_LEN})
                kept.append(bytearray(content({generation}, {KEPT_LEN})))
                with open('/root/rolling', 'r+b' if {generation} else 'wb') as file:
                    _ = file.write(rolling)
                with open('/root/kept-{generation}', 'wb') as file:
                    _ = file.write(kept[-1])
                """,
            )
            [child] = current.fork()
            # Without its ancestor, which was in the middle of its own life.
            python(current, "rolling[:] = bytes(len(rolling)); open('/root/rolling', 'wb').close()")
            current.close()
            current = child
            check_generation(current, generation)
    finally:
        current.close()


def check_generation(sandbox: Sandbox, generation: int) -> None:
    rolling = expected_digest(generation, ROLLING_LEN)
    assert python(sandbox, "print(digest(rolling))") == rolling
    assert bash(sandbox, "sha256sum < /root/rolling").split()[0] == rolling
    kept = [expected_digest(earlier, KEPT_LEN) for earlier in range(generation + 1)]
    assert python(sandbox, "for data in kept: print(digest(data))").split("\n") == kept
    listed = bash(sandbox, f"cd /root && for n in $(seq 0 {generation}); do sha256sum < kept-$n; done")
    assert [line.split()[0] for line in listed.split("\n")] == kept


def test_eight_children_have_randomness_of_their_own(sandbox: Sandbox) -> None:
    code = """
        import os, random, secrets as s, ssl, uuid
        print(os.urandom(16).hex(), uuid.uuid4(), random.random(), s.token_hex(), ssl.RAND_bytes(16).hex())
    """
    python(sandbox, code)
    with forked(sandbox, 8) as children:
        drawn = [line.split() for line in in_parallel(lambda sbx: python(sbx, code), [sandbox, *children])]
        kernel = in_parallel(lambda sbx: bash(sbx, "head -c 16 /dev/urandom | base64"), [sandbox, *children])
    for values in [*zip(*drawn, strict=True), kernel]:
        assert len(set(values)) == 9, values


def test_children_of_successive_forks_have_randomness_of_their_own(sandbox: Sandbox) -> None:
    code = "import os, random; print(os.urandom(16).hex(), random.random())"
    python(sandbox, code)
    drawn = []
    for _ in range(3):
        with forked(sandbox) as [child]:
            drawn.append(python(child, code).split())
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == 3, values


# A child cannot be told when to draw: what is sent to it waits for the call that it has inherited. Its worker
# therefore goes by what it sees: the state of `random` changes, or does not long after the host name has.
DRAW_WHILE_THE_MAIN_THREAD_WAITS = """
    import os, random, threading, time

    def draw():
        global drawn
        state, hostname, deadline = random.getstate(), os.uname().nodename, float("inf")
        while random.getstate() == state and time.monotonic() < deadline:
            if os.uname().nodename != hostname:
                deadline = min(deadline, time.monotonic() + 30)
            time.sleep(0.02)
        drawn = random.random()

    worker = threading.Thread(target=draw)
    worker.start()
    print("joining")
    worker.join()
"""


def test_children_of_a_repl_that_waits_for_a_thread_have_randomness_of_their_own(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream(DRAW_WHILE_THE_MAIN_THREAD_WAITS)) as stream:
        assert next(stream).data == "joining"
        with forked(sandbox, 3) as children:
            drawn = in_parallel(lambda child: python(child, "print(drawn)"), children)
    assert len(set(drawn)) == 3, drawn


def test_a_stream_of_the_parent_is_not_cut_by_a_fork(sandbox: Sandbox) -> None:
    stream = sandbox.run_code_stream(
        "import time\nfor i in range(100):\n    print(i, flush=True)\n    time.sleep(0.1)\n"
    )
    received = [next(stream)]
    with forked(sandbox, 2) as children:
        received += stream
        assert [event.data for event in received] == [*map(str, range(100)), 0]
        assert [event.seq for event in received] == list(range(101))
        # The copies of the loop ran to their ends too, without a reader.
        assert in_parallel(lambda child: python(child, "print(i)"), children) == ["99", "99"]


def test_forks_may_be_asked_for_at_the_same_time(sandbox: Sandbox) -> None:
    python(sandbox, "x = 42")
    families = in_parallel(lambda _: sandbox.fork(2), range(3))
    children = [child for family in families for child in family]
    try:
        assert len({child.id for child in children}) == 6
        assert in_parallel(lambda child: python(child, "print(x)"), children) == ["42"] * 6
    finally:
        for child in children:
            child.close()


def test_every_copy_has_a_hostname_of_its_own(sandbox: Sandbox) -> None:
    with forked(sandbox, 3) as children:
        hostnames = [bash(copy, "cat /proc/sys/kernel/hostname") for copy in [sandbox, *children]]
        assert len(set(hostnames)) == 4, hostnames
        assert python(children[0], "import socket; print(socket.gethostname())") == hostnames[1]

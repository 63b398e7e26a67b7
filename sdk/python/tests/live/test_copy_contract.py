"""What a copy gets of its own: randomness, time, name. docs/copies.md has the whole contract."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from podflare import Client, Sandbox

from .vocabulary import assert_works, bash, forked, in_parallel, python, wait_until

pytestmark = pytest.mark.live

CHILDREN_MAX = 32
GENERATIONS = 10

# How far a copy's wall clock may be from the host's.
CLOCK_ERROR_MAX_MS = 100.0

DRAWING = """
    import json, os, random, secrets, ssl, tempfile, uuid

    context = ssl.create_default_context()

    def client_hello():
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="example.org")
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return outgoing.read().hex()

    def draw():
        return {
            "getrandom": os.getrandom(16).hex(),
            "/dev/urandom": open("/dev/urandom", "rb").read(16).hex(),
            "random": random.random(),
            "secrets": secrets.token_hex(),
            "uuid4": str(uuid.uuid4()),
            "OpenSSL": ssl.RAND_bytes(16).hex(),
            "tempfile": tempfile.mktemp(),
            "host name": os.uname().nodename,
            "machine id": open("/etc/machine-id").read(),
            "client hello": client_hello(),
        }
"""


class Family(NamedTuple):
    """A source, what it drew before its forks, and its copies, of two forks."""

    source: Sandbox
    drawn_before: dict[str, Any]
    copies: list[Sandbox]
    pool_members: list[Sandbox]

    @property
    def all(self) -> list[Sandbox]:
        return [self.source, *self.copies, *self.pool_members]


@pytest.fixture(scope="module")
def family(client: Client) -> Iterator[Family]:
    with ExitStack() as closing:
        source = closing.enter_context(Sandbox(client=client))
        python(source, DRAWING)
        # All generators are in use before there is a copy, and the kernel has chosen its boot id.
        before = drawn_by(source)
        boot_id(source)
        copies = [*closing.enter_context(forked(source, 2)), *closing.enter_context(forked(source))]
        members = [closing.enter_context(Sandbox(client=client)) for _ in range(2)]
        in_parallel(lambda member: python(member, DRAWING), members)
        yield Family(source, before, copies, members)


def drawn_by(sandbox: Sandbox) -> dict[str, Any]:
    return with_client_hello_parts(json.loads(python(sandbox, "print(json.dumps(draw()))")))


def with_client_hello_parts(drawn: dict[str, Any]) -> dict[str, Any]:
    return {**drawn, **client_hello_parts(bytes.fromhex(drawn.pop("client hello")))}


def client_hello_parts(record: bytes) -> dict[str, str]:
    """What is random in a TLS ClientHello (RFC 8446, section 4.1.2), alone in its record."""
    hello = record[9:]
    session_id_end = 35 + hello[34]
    parts = {"client random": hello[2:34].hex(), "session id": hello[35:session_id_end].hex()}
    at = session_id_end + 2 + int.from_bytes(hello[session_id_end : session_id_end + 2], "big")
    at += 1 + hello[at] + 2
    while at < len(hello):
        kind, length = (int.from_bytes(hello[i : i + 2], "big") for i in (at, at + 2))
        at += 4 + length
        if kind == 51:
            parts["key share"] = hello[at - length : at].hex()
    return parts


def assert_all_differ(drawn: list[dict[str, Any]]) -> None:
    for source in drawn[0]:
        values = [draws[source] for draws in drawn]
        assert all(values), f"{source}: nothing was drawn"
        assert len(set(values)) == len(values), f"{source}: {values}"


def test_a_source_its_copies_and_pool_members_draw_nothing_twice(family: Family) -> None:
    drawn = [family.drawn_before, *in_parallel(drawn_by, family.all), drawn_by(family.source)]
    # The source keeps its name, which is not drawn.
    names = [[draws.pop(name) for draws in drawn] for name in ("host name", "machine id")]
    assert_all_differ(drawn)
    for source_before, *others, source_after in names:
        assert source_before == others[0] == source_after
        assert len(set(others)) == len(others), others


def test_a_new_process_of_a_copy_draws_its_own(family: Family) -> None:
    code = "import random, ssl; print(random.random(), ssl.RAND_bytes(8).hex())"
    drawn = in_parallel(lambda copy: bash(copy, f"python3 -c '{code}'").split(), family.all)
    assert_all_differ([{"random": random, "OpenSSL": openssl} for random, openssl in drawn])


def test_numpy_is_renewed(sandbox: Sandbox) -> None:
    if python(sandbox, "import importlib.util as u; print(u.find_spec('numpy'))") == "None":
        pytest.skip("this template has no numpy; the agent's own tests have a stand-in")
    python(sandbox, "import numpy as np; np.random.seed(7)")
    with forked(sandbox, 2) as children:
        drawn = in_parallel(lambda child: python(child, "print(np.random.random())"), children)
    assert drawn[0] != drawn[1]


# Its generators have a state that it shares with every copy, until it learns that it is one.
WATCHING = """
import ctypes, os, random, time
IN_MODIFY = 2
libc = ctypes.CDLL(None)
watch = libc.inotify_init()
assert libc.inotify_add_watch(watch, b"/etc/machine-id", IN_MODIFY) >= 0
random.seed(7)
open("/dev/shm/watching", "w").close()
os.read(watch, 4096)
random.seed()
open("/dev/shm/drawn.new", "w").write(str(random.random()))
os.rename("/dev/shm/drawn.new", "/dev/shm/drawn")
"""


def test_a_program_that_watches_the_machine_id_learns_that_it_was_copied(sandbox: Sandbox) -> None:
    sandbox.upload(WATCHING.encode(), "/root/watching.py")
    bash(sandbox, "nohup python3 /root/watching.py < /dev/null > /dev/null 2>&1 &")
    wait_for(sandbox, "/dev/shm/watching")
    with forked(sandbox, 3) as children:
        for child in children:
            wait_for(child, "/dev/shm/drawn")
        drawn = in_parallel(lambda child: bash(child, "cat /dev/shm/drawn"), children)
        assert len(set(drawn)) == 3, drawn
    assert not exists(sandbox, "/dev/shm/drawn"), "the source is no copy"


def wait_for(sandbox: Sandbox, path: str) -> None:
    wait_until(lambda: exists(sandbox, path), f"{path} is there")


def exists(sandbox: Sandbox, path: str) -> bool:
    return bash(sandbox, f"test -e {path} && echo yes || echo no") == "yes"


def test_a_copys_name_resolves(family: Family) -> None:
    def names(sandbox: Sandbox) -> list[str]:
        return bash(sandbox, "hostname; getent hosts $(hostname); cat /etc/hostname").split("\n")

    for hostname, resolved, of_template in in_parallel(names, family.all):
        assert hostname in resolved.split()
        assert of_template == "sandbox"


def test_a_boot_id_that_was_read_is_inherited_and_pool_members_have_their_own(family: Family) -> None:
    inherited = in_parallel(boot_id, [family.source, *family.copies])
    assert len(set(inherited)) == 1, inherited
    assert len({inherited[0], *in_parallel(boot_id, family.pool_members)}) == 3


def boot_id(sandbox: Sandbox) -> str:
    return bash(sandbox, "cat /proc/sys/kernel/random/boot_id")


def test_streams_of_copies_never_mix(family: Family) -> None:
    code = "for i in range(500): print(os.uname().nodename, i)"

    def stream(sandbox: Sandbox) -> None:
        hostname = bash(sandbox, "hostname")
        lines = [event.data for event in sandbox.run_code_stream(code) if event.type == "stdout"]
        assert lines == [f"{hostname} {i}" for i in range(500)]

    in_parallel(stream, family.all)


CALLING_THE_AGENT = """
import socket
VMADDR_CID_LOCAL, GUEST = 1, 3
for cid in (VMADDR_CID_LOCAL, GUEST):
    call = socket.socket(socket.AF_VSOCK)
    call.settimeout(60)
    call.connect((cid, 5555))
    try:
        print(call.recv(1))
    except ConnectionError:
        print(b"")
"""


def test_the_agent_hears_nobody_but_the_host(sandbox: Sandbox) -> None:
    bash(sandbox, "modprobe vsock_loopback")
    sandbox.upload(CALLING_THE_AGENT.encode(), "/tmp/calling.py")
    for user in (0, 65534):
        heard = bash(sandbox, f"setpriv --reuid {user} --clear-groups python3 /tmp/calling.py")
        assert heard == "b''\nb''", f"user {user}"
    assert_works(sandbox)


def test_no_program_reaches_the_host_by_vsock(sandbox: Sandbox) -> None:
    code = """
        import socket
        for port in (1, 1024, 5555):
            try:
                socket.socket(socket.AF_VSOCK).connect((socket.VMADDR_CID_HOST, port))
            except ConnectionResetError:
                print("refused")
    """
    assert python(sandbox, code) == "refused\nrefused\nrefused"


def clock_error_ms(sandbox: Sandbox) -> float:
    """How far a wall clock is outside of the moment in which it was read, by the host's clock."""
    earliest = [event.ts for event in sandbox.run_code_stream("import time")][-1]
    shown = next(sandbox.run_code_stream("print(time.time_ns())"))
    clock_ms = int(shown.data) / 1e6
    return max(earliest - clock_ms, clock_ms - shown.ts, 0.0)


def test_the_wall_clock_of_every_copy_is_right(family: Family) -> None:
    errors = [clock_error_ms(sandbox) for sandbox in family.all]
    assert max(errors) <= CLOCK_ERROR_MAX_MS, errors


# Writes the least step of each clock so far, and how often it has looked.
STEPPING = """
import itertools, os, time
clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
last = [time.clock_gettime_ns(clock) for clock in clocks]
least = 0
for looks in itertools.count():
    now = [time.clock_gettime_ns(clock) for clock in clocks]
    least = min(least, *(a - b for a, b in zip(now, last)))
    last = now
    if looks % 20 == 0:
        open("/dev/shm/steps.new", "w").write(f"{looks} {least}")
        os.rename("/dev/shm/steps.new", "/dev/shm/steps")
    time.sleep(0.001)
"""


def test_clocks_never_run_backwards_ten_generations_deep(client: Client) -> None:
    current = Sandbox(client=client)
    try:
        current.upload(STEPPING.encode(), "/root/stepping.py")
        bash(current, "nohup python3 /root/stepping.py < /dev/null > /dev/null 2>&1 &")
        wait_for(current, "/dev/shm/steps")
        for _ in range(GENERATIONS):
            [child] = current.fork()
            current.close()
            current = child
            assert_steps_on(current)
        assert clock_error_ms(current) <= CLOCK_ERROR_MAX_MS
    finally:
        current.close()


def assert_steps_on(sandbox: Sandbox) -> None:
    looks, _ = steps(sandbox)
    wait_until(lambda: steps(sandbox)[0] > looks, "the clocks are watched on")
    assert steps(sandbox)[1] == 0


def steps(sandbox: Sandbox) -> tuple[int, int]:
    looks, least = bash(sandbox, "cat /dev/shm/steps").split()
    return int(looks), int(least)


def test_a_sleep_that_a_fork_meets_ends_in_all_and_not_too_soon(sandbox: Sandbox) -> None:
    code = "import time; t = time.monotonic(); time.sleep(3); print(time.monotonic() - t)"
    begun = time.monotonic()
    bash(
        sandbox, f"(python3 -c '{code}' > /root/slept.new; mv /root/slept.new /root/slept) > /dev/null 2>&1 &"
    )
    with forked(sandbox, 2) as children:
        for copy in [sandbox, *children]:
            wait_for(copy, "/root/slept")
            assert 3 <= float(bash(copy, "cat /root/slept")) <= time.monotonic() - begun


def test_32_children_have_the_right_state_and_nothing_in_common_that_is_random(sandbox: Sandbox) -> None:
    python(
        sandbox,
        """
        import hashlib, os
        content = os.urandom(2 << 20)
        open("/root/content", "wb").write(content)
        def checksums():
            on_disk = open("/root/content", "rb").read()
            return [hashlib.sha256(data).hexdigest() for data in (content, on_disk)]
        """,
    )
    python(sandbox, DRAWING)
    code = "print(json.dumps({**draw(), 'state': checksums()}))"
    state = json.loads(python(sandbox, code))["state"]
    with forked(sandbox, CHILDREN_MAX) as children:
        errors = [clock_error_ms(child) for child in children]
        assert max(errors) <= CLOCK_ERROR_MAX_MS, errors
        drawn = [
            json.loads(line) for line in in_parallel(lambda copy: python(copy, code), [sandbox, *children])
        ]
        assert [draws.pop("state") for draws in drawn] == [state] * (CHILDREN_MAX + 1)
        assert_all_differ([with_client_hello_parts(draws) for draws in drawn])

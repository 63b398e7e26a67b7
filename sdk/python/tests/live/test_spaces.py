"""Spaces: what was frozen goes on where it was, in a sandbox of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from podflare import Client, Sandbox, SandboxNotFoundError, Space, SpaceInfo, SpaceNotFoundError

from .vocabulary import assert_works, bash, forked, in_parallel, python, wait_until

pytestmark = pytest.mark.live

GENERATIONS = 3
CONTENT_LEN = 32 << 20
IDLE_SECONDS = 3
# A resumed sandbox would otherwise idle for no longer than the one that was frozen.
LONG_ENOUGH_SECONDS = 600


@contextmanager
def frozen(sandbox: Sandbox) -> Iterator[Space]:
    """Freeze, and delete what is left of it afterwards."""
    space = sandbox.freeze()
    try:
        yield space
    finally:
        space.delete()


HOLDING = """
    import json, os, subprocess

    os.makedirs("/root/project")
    os.chdir("/root/project")
    x = {"answer": 42}
    def double(n): return 2 * n
    open("file", "w").write("on the disk")
    log = open("log", "w")
    log.write("before\\n")
    log.flush()
    ticks = open("ticks", "a")
    ticker = subprocess.Popen(
        ["bash", "-c", "while :; do echo tick; sleep 0.1; done"],
        stdin=subprocess.DEVNULL, stdout=ticks, stderr=subprocess.DEVNULL,
    )
"""

HELD = """
    print(json.dumps([x["answer"], double(4), os.getcwd(), open("file").read(), ticker.poll()]))
"""

EXPECTED = [42, 8, "/root/project", "on the disk", None]


def ticks(sandbox: Sandbox) -> int:
    return int(python(sandbox, "print(os.path.getsize('/root/project/ticks'))"))


def assert_ticks_on(sandbox: Sandbox) -> None:
    seen = ticks(sandbox)
    wait_until(lambda: ticks(sandbox) > seen, f"the process goes on from {seen}")


def test_all_that_a_sandbox_held_comes_back(client: Client, sandbox: Sandbox) -> None:
    python(sandbox, HOLDING)
    assert_ticks_on(sandbox)
    seen = ticks(sandbox)
    generation = sandbox.info()["generation"]
    with frozen(sandbox) as space:
        assert_is_gone(client, sandbox)
        info = space.info()
        assert info in client.list_spaces()
        assert (info["sandbox"], info["generation"]) == (sandbox.id, generation)
        assert info["bytes"] > 0
        with space.resume() as resumed:
            assert resumed.id != sandbox.id
            assert json.loads(python(resumed, HELD)) == EXPECTED
            assert ticks(resumed) >= seen
            assert_ticks_on(resumed)
            python(resumed, "log.write('after\\n'); log.close()")
            assert bash(resumed, "cat /root/project/log") == "before\nafter"
            assert python(resumed, "ticker.kill(); print(ticker.wait())") == "-9"
            assert resumed.info()["renewed"]
            assert_works(resumed)
            assert not is_listed(client, space)


def is_listed(client: Client, space: Space) -> bool:
    return space.id in {info["id"] for info in client.list_spaces()}


def assert_is_gone(client: Client, sandbox: Sandbox) -> None:
    wait_until(lambda: sandbox.id not in {view["id"] for view in client.list_sandboxes()}, "it is gone")
    with pytest.raises(SandboxNotFoundError, match="it was frozen as spc_"):
        sandbox.run_code("1")
    sandbox.close()


WAITING = """
import os, time
print("begun", flush=True)
while not os.path.exists("/root/go"): time.sleep(0.1)
ended = "yes"
"""


def test_code_that_runs_is_told_of_and_goes_on_when_its_sandbox_is_resumed(sandbox: Sandbox) -> None:
    with closing(sandbox.run_code_stream(WAITING)) as stream:
        assert next(stream).data == "begun"
        with frozen(sandbox) as space:
            told, end = list(stream)
            assert told.data == f"the sandbox has ended: it was frozen as {space.id}"
            assert (end.type, end.data) == ("exit", 137)
            with space.resume() as resumed:
                [inherited] = resumed.execs()
                assert (inherited["inherited"], inherited["code"]) == (True, WAITING)
                resumed.upload(b"", "/root/go")
                assert python(resumed, "print(ended)") == "yes"
                assert_works(resumed)


def test_a_persistent_sandbox_freezes_by_itself(client: Client) -> None:
    with Sandbox(client=client, persistent=True, idle_timeout_seconds=IDLE_SECONDS) as sandbox:
        info = sandbox.info()
        assert (info["persistent"], info["idle_timeout_seconds"]) == (True, IDLE_SECONDS)
        python(sandbox, HOLDING)
        wait_until(lambda: spaces_of(client, sandbox) != [], "it has frozen")
        [space_info] = spaces_of(client, sandbox)
        try:
            assert space_info["idle_timeout_seconds"] == IDLE_SECONDS
            assert_is_gone(client, sandbox)
            with Sandbox.resume(
                space_info["id"], client=client, idle_timeout_seconds=LONG_ENOUGH_SECONDS
            ) as resumed:
                info = resumed.info()
                assert (info["persistent"], info["idle_timeout_seconds"]) == (False, LONG_ENOUGH_SECONDS)
                assert json.loads(python(resumed, HELD)) == EXPECTED
                assert_ticks_on(resumed)
        finally:
            client.delete_space(space_info["id"])


def spaces_of(client: Client, sandbox: Sandbox) -> list[SpaceInfo]:
    return [space for space in client.list_spaces() if space["sandbox"] == sandbox.id]


def test_a_space_is_resumed_once_and_is_gone_with_its_sandbox(client: Client, sandbox: Sandbox) -> None:
    with frozen(sandbox) as space:
        with space.resume() as resumed:
            for missing in (space.resume, space.info, lambda: space.resume(keep=True)):
                with pytest.raises(SpaceNotFoundError, match="it has been resumed"):
                    missing()
            # What goes on with it is not harmed.
            space.delete()
            assert_works(resumed)
        with pytest.raises(SpaceNotFoundError):
            Sandbox.resume(space.id, client=client)


def test_a_space_that_was_deleted_is_not_found(client: Client, sandbox: Sandbox) -> None:
    space = sandbox.freeze()
    space.delete()
    space.delete()
    for missing in (space.resume, space.info):
        with pytest.raises(SpaceNotFoundError):
            missing()
    assert not is_listed(client, space)


def test_a_space_that_is_kept_is_resumed_twice_at_once(sandbox: Sandbox) -> None:
    python(sandbox, "import os, random; x = os.urandom(16).hex(); random.random()")
    python(sandbox, "open('/root/file', 'w').write(x)")
    state = python(sandbox, "print(x)")
    draw = "print(os.urandom(16).hex(), random.random(), os.uname().nodename)"
    drawn_before = python(sandbox, draw).split()
    with frozen(sandbox) as space:
        resumed = in_parallel(lambda _: space.resume(keep=True), range(2))
        try:
            held = in_parallel(lambda copy: python(copy, "print(x, open('/root/file').read())"), resumed)
            assert held == [f"{state} {state}"] * 2
            drawn = [
                drawn_before,
                *(line.split() for line in in_parallel(lambda c: python(c, draw), resumed)),
            ]
            for values in zip(*drawn, strict=True):
                assert len(set(values)) == 3, values
            python(resumed[0], "x = 'of the first'; open('/root/file', 'w').write(x)")
            assert python(resumed[1], "print(x, open('/root/file').read())") == f"{state} {state}"
            # It is as it was, whatever its sandboxes do.
            resumed.append(space.resume(keep=True))
            assert python(resumed[2], "print(x, open('/root/file').read())") == f"{state} {state}"
        finally:
            for copy in resumed:
                copy.close()
        assert space.info()["id"] == space.id


FILLING = f"""
    import hashlib, os
    memory = bytearray(os.urandom({CONTENT_LEN}))
    open("/root/content", "wb").write(os.urandom({CONTENT_LEN}))
    def digests():
        os.sync()
        open("/proc/sys/vm/drop_caches", "w").write("3")
        on_disk = open("/root/content", "rb").read()
        return [hashlib.sha256(content).hexdigest() for content in (memory, on_disk)]
"""

# A different part of each in each generation.
CHANGING = f"""
    at = {{generation}} * ({CONTENT_LEN} // {GENERATIONS}) + 1000
    memory[at : at + (1 << 20)] = os.urandom(1 << 20)
    with open("/root/content", "r+b") as file:
        _ = file.seek(at)
        _ = file.write(os.urandom(1 << 20))
"""


def digests(sandbox: Sandbox) -> str:
    return python(sandbox, "print(*digests())")


def test_memory_and_disk_are_right_three_generations_deep(client: Client) -> None:
    current = Sandbox(client=client)
    try:
        python(current, FILLING)
        expected = digests(current)
        for generation in range(GENERATIONS):
            # What is deleted afterwards is nothing, unless the Space could not be resumed.
            with frozen(current) as space:
                current = space.resume()
            assert digests(current) == expected
            with forked(current) as [child]:
                python(child, CHANGING.format(generation=generation))
                changed = digests(child)
                assert changed != expected
                assert digests(current) == expected
                current.merge_into(child)
            expected = changed
            assert digests(current) == expected
    finally:
        current.close()


def test_a_grown_disk_comes_back_whole(client: Client) -> None:
    content = os.urandom(8 << 20)
    size = "stat -f -c '%b %S' /"
    with Sandbox(client=client, rootfs_gb=6) as sandbox:
        # All but a little is taken, so that some of the file is beyond the template's end.
        bash(sandbox, "fallocate -l $(($(stat -f -c '%a*%S' /) - 64000000)) /root/filler")
        sandbox.upload(content, "/root/file")
        told = bash(sandbox, size)
        with frozen(sandbox) as space:
            assert space.info()["rootfs_gb"] == 6
            with space.resume() as resumed:
                assert resumed.info()["rootfs_gb"] == 6
                assert bash(resumed, size) == told
                bash(resumed, "echo 3 > /proc/sys/vm/drop_caches")
                assert resumed.download("/root/file") == content
                bash(resumed, "rm /root/filler && head -c 40000000 /dev/zero > /root/more && sync")
                assert bash(resumed, "dmesg | grep -ci 'ext4-fs error' || true") == "0"
                assert_works(resumed)


def test_a_child_is_frozen_and_its_parent_goes_on(sandbox: Sandbox) -> None:
    python(sandbox, "path = ['parent']; open('/root/file', 'w').write('parent')")
    with forked(sandbox) as [child]:
        python(child, "path.append('child'); open('/root/file', 'w').write('child')")
        generation = child.info()["generation"]
        with frozen(child) as space:
            python(sandbox, "path.append('later')")
            with space.resume() as resumed:
                assert python(resumed, "print(*path, open('/root/file').read())") == "parent child child"
                assert resumed.info()["generation"] == generation + 1
                with forked(resumed, 2) as children:
                    held = in_parallel(lambda copy: python(copy, "print(*path)"), children)
                    assert held == ["parent child"] * 2
    assert python(sandbox, "print(*path, open('/root/file').read())") == "parent later parent"


def test_every_resumed_sandbox_has_an_address_of_its_own(sandbox: Sandbox, bystander: Sandbox) -> None:
    if sandbox.network()["address"] is None:
        pytest.skip("not tested: this host has no network for its sandboxes")
    with frozen(sandbox) as space:
        resumed = in_parallel(lambda _: space.resume(keep=True), range(2))
        try:
            for copy in resumed:
                address = copy.network()["address"]
                assert f" {address}/" in bash(copy, "ip -4 -o address show eth0")
            addresses = {copy.network()["address"] for copy in [bystander, *resumed]}
            assert len(addresses) == 3, addresses
        finally:
            for copy in resumed:
                copy.close()


def test_what_a_sandbox_may_reach_and_how_long_it_lives_comes_back_unless_it_is_changed(
    client: Client,
) -> None:
    with Sandbox(
        client=client, timeout_seconds=1000, idle_timeout_seconds=500, egress=False, persistent=True
    ) as sandbox:
        kept = {"timeout_seconds": 1000, "idle_timeout_seconds": 500, "egress": False, "persistent": False}
        with frozen(sandbox) as space:
            with space.resume(keep=True) as resumed:
                assert kept.items() <= resumed.info().items()
            changed = {"timeout_seconds": 900, "idle_timeout_seconds": 400, "persistent": True}
            with space.resume(timeout_seconds=900, idle_timeout_seconds=400, persistent=True) as resumed:
                assert changed.items() <= resumed.info().items()


def test_a_sandbox_is_given_more_time(sandbox: Sandbox) -> None:
    before = sandbox.info()
    told = sandbox.extend(timeout_seconds=before["timeout_seconds"] + 100, persistent=True)
    assert told["timeout_seconds"] >= before["timeout_seconds"] + 100
    assert told["idle_timeout_seconds"] == before["idle_timeout_seconds"]
    assert (before["persistent"], told["persistent"]) == (False, True)
    assert sandbox.extend(idle_timeout_seconds=77)["idle_timeout_seconds"] == 77
    assert sandbox.info()["persistent"] is True

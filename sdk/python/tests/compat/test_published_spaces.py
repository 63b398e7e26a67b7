"""The Spaces of the published SDK work here without a change."""

from __future__ import annotations

import time

import httpx
import pytest

from podflare import Client, Sandbox

DEADLINE_SECONDS = 240.0
# A resumed sandbox would otherwise idle for no longer than the one that was frozen.
LONG_ENOUGH_SECONDS = 600

HOLDING = """
import subprocess
x = {"answer": 42}
log = open("/root/log", "w")
log.write("before\\n")
log.flush()
ticks = open("/root/ticks", "a")
ticker = subprocess.Popen(
    ["bash", "-c", "while :; do echo tick; sleep 0.1; done"],
    stdin=subprocess.DEVNULL, stdout=ticks, stderr=subprocess.DEVNULL,
)
"""


def test_a_persistent_sandbox_is_frozen_and_goes_on_when_it_is_resumed(host: str) -> None:
    sandbox_id, space_id = frozen(host)
    with Sandbox.resume(space_id, host=host, idle_timeout_seconds=LONG_ENOUGH_SECONDS) as resumed:
        assert resumed.id != sandbox_id
        assert output(resumed, "print(x, ticker.poll())") == "{'answer': 42} None"
        seen = ticks(resumed)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while ticks(resumed) <= seen:
            assert time.monotonic() < deadline, "the process does not go on"
            time.sleep(0.5)
        after = "log.write('after\\n'); log.close(); print(open('/root/log').read())"
        assert output(resumed, after).split() == ["before", "after"]
        with pytest.raises(httpx.HTTPStatusError) as caught:
            Sandbox.resume(space_id, host=host)
        assert caught.value.response.status_code == 404
        # This takes nothing from the sandbox that goes on with it.
        Client(host=host).delete_space(space_id)
        assert output(resumed, "print(x)") == "{'answer': 42}"


def test_a_resumed_sandbox_may_be_persistent_again_and_its_spaces_be_deleted(host: str) -> None:
    _, first = frozen(host)
    client = Client(host=host)
    info = client.resume_space(first, persistent=True, idle_timeout_seconds=3)
    assert info["state"] == "ready"
    second = space_of(host, info["id"])
    assert second != first
    client.delete_space(second)
    for space_id in (first, second):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client.resume_space(space_id)
        assert caught.value.response.status_code == 404
        client.delete_space(space_id)


def frozen(host: str) -> tuple[str, str]:
    """Let a sandbox freeze by itself; return its id and its Space's."""
    sandbox = Sandbox(host=host, persistent=True, idle_timeout_seconds=3)
    output(sandbox, HOLDING)
    # It is not closed: that would destroy it if it had not frozen yet.
    return sandbox.id, space_of(host, sandbox.id)


def space_of(host: str, sandbox_id: str) -> str:
    """Wait until a sandbox has frozen; return its Space's id."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        listed = httpx.get(f"{host}/v1/spaces", timeout=DEADLINE_SECONDS).raise_for_status().json()["spaces"]
        for space in listed:
            if space["sandbox"] == sandbox_id:
                return str(space["id"])
        assert time.monotonic() < deadline, "it has not frozen"
        time.sleep(0.5)


def output(sandbox: Sandbox, code: str) -> str:
    result = sandbox.run_code(code)
    assert result.ok, result.stderr
    return str(result.stdout)


def ticks(sandbox: Sandbox) -> int:
    return int(sandbox.run_code("wc -l < /root/ticks", language="bash").stdout)

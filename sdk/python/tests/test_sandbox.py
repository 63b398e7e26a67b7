"""A sandbox's life: create, fork, merge, close."""

import threading

import httpx
import pytest

from podflare import (
    Client,
    HostError,
    HostUnreachableError,
    PodflareError,
    ProtocolError,
    Sandbox,
    SandboxNotFoundError,
)

from .conftest import SANDBOX_ID, ScriptedHost

CHILD_IDS = [f"sbx_{number:032x}" for number in (2, 3)]
DELETE = f"DELETE /v1/sandboxes/{SANDBOX_ID}"


def forkable(host: ScriptedHost) -> None:
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/fork", httpx.Response(200, json={"children": CHILD_IDS}))
    for child_id in CHILD_IDS:
        host.on("DELETE", f"/v1/sandboxes/{child_id}", httpx.Response(204))
        host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/merge_into/{child_id}", httpx.Response(204))


def test_only_what_was_asked_for_is_sent(host: ScriptedHost, client: Client) -> None:
    Sandbox(client=client)
    assert host.body() == {}
    Sandbox(
        client=client,
        template="python-datasci",
        timeout_seconds=60,
        idle_timeout_seconds=5,
        ram_mib=2048,
        vcpus=4,
        rootfs_gb=8,
        persistent=True,
        egress=False,
    )
    assert host.body() == {
        "template": "python-datasci",
        "timeout_seconds": 60,
        "idle_timeout_seconds": 5,
        "ram_mib": 2048,
        "vcpus": 4,
        "rootfs_gb": 8,
        "persistent": True,
        "egress": False,
    }


def test_leaving_the_block_destroys_the_sandbox(host: ScriptedHost, client: Client) -> None:
    with Sandbox(client=client) as sandbox:
        assert sandbox.id == SANDBOX_ID
    assert host.calls() == ["POST /v1/sandboxes", DELETE]


def test_closing_twice_destroys_once(host: ScriptedHost, sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    assert host.calls().count(DELETE) == 1


def test_closing_from_many_threads_destroys_once(host: ScriptedHost, sandbox: Sandbox) -> None:
    threads = [threading.Thread(target=sandbox.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert host.calls().count(DELETE) == 1


def test_closing_a_sandbox_that_is_gone_is_no_error(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(404, json={"error": "its time was over"}))
    sandbox.close()


def test_a_failed_close_may_be_tried_again(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", httpx.ConnectError("refused"))
    with pytest.raises(HostUnreachableError):
        sandbox.close()
    host.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(204))
    sandbox.close()
    assert host.calls().count(DELETE) == 2


def test_the_blocks_own_exception_is_not_hidden_by_a_failed_close(host: ScriptedHost, client: Client) -> None:
    host.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", httpx.ConnectError("refused"))
    with pytest.raises(ZeroDivisionError), Sandbox(client=client):
        _ = 1 / 0
    with pytest.raises(HostUnreachableError), Sandbox(client=client):
        pass


def test_a_fork_makes_sandboxes_of_their_own(host: ScriptedHost, sandbox: Sandbox) -> None:
    forkable(host)
    children = sandbox.fork(n=2)
    assert host.body() == {"n": 2}
    assert [child.id for child in children] == CHILD_IDS
    sandbox.close()
    children[0].close()
    assert host.calls()[-1] == f"DELETE /v1/sandboxes/{CHILD_IDS[0]}"


@pytest.mark.parametrize("n", [-1, 0, 33])
def test_a_fork_out_of_range_is_refused_here(host: ScriptedHost, sandbox: Sandbox, n: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 32 children, not {n}"):
        sandbox.fork(n)
    assert host.calls() == ["POST /v1/sandboxes"]


def test_after_a_merge_the_winner_has_nothing_to_close(host: ScriptedHost, sandbox: Sandbox) -> None:
    forkable(host)
    winner, loser = sandbox.fork(2)
    sandbox.merge_into(winner)
    merged = f"POST /v1/sandboxes/{SANDBOX_ID}/merge_into/{winner.id}"
    assert host.calls()[-1] == merged
    assert host.requests[-1].content == b""
    winner.close()
    assert host.calls()[-1] == merged
    loser.close()
    sandbox.close()
    assert host.calls()[-2:] == [f"DELETE /v1/sandboxes/{loser.id}", DELETE]


def test_a_refused_merge_leaves_the_winner_to_be_closed(host: ScriptedHost, sandbox: Sandbox) -> None:
    forkable(host)
    winner, _ = sandbox.fork(2)
    gone = httpx.Response(404, json={"error": "sandbox not found"})
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/merge_into/{winner.id}", gone)
    with pytest.raises(SandboxNotFoundError):
        sandbox.merge_into(winner)
    winner.close()
    assert host.calls()[-1] == f"DELETE /v1/sandboxes/{winner.id}"


def test_a_sandbox_is_not_merged_into_itself(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="into itself"):
        sandbox.merge_into(sandbox)


def test_children_outlive_the_sandbox_whose_client_they_share(host: ScriptedHost) -> None:
    forkable(host)
    sandbox = Sandbox(client=host.client())
    children = sandbox.fork(2)
    sandbox.close()
    del sandbox
    for child in children:
        child.close()


def test_a_client_is_closed_with_its_last_user(host: ScriptedHost) -> None:
    sandbox = Sandbox(client=host.client())
    http = sandbox._client._http
    assert not http.is_closed
    del sandbox
    assert http.is_closed


def test_ids_cannot_leave_their_place_in_the_path(host: ScriptedHost, client: Client) -> None:
    with pytest.raises(PodflareError):
        client.destroy_sandbox("../healthz?x=1")
    assert host.requests[-1].url.raw_path == b"/v1/sandboxes/..%2Fhealthz%3Fx%3D1"


def test_a_client_lists_and_looks_at_sandboxes(host: ScriptedHost, client: Client) -> None:
    view = {"id": SANDBOX_ID, "state": "ready", "generation": 2, "parent": None}
    host.on("GET", "/v1/sandboxes", httpx.Response(200, json={"sandboxes": [view]}))
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(200, json=view))
    assert client.list_sandboxes() == [view]
    assert client.sandbox_info(SANDBOX_ID)["generation"] == 2


def test_a_sandbox_tells_what_it_has_and_how_it_is(host: ScriptedHost, client: Client) -> None:
    view = {"id": SANDBOX_ID, "state": "ready", "ram_mib": 1024, "persistent": False, "executions": 3}
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(200, json=view))
    assert Sandbox(client=client, persistent=True).info() == view


def test_a_sandbox_is_given_more_time_and_tells_what_it_has_then(
    host: ScriptedHost, sandbox: Sandbox
) -> None:
    view = {"id": SANDBOX_ID, "timeout_seconds": 700, "persistent": True}
    host.on("PATCH", f"/v1/sandboxes/{SANDBOX_ID}", httpx.Response(200, json=view))
    assert sandbox.extend(timeout_seconds=600) == view
    assert host.body() == {"timeout_seconds": 600}
    sandbox.extend(idle_timeout_seconds=5, persistent=False)
    assert host.body() == {"idle_timeout_seconds": 5, "persistent": False}


@pytest.mark.parametrize(
    ("response", "healthy"),
    [
        (httpx.Response(200, text="ok\n"), True),
        (httpx.Response(200, text="no"), False),
        (httpx.Response(503), False),
    ],
)
def test_health_is_a_plain_ok(
    host: ScriptedHost, client: Client, response: httpx.Response, healthy: bool
) -> None:
    host.on("GET", "/v1/healthz", response)
    assert client.healthz() is healthy


def test_creating_and_forking_may_take_longer_than_other_requests(host: ScriptedHost) -> None:
    forkable(host)
    sandbox = Sandbox(client=host.client(timeout=3.0))
    assert host.requests[-1].extensions["timeout"]["read"] == 120.0
    sandbox.fork(2)
    assert host.requests[-1].extensions["timeout"]["read"] == 120.0
    host.on_exec(("exit", 0))
    sandbox.run_code("1")
    assert host.requests[-1].extensions["timeout"]["read"] == 3.0


def test_a_ping_is_the_guests_round_trip(host: ScriptedHost, sandbox: Sandbox) -> None:
    timing = {"server-timing": "guest;dur=1.250, total;dur=2.000"}
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/ping", httpx.Response(204, headers=timing))
    assert sandbox.ping() == 1.25


def test_a_ping_without_a_time_breaks_the_protocol(host: ScriptedHost, sandbox: Sandbox) -> None:
    timing = {"server-timing": "total;dur=2.000"}
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/ping", httpx.Response(204, headers=timing))
    with pytest.raises(ProtocolError):
        sandbox.ping()


def test_a_guest_that_stands_still_is_the_hosts_failure(host: ScriptedHost, sandbox: Sandbox) -> None:
    silent = httpx.Response(504, json={"error": "The sandbox's guest has not answered within 10 s"})
    host.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/ping", silent)
    with pytest.raises(HostError, match="not answered"):
        sandbox.ping()

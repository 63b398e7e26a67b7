"""Spaces: freeze, list, look at, resume, delete."""

import httpx
import pytest

from podflare import (
    ApiError,
    CapacityError,
    Client,
    HostError,
    HostUnreachableError,
    ProtocolError,
    Sandbox,
    SandboxNotFoundError,
    Space,
    SpaceNotFoundError,
)

from .conftest import SANDBOX_ID, ScriptedHost

SPACE_ID = "spc_00000000000000000000000000000009"
RESUMED_ID = "sbx_00000000000000000000000000000002"
FREEZE = f"/v1/sandboxes/{SANDBOX_ID}/freeze"
SPACE = f"/v1/spaces/{SPACE_ID}"
RESUME = f"{SPACE}/resume"
VIEW = {"id": SPACE_ID, "sandbox": SANDBOX_ID, "generation": 1, "bytes": 4096, "egress": True}
RESUMED = {"id": RESUMED_ID, "state": "ready", "persistent": False}
HAS_BEEN_RESUMED = httpx.Response(404, json={"error": "Space not found: it has been resumed"})


@pytest.fixture
def space(host: ScriptedHost, sandbox: Sandbox) -> Space:
    host.on("POST", FREEZE, httpx.Response(200, json=VIEW))
    host.on("POST", RESUME, httpx.Response(200, json=RESUMED))
    host.on("DELETE", SPACE, httpx.Response(204))
    return sandbox.freeze()


def test_a_space_knows_its_names(host: ScriptedHost, space: Space) -> None:
    assert (space.id, space.sandbox_id) == (SPACE_ID, SANDBOX_ID)
    assert repr(space) == f"<Space {SPACE_ID} of {SANDBOX_ID} on http://host.test>"
    host.on("GET", SPACE, httpx.Response(200, json=VIEW))
    assert space.info() == VIEW


def test_a_freeze_has_no_body_and_may_take_longer_than_anything_else(
    host: ScriptedHost, sandbox: Sandbox
) -> None:
    host.on("POST", FREEZE, httpx.Response(200, json=VIEW))
    sandbox.freeze()
    assert host.requests[-1].content == b""
    assert host.requests[-1].extensions["timeout"]["read"] == 900.0


def test_a_frozen_sandbox_has_nothing_to_close(host: ScriptedHost, client: Client) -> None:
    host.on("POST", FREEZE, httpx.Response(200, json=VIEW))
    with Sandbox(client=client) as sandbox:
        sandbox.freeze()
    assert host.calls() == ["POST /v1/sandboxes", f"POST {FREEZE}"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, SandboxNotFoundError),
        (409, ApiError),
        (429, CapacityError),
        (503, CapacityError),
        (507, HostError),
    ],
)
def test_a_sandbox_that_cannot_be_frozen_is_left_to_be_closed(
    host: ScriptedHost, sandbox: Sandbox, status: int, kind: type[ApiError]
) -> None:
    host.on("POST", FREEZE, httpx.Response(status, json={"error": "because of the moon"}))
    with pytest.raises(ApiError) as caught:
        sandbox.freeze()
    assert (type(caught.value), caught.value.error) == (kind, "because of the moon")
    sandbox.close()
    assert host.calls()[-1] == f"DELETE /v1/sandboxes/{SANDBOX_ID}"


def test_what_is_resumed_is_a_sandbox_of_its_own(host: ScriptedHost, space: Space) -> None:
    host.on("DELETE", f"/v1/sandboxes/{RESUMED_ID}", httpx.Response(204))
    with space.resume() as resumed:
        assert host.body() == {}
        assert host.requests[-1].extensions["timeout"]["read"] == 120.0
        assert resumed.id == RESUMED_ID
    assert host.calls()[-1] == f"DELETE /v1/sandboxes/{RESUMED_ID}"


def test_only_what_was_asked_for_is_sent(host: ScriptedHost, space: Space) -> None:
    space.resume(
        timeout_seconds=60, idle_timeout_seconds=5, persistent=False, egress={"allow": ["a.org"]}, keep=True
    )
    assert host.body() == {
        "timeout_seconds": 60,
        "idle_timeout_seconds": 5,
        "persistent": False,
        "egress": {"allow": ["a.org"]},
        "keep": True,
    }


def test_a_space_is_resumed_by_its_id_alone(host: ScriptedHost, client: Client) -> None:
    host.on("POST", RESUME, httpx.Response(200, json=RESUMED))
    resumed = Sandbox.resume(SPACE_ID, client=client, persistent=True, egress=False)
    assert host.body() == {"persistent": True, "egress": False}
    assert repr(resumed) == f"<Sandbox {RESUMED_ID} on http://host.test>"
    assert client.resume_space(SPACE_ID) == RESUMED


def test_a_space_is_resumed_on_the_host_that_is_named() -> None:
    with pytest.raises(HostUnreachableError, match=r"http://127\.0\.0\.1:1/r/eu"):
        Sandbox.resume(SPACE_ID, host="http://127.0.0.1:1", region="eu")


def test_a_busy_host_is_asked_again(
    host: ScriptedHost, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("podflare._client.time.sleep", pauses.append)
    busy = httpx.Response(503, json={"error": "busy"}, headers={"retry-after": "2"})
    answers = iter([busy, httpx.Response(200, json=RESUMED)])
    host.on("POST", RESUME, lambda _: next(answers))
    assert space.resume().id == RESUMED_ID
    assert pauses == [2.0]


def test_a_full_host_is_told_at_once(host: ScriptedHost, space: Space) -> None:
    host.on("POST", RESUME, httpx.Response(429, json={"error": "too many sandboxes"}))
    with pytest.raises(CapacityError):
        space.resume()


def test_a_space_is_deleted_and_not_by_its_sandbox(
    host: ScriptedHost, sandbox: Sandbox, space: Space
) -> None:
    sandbox.close()
    assert host.calls()[-1] == f"POST {FREEZE}"
    space.delete()
    assert host.calls()[-1] == f"DELETE {SPACE}"


def test_spaces_are_listed(host: ScriptedHost, client: Client) -> None:
    host.on("GET", "/v1/spaces", httpx.Response(200, json={"spaces": [VIEW, VIEW]}))
    assert client.list_spaces() == [VIEW, VIEW]
    host.on("GET", "/v1/spaces", httpx.Response(404, json={"error": "no such endpoint"}))
    with pytest.raises(ApiError) as caught:
        client.list_spaces()
    assert type(caught.value) is ApiError


def test_a_space_that_is_gone_is_told_by_its_kind(host: ScriptedHost, client: Client, space: Space) -> None:
    host.on("GET", SPACE, HAS_BEEN_RESUMED)
    host.on("POST", RESUME, HAS_BEEN_RESUMED)
    for missing in (space.info, space.resume, lambda: Sandbox.resume(SPACE_ID, client=client)):
        with pytest.raises(SpaceNotFoundError, match="has been resumed") as caught:
            missing()
        assert caught.value.status == 404


def test_one_that_cannot_be_resumed_here_says_why(host: ScriptedHost, space: Space) -> None:
    host.on("POST", RESUME, httpx.Response(409, json={"error": "This Space cannot be resumed here"}))
    with pytest.raises(ApiError, match="cannot be resumed here") as caught:
        space.resume()
    assert (type(caught.value), caught.value.status) == (ApiError, 409)


def test_ids_cannot_leave_their_place_in_the_path(host: ScriptedHost, client: Client) -> None:
    with pytest.raises(SpaceNotFoundError):
        client.space_info("../healthz?x=1")
    assert host.requests[-1].url.raw_path == b"/v1/spaces/..%2Fhealthz%3Fx%3D1"


@pytest.mark.parametrize("view", [None, [], {}, {"id": SPACE_ID}, {"id": 1, "sandbox": SANDBOX_ID}])
def test_a_space_that_is_told_in_another_shape_is_an_error(
    host: ScriptedHost, client: Client, sandbox: Sandbox, view: object
) -> None:
    host.on("POST", FREEZE, httpx.Response(200, json=view))
    host.on("GET", SPACE, httpx.Response(200, json=view))
    host.on("GET", "/v1/spaces", httpx.Response(200, json={"spaces": [view]}))
    for told in (sandbox.freeze, client.list_spaces, lambda: client.space_info(SPACE_ID)):
        with pytest.raises(ProtocolError):
            told()

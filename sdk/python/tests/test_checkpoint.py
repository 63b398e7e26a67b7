"""Checkpoints: take, list, restore, fork, delete; and forks that keep the children that live."""

import httpx
import pytest

from podflare import (
    ApiError,
    Checkpoint,
    CheckpointNotFoundError,
    Client,
    ForkFailure,
    HostError,
    HostUnreachableError,
    ProtocolError,
    Sandbox,
    SandboxNotFoundError,
)

from .conftest import SANDBOX_ID, ScriptedHost

CHECKPOINT_ID = "ckp_00000000000000000000000000000009"
CHILD_ID = "sbx_00000000000000000000000000000002"
OF_SANDBOX = f"/v1/sandboxes/{SANDBOX_ID}/checkpoints"
CHECKPOINT = f"/v1/checkpoints/{CHECKPOINT_ID}"
RESTORE = f"/v1/sandboxes/{SANDBOX_ID}/restore"
FORK = f"/v1/sandboxes/{SANDBOX_ID}/fork"
VIEW = {"id": CHECKPOINT_ID, "name": None, "sandbox": SANDBOX_ID, "generation": 1}


@pytest.fixture
def checkpoint(host: ScriptedHost, sandbox: Sandbox) -> Checkpoint:
    host.on("POST", OF_SANDBOX, httpx.Response(200, json=VIEW))
    host.on("DELETE", CHECKPOINT, httpx.Response(204))
    return sandbox.checkpoint()


def test_a_checkpoint_knows_its_names(host: ScriptedHost, sandbox: Sandbox, checkpoint: Checkpoint) -> None:
    assert host.body() == {}
    assert (checkpoint.id, checkpoint.name, checkpoint.sandbox_id) == (CHECKPOINT_ID, None, SANDBOX_ID)
    assert repr(checkpoint) == f"<Checkpoint {CHECKPOINT_ID} of {SANDBOX_ID} on http://host.test>"
    host.on("POST", OF_SANDBOX, httpx.Response(200, json={**VIEW, "name": "base"}))
    named = sandbox.checkpoint("base")
    assert host.body() == {"name": "base"}
    assert "'base'" in repr(named)
    host.on("GET", CHECKPOINT, httpx.Response(200, json=VIEW))
    assert named.info() == VIEW


def test_leaving_the_block_deletes_the_checkpoint(host: ScriptedHost, checkpoint: Checkpoint) -> None:
    with checkpoint:
        pass
    assert host.calls()[-1] == f"DELETE {CHECKPOINT}"
    host.on("DELETE", CHECKPOINT, httpx.ConnectError("refused"))
    with pytest.raises(ZeroDivisionError), checkpoint:
        _ = 1 / 0
    with pytest.raises(HostUnreachableError), checkpoint:
        pass


def test_checkpoints_are_listed_of_one_sandbox_and_of_all(
    host: ScriptedHost, client: Client, sandbox: Sandbox
) -> None:
    host.on("GET", OF_SANDBOX, httpx.Response(200, json={"checkpoints": [VIEW]}))
    host.on("GET", "/v1/checkpoints", httpx.Response(200, json={"checkpoints": [VIEW, VIEW]}))
    assert [checkpoint.id for checkpoint in sandbox.checkpoints()] == [CHECKPOINT_ID]
    assert client.list_checkpoints() == [VIEW, VIEW]


def test_a_sandbox_is_restored_in_place(host: ScriptedHost, sandbox: Sandbox, checkpoint: Checkpoint) -> None:
    host.on("POST", RESTORE, httpx.Response(204))
    sandbox.restore(checkpoint)
    assert host.body() == {"checkpoint": CHECKPOINT_ID}
    assert host.requests[-1].extensions["timeout"]["read"] == 120.0
    assert sandbox.id == SANDBOX_ID


def test_a_fork_of_a_checkpoint_makes_sandboxes_of_their_own(
    host: ScriptedHost, checkpoint: Checkpoint
) -> None:
    host.on("POST", f"{CHECKPOINT}/fork", httpx.Response(200, json={"children": [CHILD_ID]}))
    host.on("DELETE", f"/v1/sandboxes/{CHILD_ID}", httpx.Response(204))
    [child] = checkpoint.fork()
    assert host.body() == {"n": 1}
    child.close()
    assert host.calls()[-1] == f"DELETE /v1/sandboxes/{CHILD_ID}"
    with pytest.raises(ValueError, match="1 to 32 children, not 33"):
        checkpoint.fork(33)


def test_what_is_missing_is_told_by_its_kind(
    host: ScriptedHost, sandbox: Sandbox, checkpoint: Checkpoint
) -> None:
    host.on("POST", RESTORE, httpx.Response(404, json={"error": "checkpoint not found: it was deleted"}))
    for missing_checkpoint in (lambda: sandbox.restore(checkpoint), checkpoint.fork, checkpoint.info):
        with pytest.raises(CheckpointNotFoundError):
            missing_checkpoint()
    host.on("POST", RESTORE, httpx.Response(404, json={"error": "sandbox not found"}))
    host.on("POST", OF_SANDBOX, httpx.Response(404, json={"error": "sandbox not found"}))
    for missing_sandbox in (lambda: sandbox.restore(checkpoint), sandbox.checkpoint, sandbox.checkpoints):
        with pytest.raises(SandboxNotFoundError):
            missing_sandbox()


@pytest.mark.parametrize("view", [None, [], {}, {"id": CHECKPOINT_ID}, {"id": 1, "sandbox": SANDBOX_ID}])
def test_a_checkpoint_that_is_told_in_another_shape_is_an_error(
    host: ScriptedHost, sandbox: Sandbox, view: object
) -> None:
    host.on("POST", OF_SANDBOX, httpx.Response(200, json=view))
    host.on("GET", OF_SANDBOX, httpx.Response(200, json={"checkpoints": [view]}))
    for told in (sandbox.checkpoint, sandbox.checkpoints):
        with pytest.raises(ProtocolError):
            told()


def test_a_partial_fork_gives_the_children_that_live(host: ScriptedHost, sandbox: Sandbox) -> None:
    failure = {"child": 1, "error": "it did not answer"}
    answer = {"children": [CHILD_ID], "failures": [failure]}
    host.on("POST", FORK, httpx.Response(200, json=answer))
    fork = sandbox.fork_partial(2)
    assert host.body() == {"n": 2, "partial": True}
    assert [child.id for child in fork.children] == [CHILD_ID]
    assert fork.failures == [ForkFailure(1, "it did not answer")]
    host.on("POST", FORK, httpx.Response(200, json={"children": [CHILD_ID]}))
    assert sandbox.fork_partial().failures == []


@pytest.mark.parametrize("failures", [None, 1, [1], [{"child": True, "error": "x"}], [{"child": 1}]])
def test_an_error_tells_which_children_failed_as_far_as_it_is_told(
    host: ScriptedHost, sandbox: Sandbox, failures: object
) -> None:
    host.on("POST", FORK, httpx.Response(500, json={"error": "no", "failures": failures}))
    with pytest.raises(HostError) as caught:
        sandbox.fork(2)
    assert caught.value.failures == []
    told = [{"child": 0, "error": "a"}, {"child": 1, "error": "b"}]
    host.on("POST", FORK, httpx.Response(500, json={"error": "no", "failures": told}))
    with pytest.raises(ApiError) as caught_too:
        sandbox.fork_partial(2)
    assert caught_too.value.failures == [ForkFailure(0, "a"), ForkFailure(1, "b")]

"""The error tree, and what its messages say."""

import httpx
import pytest

from podflare import (
    ApiError,
    BadRequestError,
    CapacityError,
    Client,
    ConnectionLostError,
    HostError,
    HostTimeoutError,
    HostUnreachableError,
    PodflareError,
    ProtocolError,
    SandboxNotFoundError,
    UnauthorizedError,
)

from .conftest import SANDBOX_ID, ScriptedHost


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, UnauthorizedError),
        (404, ApiError),
        (418, ApiError),
        (429, CapacityError),
        (500, HostError),
        (502, HostError),
        (503, CapacityError),
        (307, ApiError),
    ],
)
def test_each_status_has_its_error(
    host: ScriptedHost, client: Client, status: int, kind: type[ApiError]
) -> None:
    host.on("POST", "/v1/sandboxes", httpx.Response(status, json={"error": "because of the moon"}))
    with pytest.raises(ApiError) as caught:
        client.create_sandbox()
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.error) == (status, "because of the moon")
    assert (error.method, error.path) == ("POST", "/v1/sandboxes")
    assert str(error) == f"because of the moon ({status} from POST /v1/sandboxes)"


@pytest.mark.parametrize("base", ["", "/r/eu"])
def test_only_what_names_a_sandbox_can_miss_one(base: str) -> None:
    client = Client(f"http://host.test{base}", transport=httpx.MockTransport(ScriptedHost().handle))
    for missing_sandbox in (
        lambda: client.sandbox_info(SANDBOX_ID),
        lambda: client.replay(SANDBOX_ID),
        lambda: client.fork_sandbox(SANDBOX_ID),
        lambda: client.merge_into(SANDBOX_ID, SANDBOX_ID),
        lambda: client.destroy_sandbox(SANDBOX_ID),
        lambda: list(client.exec_stream(SANDBOX_ID, "1")),
    ):
        with pytest.raises(SandboxNotFoundError):
            missing_sandbox()
    for missing_other in (client.create_sandbox, client.list_sandboxes, client.capacity):
        with pytest.raises(ApiError) as caught:
            missing_other()
        assert (type(caught.value), caught.value.status) == (ApiError, 404)


def test_api_errors_are_caught_by_handlers_written_for_httpx(host: ScriptedHost, client: Client) -> None:
    host.on("POST", "/v1/sandboxes", httpx.Response(401, json={"error": "invalid api key"}))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.create_sandbox()
    assert caught.value.response.status_code == 401
    assert caught.value.request.method == "POST"
    assert isinstance(caught.value, PodflareError)


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (httpx.Response(500, text="upstream died"), "upstream died"),
        (httpx.Response(500, text='["not","ours"]'), '["not","ours"]'),
        (httpx.Response(500), "Internal Server Error"),
        (httpx.Response(500, text="x" * 100_000), "x" * 2000),
    ],
)
def test_an_error_body_of_something_else_is_shown(
    host: ScriptedHost, client: Client, response: httpx.Response, sentence: str
) -> None:
    host.on("POST", "/v1/sandboxes", response)
    with pytest.raises(HostError) as caught:
        client.create_sandbox()
    assert caught.value.error == sentence


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ConnectTimeout("timed out")])
def test_an_unreachable_host_is_named_with_a_remedy(
    host: ScriptedHost, client: Client, failure: httpx.TransportError
) -> None:
    host.on("GET", "/v1/healthz", failure)
    with pytest.raises(HostUnreachableError, match=r"http://host\.test.*podflare up") as caught:
        client.healthz()
    assert isinstance(caught.value, type(failure))
    assert isinstance(caught.value, PodflareError)


def test_nothing_listening_is_an_unreachable_host() -> None:
    with (
        pytest.raises(HostUnreachableError, match=r"http://127\.0\.0\.1:1"),
        Client("http://127.0.0.1:1") as client,
    ):
        client.healthz()


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (httpx.ReadTimeout("timed out"), HostTimeoutError),
        (httpx.WriteTimeout("timed out"), HostTimeoutError),
        (httpx.ReadError("reset"), ConnectionLostError),
        (httpx.RemoteProtocolError("gone"), ConnectionLostError),
    ],
)
def test_other_transport_failures_join_the_tree(
    host: ScriptedHost, client: Client, failure: httpx.TransportError, kind: type[PodflareError]
) -> None:
    host.on("GET", "/v1/capacity", failure)
    with pytest.raises(kind) as caught:
        client.capacity()
    assert isinstance(caught.value, httpx.TransportError)
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize(
    "text", ["", "<html>", "[" * 100_000, "[]", "{}", '{"id": null}', '{"id": 3}', '{"id": ""}']
)
def test_a_create_that_is_answered_in_another_shape_is_an_error(
    host: ScriptedHost, client: Client, text: str
) -> None:
    host.on("POST", "/v1/sandboxes", httpx.Response(200, text=text))
    with pytest.raises(ProtocolError):
        client.create_sandbox()


@pytest.mark.parametrize("value", [None, 3, "sbx_1", {"0": "sbx_1"}, [3], [None], [["sbx_1"]]])
def test_a_list_that_is_something_else_is_an_error(host: ScriptedHost, client: Client, value: object) -> None:
    answer = httpx.Response(200, json={"children": value, "sandboxes": value})
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/fork", answer)
    host.on("GET", "/v1/sandboxes", answer)
    with pytest.raises(ProtocolError):
        client.fork_sandbox(SANDBOX_ID)
    with pytest.raises(ProtocolError):
        client.list_sandboxes()

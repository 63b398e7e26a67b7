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

from .conftest import ScriptedHost


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, UnauthorizedError),
        (404, SandboxNotFoundError),
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
    "response", [httpx.Response(200, text="<html>"), httpx.Response(200, json={"state": "ready"})]
)
def test_an_answer_of_another_shape_is_an_error(
    host: ScriptedHost, client: Client, response: httpx.Response
) -> None:
    host.on("POST", "/v1/sandboxes", response)
    with pytest.raises(ProtocolError, match="did not answer with a JSON object"):
        client.create_sandbox()

"""Where host, key and headers come from."""

import httpx
import pytest

import podflare
from podflare import Client, Sandbox
from podflare._client import resolve_host, shared_client

from .conftest import ScriptedHost


def test_the_host_is_on_this_machine_unless_told_otherwise() -> None:
    assert Client().host == "http://127.0.0.1:7070"


def test_an_argument_beats_the_environment_and_the_newer_variable_the_older(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PODFLARE_HOST", "http://older.test")
    assert Client().host == "http://older.test"
    monkeypatch.setenv("PODFLARE_HOSTD_URL", "http://newer.test/")
    assert Client().host == "http://newer.test"
    assert Client("http://argument.test").host == "http://argument.test"


def test_a_host_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with http:// or https://"):
        Client("127.0.0.1:7070")


def test_a_region_is_a_path_prefix_of_the_host() -> None:
    assert resolve_host("https://hosts.test", "eu") == "https://hosts.test/r/eu"
    assert resolve_host("https://hosts.test", "../eu") == "https://hosts.test/r/..%2Feu"


def test_a_path_prefix_of_the_host_is_kept_in_requests(host: ScriptedHost) -> None:
    host.on("GET", "/r/eu/v1/healthz", httpx.Response(200, text="ok"))
    assert Client("http://host.test/r/eu", transport=httpx.MockTransport(host.handle)).healthz()


def test_without_a_key_no_authorization_is_sent(host: ScriptedHost) -> None:
    host.client().create_sandbox()
    assert "authorization" not in host.requests[-1].headers
    assert "traceparent" not in host.requests[-1].headers


def test_a_key_is_sent_as_bearer(host: ScriptedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODFLARE_API_KEY", "pf_live_environment")
    host.client().create_sandbox()
    assert host.requests[-1].headers["authorization"] == "Bearer pf_live_environment"
    host.client(api_key="pf_live_argument").create_sandbox()
    assert host.requests[-1].headers["authorization"] == "Bearer pf_live_argument"


def test_a_trace_context_is_sent(host: ScriptedHost) -> None:
    host.client(traceparent="00-1-2-01").create_sandbox()
    assert host.requests[-1].headers["traceparent"] == "00-1-2-01"


def test_the_user_agent_names_the_sdk_and_its_version(host: ScriptedHost) -> None:
    host.client().create_sandbox()
    assert host.requests[-1].headers["user-agent"] == f"podflare-python/{podflare.__version__}"


def test_sandboxes_of_one_host_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    first = shared_client("http://host.test")
    assert shared_client("http://host.test") is first
    assert shared_client("http://other.test") is not first
    monkeypatch.setenv("PODFLARE_API_KEY", "pf_live_other")
    assert shared_client("http://host.test") is not first


def test_a_given_client_beats_the_other_settings(client: Client) -> None:
    sandbox = Sandbox(client=client, host="http://elsewhere.test", api_key="pf_live_unused", region="eu")
    assert repr(sandbox).endswith("on http://host.test>")

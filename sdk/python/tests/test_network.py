"""What a sandbox may reach, as the client says it."""

import httpx
import pytest

from podflare import BadRequestError, Client, EgressList, NetworkInfo, Sandbox

from .conftest import SANDBOX_ID, ScriptedHost

PATH = f"/v1/sandboxes/{SANDBOX_ID}"
LIST: EgressList = {"allow": ["example.org", "10.1.0.0/16:443"]}
VIEW: NetworkInfo = {
    "egress": LIST,
    "address": "198.18.0.16",
    "sent_bytes": 1,
    "received_bytes": 2,
    "connections": 3,
}


def test_a_list_is_sent_with_the_create(host: ScriptedHost, client: Client) -> None:
    Sandbox(client=client, egress=LIST)
    assert host.body() == {"egress": LIST}


def test_what_a_sandbox_may_reach_is_changed_and_told(host: ScriptedHost, client: Client) -> None:
    host.on("PUT", f"{PATH}/egress", httpx.Response(200, json=VIEW))
    host.on("GET", f"{PATH}/network", httpx.Response(200, json=VIEW))
    sandbox = Sandbox(client=client)
    for egress in (True, False, LIST):
        sandbox.set_egress(egress)
        assert host.body() == {"egress": egress}
    assert sandbox.network() == VIEW


def test_an_entry_that_is_none_is_a_bad_request(host: ScriptedHost, client: Client) -> None:
    host.on("PUT", f"{PATH}/egress", httpx.Response(400, json={"error": "'no such' is neither a domain"}))
    sandbox = Sandbox(client=client)
    with pytest.raises(BadRequestError, match="no such"):
        sandbox.set_egress({"allow": ["no such"]})

"""A template that was built, and taken by a host that ran; scripts/test-sdk does both."""

import pytest

from podflare import ApiError, Client, Sandbox

from .vocabulary import bash, forked, python

pytestmark = pytest.mark.live

NAME = "test-ours"


def test_a_template_that_was_taken_is_ready(client: Client) -> None:
    assert client.templates()[0]["name"] == "default"
    info = client.template_info(NAME)
    assert (info["ram_mib"], info["vcpus"], info["rootfs_gb"]) == (512, 1, 5)
    assert info["state"] == "ready"


def test_its_start_up_code_has_run_before_the_first_call_and_its_commands_in_its_build(
    client: Client,
) -> None:
    with Sandbox(client=client, template=NAME) as sandbox:
        assert python(sandbox, "print(third + third)") == "2/3"
        assert bash(sandbox, "cat /etc/test-ours; echo $OURS") == "built\nin the environment"
        assert sandbox.info()["template"] == NAME
        with forked(sandbox) as [child]:
            assert python(child, "print(third)") == "1/3"
            assert child.info()["template"] == NAME


def test_it_is_there_in_other_sizes(client: Client) -> None:
    with Sandbox(client=client, template=NAME, ram_mib=1024) as sandbox:
        assert python(sandbox, "print(third)") == "1/3"
        assert sandbox.info()["ram_mib"] == 1024


def test_one_that_is_not_there_is_told_with_those_that_are(client: Client) -> None:
    with pytest.raises(ApiError, match=f"this host has: default, .*{NAME}"):
        Sandbox(client=client, template="windows")

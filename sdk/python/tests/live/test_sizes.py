"""Sandboxes of other sizes than the template's: what is asked for is what the guest itself finds."""

import pytest

from podflare import Client, Sandbox

from .vocabulary import bash, forked, in_parallel, python

pytestmark = pytest.mark.live

# What the kernel keeps for itself, and the page tables of larger guests.
KERNEL_SHARE = 0.2


def assert_has(sandbox: Sandbox, ram_mib: int, vcpus: int) -> None:
    info = sandbox.info()
    assert (info["ram_mib"], info["vcpus"]) == (ram_mib, vcpus)
    assert bash(sandbox, "nproc") == str(vcpus)
    found_mib = int(bash(sandbox, "awk '/^MemTotal/ {print $2}' /proc/meminfo")) / 1024
    assert (1 - KERNEL_SHARE) * ram_mib - 64 < found_mib <= ram_mib


@pytest.mark.parametrize(("ram_mib", "vcpus"), [(512, 1), (2048, 1), (4608, 2)])
def test_a_sandbox_and_its_children_have_what_was_asked_for(client: Client, ram_mib: int, vcpus: int) -> None:
    vcpus = min(vcpus, most_vcpus(client))
    with Sandbox(client=client, ram_mib=ram_mib, vcpus=vcpus) as sandbox:
        assert_has(sandbox, ram_mib, vcpus)
        # Linux gives out memory above 4 GiB first, where there is any.
        python(sandbox, "kept = bytearray(b'x' * (64 << 20))")
        with forked(sandbox, 2) as children:
            for child in children:
                assert_has(child, ram_mib, vcpus)
                assert python(child, "print(kept.count(b'x'))") == str(64 << 20)


def test_a_size_is_rounded_up_and_held_within_what_is_offered(client: Client) -> None:
    with Sandbox(client=client, ram_mib=300, vcpus=0) as sandbox:
        assert_has(sandbox, 512, 1)


def test_creates_that_want_the_same_new_size_get_it_together(client: Client) -> None:
    sandboxes = in_parallel(lambda _: Sandbox(client=client, ram_mib=768, vcpus=1), range(3))
    for sandbox in sandboxes:
        with sandbox:
            assert_has(sandbox, 768, 1)
    [size] = [size for size in client.template_info("default")["sizes"] if size["ram_mib"] == 768]
    assert size["state"] == "ready"


def most_vcpus(client: Client) -> int:
    with Sandbox(client=client, ram_mib=512, vcpus=1000) as sandbox:
        return sandbox.info()["vcpus"]

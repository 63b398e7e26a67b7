"""Root disks of other sizes than the template's."""

import os

import pytest

from podflare import Client, Sandbox

from .vocabulary import bash, forked

pytestmark = pytest.mark.live

GIB = 1 << 30


def size_of_root(sandbox: Sandbox) -> int:
    return int(bash(sandbox, "echo $(($(stat -f -c '%b*%S' /)))"))


def test_a_sandbox_has_the_disk_that_it_asked_for(client: Client) -> None:
    with Sandbox(client=client, rootfs_gb=9) as sandbox:
        assert sandbox.info()["rootfs_gb"] == 9
        assert bash(sandbox, "cat /sys/class/block/vda/size") == str(9 * GIB // 512)
        assert 0.97 * 9 * GIB < size_of_root(sandbox) <= 9 * GIB
        content = os.urandom(1 << 20)
        # What is beyond the template's end is there, and is kept.
        bash(sandbox, "fallocate -l 6G /root/filler")
        sandbox.upload(content, "/root/file")
        bash(sandbox, "sync; echo 3 > /proc/sys/vm/drop_caches")
        assert sandbox.download("/root/file") == content
        with forked(sandbox) as [child]:
            assert child.info()["rootfs_gb"] == 9
            assert size_of_root(child) == size_of_root(sandbox)
            assert child.download("/root/file") == content
            bash(child, "rm /root/filler && fallocate -l 7G /root/other")
        sandbox.upload(content[::-1], "/root/file")
        assert sandbox.download("/root/file") == content[::-1]


def test_what_is_less_than_the_template_has_is_raised(client: Client) -> None:
    with Sandbox(client=client, rootfs_gb=1) as sandbox:
        assert sandbox.info()["rootfs_gb"] == 4


def test_a_grown_disk_is_sound_and_full_only_in_its_guest(client: Client, bystander: Sandbox) -> None:
    with Sandbox(client=client, rootfs_gb=5) as sandbox:
        bash(sandbox, "fallocate -l $(($(stat -f -c '%f*%S' /) - 20000000)) /root/filler")
        result = sandbox.run_code("head -c 40000000 /dev/zero > /root/more", "bash")
        assert "No space left on device" in result.stderr
        bash(sandbox, "rm /root/filler /root/more && head -c 40000000 /dev/zero > /root/more && sync")
        assert bash(sandbox, "dmesg | grep -ci 'ext4-fs error' || true") == "0"
    bystander.upload(b"content", "/root/file")

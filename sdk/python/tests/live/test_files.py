"""Uploads and downloads."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from podflare import FileTransferError, Sandbox

from .vocabulary import bash, forked, python

pytestmark = pytest.mark.live


@pytest.mark.parametrize("length", [0, 1, 256 << 10, 8 << 20, 30_000_000])
def test_a_file_comes_back_as_it_went(sandbox: Sandbox, length: int) -> None:
    content = os.urandom(length)
    sandbox.upload(content, "/root/new/folder/file")
    assert (
        bash(sandbox, "sha256sum < /root/new/folder/file").split()[0] == hashlib.sha256(content).hexdigest()
    )
    assert sandbox.download("/root/new/folder/file") == content


def test_a_local_file_may_be_named(sandbox: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"from a file")
    sandbox.upload(local, "/root/file")
    assert sandbox.download("/root/file") == b"from a file"


@pytest.mark.parametrize("name", ["it's", 'a "b"', "new\nline", "ünï\u2028cödé", "-rf"])
def test_names_are_taken_literally(sandbox: Sandbox, name: str) -> None:
    sandbox.upload(b"content", f"/root/odd/{name}")
    assert python(sandbox, f"import os; print(os.listdir('/root/odd') == [{name!a}])") == "True"
    assert sandbox.download(f"/root/odd/{name}") == b"content"


def test_a_transfer_leaves_the_repl_alone(sandbox: Sandbox) -> None:
    python(sandbox, "before = None; before = set(globals())\nbase64 = os = open = exec = 'mine'")
    sandbox.upload(b"content", "/root/file")
    assert sandbox.download("/root/file") == b"content"
    added = "sorted(set(globals()) - before)"
    assert python(sandbox, f"print(*{added}, base64, os, open, exec)") == (
        "base64 exec open os mine mine mine mine"
    )


def test_a_transfer_bears_a_thread_that_prints(sandbox: Sandbox) -> None:
    python(
        sandbox,
        """
        import threading, time
        def printing():
            while True:
                print("from a thread")
                time.sleep(0.001)
        threading.Thread(target=printing, daemon=True).start()
        """,
    )
    content = os.urandom(100_000)
    sandbox.upload(content, "/root/file")
    assert sandbox.download("/root/file") == content


def test_a_missing_file_is_an_oserror_with_its_path(sandbox: Sandbox) -> None:
    with pytest.raises(FileTransferError, match="No such file") as caught:
        sandbox.download("/root/missing")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/root/missing")


def test_an_upload_onto_a_folder_is_an_oserror_with_its_path(sandbox: Sandbox) -> None:
    with pytest.raises(FileTransferError) as caught:
        sandbox.upload(b"", "/root")
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, "/root")


def test_a_full_disk_is_an_oserror_and_nothing_else(sandbox: Sandbox, bystander: Sandbox) -> None:
    bash(sandbox, "fallocate -l $(($(stat -f -c '%f*%S' /) - 20000000)) /root/filler")
    with pytest.raises(FileTransferError) as caught:
        sandbox.upload(bytes(8 << 20), "/root/file")
    assert caught.value.errno == errno.ENOSPC
    bash(sandbox, "rm /root/filler /root/file")
    sandbox.upload(bytes(8 << 20), "/root/file")
    assert sandbox.download("/root/file") == bytes(8 << 20)
    bystander.upload(b"content", "/root/file")


def test_children_inherit_uploads_and_write_their_own(sandbox: Sandbox) -> None:
    content = os.urandom(1 << 20)
    sandbox.upload(content, "/root/file")
    with forked(sandbox, 2) as children:
        children[0].upload(b"mine", "/root/file")
        assert children[0].download("/root/file") == b"mine"
        assert children[1].download("/root/file") == content
    assert sandbox.download("/root/file") == content

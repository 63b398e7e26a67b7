"""Uploads and downloads."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
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
    before = [found.name for found in sandbox.files.list("/root")]
    with pytest.raises(FileTransferError) as caught:
        sandbox.upload(bytes(40 << 20), "/root/file")
    assert caught.value.errno == errno.ENOSPC
    assert [found.name for found in sandbox.files.list("/root")] == before
    bash(sandbox, "rm /root/filler")
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


def test_a_long_file_is_streamed_both_ways_and_comes_back_as_it_went(sandbox: Sandbox) -> None:
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for number in range(200):
            part = number.to_bytes(8, "little") + block[8:]
            digest.update(part)
            yield part

    assert sandbox.files.write("/root/long", blocks()).size_bytes == 200 << 20
    assert bash(sandbox, "sha256sum < /root/long").split()[0] == digest.hexdigest()
    arrived = hashlib.sha256()
    with sandbox.files.stream("/root/long") as parts:
        for part in parts:
            arrived.update(part)
    assert arrived.digest() == digest.digest()


def test_an_upload_that_breaks_off_leaves_the_old_file_and_nothing_else(sandbox: Sandbox) -> None:
    sandbox.files.write("/srv/file", b"old", mode=0o640)

    def breaking() -> Iterator[bytes]:
        yield os.urandom(5_000_000)
        raise RuntimeError("the client has had enough")

    with pytest.raises(RuntimeError, match="had enough"):
        sandbox.files.write("/srv/file", breaking())
    assert sandbox.files.read("/srv/file") == b"old"
    assert bash(sandbox, "ls -A /srv") == "file"
    assert sandbox.files.stat("/srv/file").mode == 0o640


def test_an_upload_under_way_goes_on_in_the_source_and_leaves_nothing_in_the_child(sandbox: Sandbox) -> None:
    begun, forking_is_over = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield os.urandom(3_000_000)
        begun.set()
        forking_is_over.wait(120)
        yield b"end"

    uploading = threading.Thread(target=sandbox.files.write, args=("/srv/file", slowly()))
    uploading.start()
    begun.wait(120)
    with forked(sandbox) as [child]:
        forking_is_over.set()
        uploading.join()
        assert sandbox.files.stat("/srv/file").size_bytes == 3_000_003
        assert child.files.list("/srv") == []
        child.files.write("/srv/file", b"mine")
        assert child.files.read("/srv/file") == b"mine"


def test_permissions_owner_and_links_are_kept(sandbox: Sandbox) -> None:
    bash(
        sandbox,
        "echo old > /srv/real && chown 12:34 /srv/real && chmod 4711 /srv/real && ln -s real /srv/link",
    )
    written = sandbox.files.write("/srv/link", b"new")
    assert (written.path, written.uid, written.gid, written.mode) == ("/srv/real", 12, 34, 0o4711)
    assert sandbox.files.stat("/srv/link").target == "real"
    assert bash(sandbox, "cat /srv/link") == "new"
    assert sandbox.files.write("/srv/new", b"", mode=0o600).mode == 0o600


def test_what_is_no_plain_file_is_refused(sandbox: Sandbox) -> None:
    bash(sandbox, "mkfifo /srv/pipe")
    for path in ("/srv/pipe", "/dev/zero"):
        with pytest.raises(FileTransferError) as caught:
            sandbox.download(path)
        assert caught.value.errno == errno.EOPNOTSUPP
    assert sandbox.download("/proc/self/status").startswith(b"Name:")
    with pytest.raises(FileTransferError):
        sandbox.upload(b"1", "/proc/version")


def test_the_tree_is_made_listed_moved_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    files.write("/srv/ünï/\u2028/odd", b"1")
    bash(sandbox, "mkdir /srv/$'not-utf8-\\xff'")
    paths = ["/srv/not-utf8-\udcff", "/srv/ünï", "/srv/ünï/\u2028", "/srv/ünï/\u2028/odd"]
    assert [found.path for found in files.list("/srv", depth=3)] == paths
    files.write("/srv/not-utf8-\udcff/file", b"there")
    assert files.read("/srv/not-utf8-\udcff/file") == b"there"
    files.move("/srv/ünï", "/srv/moved")
    assert files.read("/srv/moved/\u2028/odd") == b"1"
    with pytest.raises(FileTransferError) as caught:
        files.remove("/srv/moved")
    assert caught.value.errno == errno.ENOTEMPTY
    files.remove("/srv/moved", recursive=True)
    assert not files.exists("/srv/moved")


def test_files_are_served_while_code_runs(sandbox: Sandbox) -> None:
    running = sandbox.run_code_stream("import time\nprint('begun')\ntime.sleep(3600)")
    assert next(running).data == "begun"
    sandbox.upload(b"content", "/root/file")
    assert sandbox.download("/root/file") == b"content"


def test_a_watch_tells_what_code_does(sandbox: Sandbox) -> None:
    sandbox.files.mkdir("/srv/tree")
    with sandbox.files.watch("/srv/tree", recursive=True) as events:
        bash(
            sandbox, "mkdir /srv/tree/new && echo 1 > /srv/tree/new/file && mv /srv/tree/new /srv/tree/moved"
        )
        bash(sandbox, "rm -r /srv/tree")
        seen = [(event.type, event.path) for event in events]
    for expected in [
        ("create", "/srv/tree/new"),
        ("create", "/srv/tree/new/file"),
        ("moved_to", "/srv/tree/moved"),
        ("delete", "/srv/tree"),
    ]:
        assert expected in seen

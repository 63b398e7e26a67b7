"""Files and diffs, with this machine's own files and bash in the place of a sandbox's."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httpx
import pytest

from podflare import (
    BadRequestError,
    ConnectionLostError,
    FileEvent,
    FileTransferError,
    PodflareError,
    ProtocolError,
    Sandbox,
    SandboxNotFoundError,
    _diff,
)

from .conftest import SANDBOX_ID, ScriptedHost, ndjson

FILES = f"/v1/sandboxes/{SANDBOX_ID}/files"
CODES = {errno.ENOENT: 404, errno.EISDIR: 409, errno.ENOTEMPTY: 409, errno.ENOSPC: 507}


def run_here(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    assert body["language"] == "bash"
    done = subprocess.run(["bash", "-s"], input=body["code"].encode(), capture_output=True, check=False)
    stdout, stderr = (output.decode(errors="replace").split("\n") for output in (done.stdout, done.stderr))
    events = [("stdout", line) for line in stdout] + [("stderr", line) for line in stderr]
    return httpx.Response(200, content=ndjson(*events, ("exit", done.returncode)))


def query(request: httpx.Request) -> dict[str, str]:
    pairs = (pair.split("=") for pair in request.url.query.decode().split("&"))
    return {name: os.fsdecode(unquote_to_bytes(value)) for name, value in pairs}


def entry(path: Path) -> dict[str, object]:
    stat = path.lstat()
    kind = "symlink" if path.is_symlink() else "directory" if path.is_dir() else "file"
    told: dict[str, object] = {
        "path": os.fsencode(path).decode(errors="replace"),
        "name": path.name.encode(errors="replace").decode(),
        "type": kind,
        "size_bytes": stat.st_size,
        "mode": f"{stat.st_mode & 0o7777:04o}",
        "uid": stat.st_uid,
        "gid": stat.st_gid,
        "modified_at_ms": stat.st_mtime_ns // 1_000_000,
    }
    if kind == "symlink":
        told["target"] = str(path.readlink())
    if told["path"] != str(path):
        told["encoded_path"] = "".join(f"%{byte:02X}" for byte in os.fsencode(path))
    return told


def on_files(
    act: Callable[[Path, httpx.Request], httpx.Response],
) -> Callable[[httpx.Request], httpx.Response]:
    """Answer from this machine's files, with errors as a host tells them."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = query(request).get("path") or query(request)["from"]
        try:
            return act(Path(path), request)
        except OSError as error:
            number = error.errno or 0
            told = {"error": f"{path}: {error.strerror}", "code": errno.errorcode[number]}
            return httpx.Response(CODES[number], json=told)

    return answer


def upload(path: Path, request: httpx.Request) -> httpx.Response:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(request.content)
    if mode := query(request).get("mode"):
        path.chmod(int(mode, 8))
    return httpx.Response(200, json=entry(path))


def listing_of(path: Path, request: httpx.Request) -> httpx.Response:
    pattern = "*" if query(request)["depth"] == "1" else "**/*"
    entries = [entry(found) for found in sorted(path.glob(pattern))]
    return httpx.Response(200, json={"entries": entries, "truncated": False})


def make(path: Path, _: httpx.Request) -> httpx.Response:
    path.mkdir(parents=True, exist_ok=True)
    return httpx.Response(200, json=entry(path))


def move(path: Path, request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=entry(path.rename(query(request)["to"])))


def remove(path: Path, request: httpx.Request) -> httpx.Response:
    if path.is_dir() and query(request)["recursive"] == "false":
        path.rmdir()
    else:
        subprocess.run(["rm", "-r", str(path)], check=True)
    return httpx.Response(204)


@pytest.fixture
def here(host: ScriptedHost, sandbox: Sandbox) -> Sandbox:
    """A sandbox whose files are this machine's, and whose code runs here."""
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", run_here)
    host.on("PUT", FILES, on_files(upload))
    host.on("GET", FILES, on_files(lambda path, _: httpx.Response(200, content=path.read_bytes())))
    host.on("DELETE", FILES, on_files(remove))
    host.on("GET", f"{FILES}/stat", on_files(lambda path, _: httpx.Response(200, json=entry(path))))
    host.on("GET", f"{FILES}/list", on_files(listing_of))
    host.on("POST", f"{FILES}/mkdir", on_files(make))
    host.on("POST", f"{FILES}/move", on_files(move))
    return sandbox


@pytest.mark.parametrize("length", [0, 1, 10_000_000])
def test_a_file_comes_back_as_it_went(here: Sandbox, tmp_path: Path, length: int) -> None:
    content = os.urandom(length)
    remote = tmp_path / "new" / "folders" / "file"
    here.upload(content, str(remote))
    assert remote.read_bytes() == content
    assert here.download(str(remote)) == content


def test_a_transfer_runs_no_code(host: ScriptedHost, here: Sandbox, tmp_path: Path) -> None:
    here.upload(b"content", str(tmp_path / "file"))
    here.download(str(tmp_path / "file"))
    assert host.calls() == ["POST /v1/sandboxes", f"PUT {FILES}", f"GET {FILES}"]


def test_a_local_file_may_be_named_instead_of_its_bytes(here: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"from a file")
    here.upload(local, str(tmp_path / "remote"))
    here.upload(str(local), str(tmp_path / "other"))
    assert here.download(str(tmp_path / "remote")) == here.download(str(tmp_path / "other")) == b"from a file"


@pytest.mark.parametrize(
    "name", ["it's", 'a "b"', "\\n{x}%s", "ünï\u2028cödé", "new\nline", "-rf", "a+b&c=d#e?f%41"]
)
def test_names_are_taken_literally(here: Sandbox, tmp_path: Path, name: str) -> None:
    here.upload(b"content", str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == b"content"
    assert here.download(str(tmp_path / name)) == b"content"


def test_a_missing_remote_file_is_an_oserror_with_its_path(here: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "missing")
    with pytest.raises(OSError, match="No such file") as caught:
        here.download(path)
    assert isinstance(caught.value, FileTransferError)
    assert isinstance(caught.value, PodflareError)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, path)


def test_an_upload_onto_a_folder_is_an_oserror_with_its_path(here: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(FileTransferError) as caught:
        here.upload(b"", str(tmp_path))
    assert (caught.value.errno, caught.value.filename) == (errno.EISDIR, str(tmp_path))


def test_a_missing_local_file_is_an_oserror_before_any_request(host: ScriptedHost, sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundError):
        sandbox.upload("/no/such/file", "/root/file")
    assert host.calls() == ["POST /v1/sandboxes"]


def test_content_may_be_anything_that_yields_bytes(here: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"content")
    parts = iter([b"con", b"", b"tent"])
    with local.open("rb") as file:
        for content in (b"content", bytearray(b"content"), memoryview(b"content"), file, parts):
            written = here.files.write(str(tmp_path / "file"), content, mode=0o751)
            assert (written.path, written.size_bytes) == (str(tmp_path / "file"), 7)
            assert (written.name, written.type, written.mode) == ("file", "file", 0o751)
            assert here.files.read(str(tmp_path / "file")) == b"content"


def test_an_upload_is_sent_as_it_is_read(host: ScriptedHost, sandbox: Sandbox) -> None:
    sent: list[int] = []

    def content() -> Iterator[bytes]:
        for part in range(4):
            sent.append(part)
            yield b"x" * 1000

    host.on(
        "PUT", FILES, httpx.Response(507, json={"error": "/f: No space left on device", "code": "ENOSPC"})
    )
    with pytest.raises(FileTransferError) as caught:
        sandbox.files.write("/f", content())
    assert (caught.value.errno, caught.value.strerror) == (errno.ENOSPC, "No space left on device")
    assert host.requests[-1].headers["transfer-encoding"] == "chunked"
    assert sent == [0, 1, 2, 3]


def test_a_file_is_read_into_a_local_one(here: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "remote").write_bytes(b"content")
    here.files.read_to(tmp_path / "remote", tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == b"content"
    target = io.BytesIO()
    here.files.read_to(str(tmp_path / "remote"), target)
    assert target.getvalue() == b"content"
    with pytest.raises(FileTransferError):
        here.files.read_to(tmp_path / "missing", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with here.files.stream(tmp_path / "remote") as parts:
        assert b"".join(parts) == b"content"


def test_a_download_that_breaks_off_is_an_error(host: ScriptedHost, sandbox: Sandbox) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"so far"
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    host.on("GET", FILES, lambda request: httpx.Response(200, content=breaking(), request=request))
    with pytest.raises(ConnectionLostError):
        sandbox.download("/root/file")


def test_the_tree_is_made_listed_moved_and_removed(here: Sandbox, tmp_path: Path) -> None:
    files, root = here.files, str(tmp_path)
    assert files.mkdir(f"{root}/a/b").type == "directory"
    files.write(f"{root}/a/b/file", b"1")
    (tmp_path / "a" / "link").symlink_to("b/file")
    assert files.stat(f"{root}/a/link").target == "b/file"
    assert [found.name for found in files.list(f"{root}/a")] == ["b", "link"]
    assert [found.path for found in files.list(f"{root}/a", depth=2)] == [
        f"{root}/a/b",
        f"{root}/a/b/file",
        f"{root}/a/link",
    ]
    assert files.move(f"{root}/a/b/file", f"{root}/moved").path == f"{root}/moved"
    assert not files.exists(f"{root}/a/b/file")
    assert files.exists(f"{root}/moved")
    with pytest.raises(FileTransferError) as caught:
        files.remove(f"{root}/a")
    assert caught.value.errno == errno.ENOTEMPTY
    files.remove(f"{root}/a", recursive=True)
    files.remove(f"{root}/moved")
    assert files.list(root) == []


def test_a_name_that_is_not_unicode_goes_there_and_back(here: Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path) + os.fsdecode(b"/odd\xff name")
    here.files.write(path, b"content")
    [found] = here.files.list(tmp_path)
    assert found.path == path
    assert here.files.read(found.path) == b"content"


def test_a_watch_yields_events(host: ScriptedHost, sandbox: Sandbox) -> None:
    lines = (
        b'\n{"type": "create", "path": "/srv/a", "is_directory": true, "cookie": 0}\n\n'
        b'{"type": "moved_to", "path": "?", "encoded_path": "/srv/%FF", "is_directory": false, "cookie": 7}\n'
    )
    host.on("GET", f"{FILES}/watch", httpx.Response(200, content=lines))
    with sandbox.files.watch("/srv", recursive=True) as events:
        assert list(events) == [
            FileEvent("create", "/srv/a", True, 0),
            FileEvent("moved_to", os.fsdecode(b"/srv/\xff"), False, 7),
        ]
    assert host.requests[-1].url.query == b"path=/srv&recursive=true"


@pytest.mark.parametrize("line", [b"{}", b"[]", b"nonsense"])
def test_what_is_no_event_is_an_error(host: ScriptedHost, sandbox: Sandbox, line: bytes) -> None:
    host.on("GET", f"{FILES}/watch", httpx.Response(200, content=line + b"\n"))
    with pytest.raises(ProtocolError), sandbox.files.watch("/srv") as events:
        list(events)


@pytest.mark.parametrize("answer", [{}, {"path": "/a", "mode": "rw"}, {"entries": 1}])
def test_what_is_no_file_is_an_error(host: ScriptedHost, sandbox: Sandbox, answer: dict[str, object]) -> None:
    host.on("GET", f"{FILES}/stat", httpx.Response(200, json=answer))
    with pytest.raises(ProtocolError):
        sandbox.files.stat("/a")


def test_a_missing_sandbox_is_not_a_missing_file(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on("GET", FILES, httpx.Response(404, json={"error": "sandbox not found"}))
    with pytest.raises(SandboxNotFoundError):
        sandbox.download("/root/file")
    host.on("PUT", FILES, httpx.Response(400, json={"error": "path is empty"}))
    with pytest.raises(BadRequestError):
        sandbox.upload(b"", "")


ODD_NAMES = [
    b"space and\ttab",
    b"new\nline",
    b"quote'\"",
    b"-rf",
    b"back\\slash",
    "ünï".encode(),
    b"not-utf8-\xff",
]


def test_a_diff_tells_added_removed_and_modified_files_apart(here: Sandbox, tmp_path: Path) -> None:
    paths = write_tree(tmp_path, {b"same": b"1", b"old": b"2", b"changed": b"3"})
    first = here._list_files(listing(tmp_path))
    (tmp_path / "old").unlink()
    write_tree(tmp_path, {b"new": b"4", b"changed": b"5", b"folder/deep": b"6"})
    other = here._list_files(listing(tmp_path))
    assert sorted(first) == sorted(paths)
    root = str(tmp_path)
    assert _diff.compare(first, other) == {
        "added": [f"{root}/folder/deep", f"{root}/new"],
        "removed": [f"{root}/old"],
        "modified": [f"{root}/changed"],
    }


def test_a_listing_holds_odd_names_whole(here: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "it's a $(folder)"
    folder.mkdir()
    paths = write_tree(folder, dict.fromkeys(ODD_NAMES, b"x"))
    assert sorted(here._list_files(listing(folder))) == sorted(paths)


def test_links_and_missing_paths_are_not_listed(here: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "folder").mkdir()
    assert here._list_files(listing(tmp_path, tmp_path / "missing")) == {}


def test_a_path_that_looks_like_an_option_is_a_path(here: Sandbox) -> None:
    assert here._list_files(_diff.listing_command(["-delete", "(", "!"])) == {}


def test_a_listing_that_cannot_be_made_is_an_error(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stderr", "find, xargs sha256sum and base64 ended with 0 127 0"), ("exit", 1))
    with pytest.raises(PodflareError, match="ended with 0 127 0"):
        sandbox.diff(sandbox)


def test_a_missing_tool_fails_the_listing() -> None:
    command = _diff.listing_command(["/"])
    done = subprocess.run(
        ["/bin/bash", "-s"], input=command.encode(), env={"PATH": "/nowhere"}, capture_output=True
    )
    assert done.returncode == 1
    assert b"ended with 127 127 127" in done.stderr


def test_a_diff_looks_into_root_and_tmp_unless_told_otherwise(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("exit", 0))
    assert sandbox.diff(sandbox) == {"added": [], "removed": [], "modified": []}
    assert str(host.body()["code"]).startswith("find /root /tmp -type f ")
    assert host.body()["language"] == "bash"
    sandbox.diff(sandbox, ["/srv/it's"])
    assert str(host.body()["code"]).startswith("""find '/srv/it'"'"'s' -type f """)


@pytest.mark.parametrize("path", ["", "nul\0inside", "not-utf8-\udcff"])
def test_a_diff_refuses_what_is_not_a_path(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(ValueError, match="Not a path"):
        sandbox.diff(sandbox, [path])


def test_a_diff_refuses_a_string_in_the_place_of_its_paths(host: ScriptedHost, sandbox: Sandbox) -> None:
    with pytest.raises(TypeError, match="a sequence of paths, unlike '/root'"):
        sandbox.diff(sandbox, "/root")
    assert host.calls() == ["POST /v1/sandboxes"]


def listing(*paths: Path) -> str:
    return _diff.listing_command([str(path) for path in paths])


def write_tree(root: Path, files: dict[bytes, bytes]) -> list[str]:
    paths = [Path(os.fsdecode(os.path.join(os.fsencode(root), name))) for name in files]  # noqa: PTH118
    for path, content in zip(paths, files.values(), strict=True):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return [str(path) for path in paths]

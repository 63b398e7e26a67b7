"""Uploads, downloads and diffs, with this machine's Python and bash in the place of a sandbox's."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from podflare import FileTransferError, PodflareError, Sandbox, _diff, _files
from podflare._files import DOWNLOAD_CHUNK_LEN, UPLOAD_CHUNK_LEN

from .conftest import SANDBOX_ID, ScriptedHost, ndjson

# The host's.
REQUEST_LEN_MAX = 32 * 1024 * 1024
LINE_LEN_MAX = 16 * 1024 * 1024


def run_here(request: httpx.Request) -> httpx.Response:
    body = json.loads(request.content)
    program = {
        "python": [sys.executable, "-c", "import sys; exec(sys.stdin.read())"],
        "bash": ["bash", "-s"],
    }[body["language"]]
    done = subprocess.run(program, input=body["code"].encode(), capture_output=True, check=False)
    stdout, stderr = (output.decode(errors="replace").split("\n") for output in (done.stdout, done.stderr))
    events = [("stdout", line) for line in stdout] + [("stderr", line) for line in stderr]
    return httpx.Response(200, content=ndjson(*events, ("exit", done.returncode)))


@pytest.fixture
def here(host: ScriptedHost, sandbox: Sandbox) -> Sandbox:
    """A sandbox whose code runs on this machine."""
    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", run_here)
    return sandbox


@pytest.mark.parametrize(
    "length", [0, 1, UPLOAD_CHUNK_LEN, UPLOAD_CHUNK_LEN + 1, DOWNLOAD_CHUNK_LEN, 10_000_000]
)
def test_a_file_comes_back_as_it_went(here: Sandbox, tmp_path: Path, length: int) -> None:
    content = os.urandom(length)
    remote = tmp_path / "new" / "folders" / "file"
    here.upload(content, str(remote))
    assert remote.read_bytes() == content
    assert here.download(str(remote)) == content


def test_a_local_file_may_be_named_instead_of_its_bytes(here: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"from a file")
    here.upload(local, str(tmp_path / "remote"))
    here.upload(str(local), str(tmp_path / "other"))
    assert here.download(str(tmp_path / "remote")) == here.download(str(tmp_path / "other")) == b"from a file"


def test_an_upload_replaces_and_keeps_the_mode(here: Sandbox, tmp_path: Path) -> None:
    remote = tmp_path / "script"
    remote.write_bytes(b"long old content")
    remote.chmod(0o755)
    here.upload(bytearray(b"new"), str(remote))
    assert remote.read_bytes() == b"new"
    assert remote.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["it's", 'a "b"', "\\n{x}%s", "ünï\u2028cödé", "new\nline", "-rf"])
def test_names_are_taken_literally(here: Sandbox, tmp_path: Path, name: str) -> None:
    here.upload(b"content", str(tmp_path / name))
    assert (tmp_path / name).read_bytes() == b"content"
    assert here.download(str(tmp_path / name)) == b"content"


def test_a_file_of_no_stated_size_is_read_whole(here: Sandbox) -> None:
    assert here.download("/proc/self/status").startswith(b"Name:")


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


def test_another_failure_shows_the_last_line_of_the_traceback(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stderr", "Traceback …"), ("stderr", "MemoryError: too much"), ("exit", 1))
    with pytest.raises(FileTransferError, match="MemoryError: too much"):
        sandbox.download("/root/file")


@pytest.mark.parametrize(("chunk", "content"), [("5:aGVsbG8=", b"hello"), ("3:YWJj", b"abc"), ("0:", b"")])
def test_other_output_around_a_chunk_does_no_harm(
    host: ScriptedHost, sandbox: Sandbox, chunk: str, content: bytes
) -> None:
    around = ("stdout", "from a thread")
    host.on_exec(around, ("stdout", f"podflare-chunk:{chunk}"), around, around, ("exit", 0))
    assert sandbox.download("/root/file") == content


def test_a_chunk_that_the_host_has_cut_into_lines_is_whole(host: ScriptedHost, sandbox: Sandbox) -> None:
    host.on_exec(("stdout", "podflare-chunk:5:aGV"), ("stdout", "sbG8="), ("stdout", "more"), ("exit", 0))
    assert sandbox.download("/root/file") == b"hello"


def test_names_of_the_repl_do_not_disturb_a_transfer(tmp_path: Path) -> None:
    snippet = _files._snippet(_files._WRITE, path=str(tmp_path / "file"), mode="wb", data="aGVsbG8=")
    names = dict.fromkeys(["exec", "open", "os", "base64", "path", "__import__"], "mine")
    exec(snippet, names)
    assert (tmp_path / "file").read_bytes() == b"hello"
    assert {name for name, value in names.items() if value != "mine"} == {"__builtins__"}


@pytest.mark.parametrize(
    "output",
    ["", "podflare-chunk:", "podflare-chunk:5:aGVs", "podflare-chunk:5:aGV!sbG8=", "podflare-chunk:5:a"],
)
def test_a_damaged_chunk_is_an_error(host: ScriptedHost, sandbox: Sandbox, output: str) -> None:
    host.on_exec(("stdout", output), ("exit", 0))
    with pytest.raises(FileTransferError, match="mixed with other output"):
        sandbox.download("/root/file")


def test_requests_and_lines_stay_far_below_the_hosts_limits(
    host: ScriptedHost, here: Sandbox, tmp_path: Path
) -> None:
    lines: list[bytes] = []

    def run_and_measure(request: httpx.Request) -> httpx.Response:
        response = run_here(request)
        lines.extend(response.content.split(b"\n"))
        return response

    host.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", run_and_measure)
    here.upload(os.urandom(30_000_000), str(tmp_path / "file"))
    assert len(here.download(str(tmp_path / "file"))) == 30_000_000
    assert max(len(request.content) for request in host.requests) < REQUEST_LEN_MAX / 4
    assert DOWNLOAD_CHUNK_LEN < max(len(line) for line in lines) < LINE_LEN_MAX / 4


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

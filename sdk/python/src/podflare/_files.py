"""Uploads and downloads, as Python snippets that carry base64 through the REPL.

A file travels in chunks, so that its size is not bounded by that of one request or one line. The snippets run
in their own namespace: they leave no names behind in the REPL, and its names do not disturb them.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import re
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from podflare._errors import FileTransferError
from podflare._types import ExecResult

RunPython = Callable[[str], ExecResult]

# A request of 4 MiB, well below the host's 32 MiB.
UPLOAD_CHUNK_LEN = 3 * 1024 * 1024
# A line of 2 MiB.
DOWNLOAD_CHUNK_LEN = 3 * 512 * 1024

# Stands before a chunk, because background threads of the REPL may print something before or after it.
_MARK = "podflare-chunk:"
# The chunk's length and its base64, which the host may have cut into several lines.
_CHUNK = re.compile(_MARK + r"(\d{1,9}):([A-Za-z0-9+/=\n]*)")

_WRITE = """
import base64, os
if mode == "wb":
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
with open(path, mode) as file:
    file.write(base64.b64decode(data))
"""

# One write, so that nothing of other threads gets between.
_READ = """
import base64, sys
with open(path, "rb") as file:
    if offset:
        file.seek(offset)
    data = file.read(length)
sys.stdout.write(f"\\n{mark}{len(data)}:{base64.b64encode(data).decode()}\\n")
sys.stdout.flush()
"""


def open_source(source: bytes | bytearray | memoryview | str | PathLike[str]) -> BinaryIO:
    """Open what is to be uploaded: bytes, or the path of a local file.

    Raises:
        OSError: The local file cannot be read.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    return Path(source).open("rb")


def upload(run_python: RunPython, source: BinaryIO, remote_path: str) -> None:
    """Write everything from source to the remote path, making its folders.

    Raises:
        FileTransferError: Writing failed; the remote file may hold a part.
    """
    mode = "wb"
    while (chunk := source.read(UPLOAD_CHUNK_LEN)) or mode == "wb":
        data = base64.b64encode(chunk).decode()
        _checked(run_python(_snippet(_WRITE, path=remote_path, mode=mode, data=data)), remote_path)
        mode = "ab"


def download(run_python: RunPython, remote_path: str) -> bytes:
    """Read the remote path.

    Raises:
        FileTransferError: Reading failed.
    """
    content = bytearray()
    while True:
        code = _snippet(_READ, path=remote_path, offset=len(content), length=DOWNLOAD_CHUNK_LEN, mark=_MARK)
        chunk = _chunk(_checked(run_python(code), remote_path).stdout, remote_path)
        content += chunk
        if len(chunk) < DOWNLOAD_CHUNK_LEN:
            return bytes(content)


def _snippet(source: str, **variables: str | int) -> str:
    namespace = ", ".join(f"{name!r}: {value!a}" for name, value in variables.items())
    # A function knows the built-in names, whatever the user's own `exec` is.
    return f"(lambda: None).__builtins__['exec']({source!r}, {{{namespace}}})"


def _checked(result: ExecResult, remote_path: str) -> ExecResult:
    if result.ok:
        return result
    last_line = result.stderr.strip().rpartition("\n")[2] or f"exit code {result.exit_code}"
    if found := re.search(r"\[Errno (\d+)\] ([^:]+)", last_line):
        raise FileTransferError(int(found[1]), found[2], remote_path)
    raise FileTransferError(errno.EIO, last_line, remote_path)


def _chunk(stdout: str, remote_path: str) -> bytes:
    if found := _CHUNK.search(stdout):
        length = int(found[1])
        encoded = found[2].replace("\n", "")[: _base64_len(length)]
        with suppress(binascii.Error):
            chunk = base64.b64decode(encoded, validate=True)
            if len(chunk) == length:
                return chunk
    message = "The chunk arrived mixed with other output of the sandbox's REPL; try again"
    raise FileTransferError(errno.EIO, message, remote_path)


def _base64_len(length: int) -> int:
    return (length + 2) // 3 * 4

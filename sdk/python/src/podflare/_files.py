"""The files of a sandbox, as its user holds them."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from podflare._client import Client
from podflare._errors import FileTransferError
from podflare._types import FileEntry, FileEvent, RemotePath

# `list` is a method's name, too.
Entries = list[FileEntry]


class Files:
    """The files of one sandbox, read and written past its REPL, also while code runs; of any size.

    Remote paths that are relative start in /root. What is read or written is followed through symbolic
    links; everything else is about the link itself. Errors are those of Linux: `FileTransferError` is an
    OSError, and its `errno` tells a missing file from a full disk.
    """

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._id = sandbox_id

    def read(self, path: RemotePath) -> bytes:
        """Read a file whole.

        Raises:
            FileTransferError: It cannot be read.
            ConnectionLostError: It was not read to its end.
        """
        with self.stream(path) as parts:
            return b"".join(parts)

    def stream(self, path: RemotePath) -> AbstractContextManager[Iterator[bytes]]:
        """Read a file in parts, within a `with` block; nothing of it is kept in memory.

        Raises:
            FileTransferError: It cannot be read.
            ConnectionLostError: It was not read to its end.
        """
        return self._client.download_file(self._id, path)

    def read_to(self, path: RemotePath, local: str | PathLike[str] | BinaryIO) -> None:
        """Read a file into a local file, or into one that is open in binary mode.

        A local file that is named gets its content when that is known to be there; what goes wrong later
        leaves a part in it.

        Raises:
            OSError: The local file cannot be written, or (`FileTransferError`) the remote one not be read.
            ConnectionLostError: It was not read to its end.
        """
        with self.stream(path) as parts:
            if isinstance(local, (str, PathLike)):
                with Path(local).open("wb") as file:
                    file.writelines(parts)
            else:
                for part in parts:
                    local.write(part)

    def write(
        self,
        path: RemotePath,
        content: bytes | bytearray | memoryview | BinaryIO | Iterable[bytes],
        *,
        mode: int | None = None,
    ) -> FileEntry:
        """Write a file, making its folders. It appears whole, or stays as it was.

        Args:
            path: Where it goes; an existing file is replaced.
            content: Bytes, a file that is open in binary mode, or anything that yields bytes.
            mode: Permissions, such as 0o755; without them a file that is replaced keeps its own, and a new
                one gets 0o644.

        Raises:
            FileTransferError: It cannot be written.
        """
        if isinstance(content, (bytearray, memoryview)):
            content = io.BytesIO(content)
        return self._client.upload_file(self._id, path, content, mode=mode)

    def write_from(
        self, path: RemotePath, local: str | PathLike[str], *, mode: int | None = None
    ) -> FileEntry:
        """Write a file from a local one, as `write` does.

        Raises:
            OSError: The local file cannot be read, or (`FileTransferError`) the remote one not be written.
        """
        with Path(local).open("rb") as content:
            return self.write(path, content, mode=mode)

    def stat(self, path: RemotePath) -> FileEntry:
        """Look at a file or folder, or at a symbolic link itself.

        Raises:
            FileTransferError: It cannot be looked at.
        """
        return self._client.stat_file(self._id, path)

    def exists(self, path: RemotePath) -> bool:
        """Ask whether there is something; a symbolic link to nothing is something.

        Raises:
            FileTransferError: That cannot be found out.
        """
        try:
            self.stat(path)
        except FileTransferError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def list(self, path: RemotePath = ".", depth: int = 1) -> Entries:
        """List a folder, and those below it down to the depth, by name; links are not followed.

        Raises:
            FileTransferError: It cannot be listed.
        """
        return self._client.list_files(self._id, path, depth)

    def mkdir(self, path: RemotePath, *, mode: int | None = None) -> FileEntry:
        """Make a folder and its parents; one that is there stays as it is.

        Raises:
            FileTransferError: It cannot be made.
        """
        return self._client.make_directory(self._id, path, mode=mode)

    def move(self, path: RemotePath, to: RemotePath) -> FileEntry:
        """Rename a file or folder within its file system; a file of that name is replaced.

        Raises:
            FileTransferError: It cannot be moved.
        """
        return self._client.move_file(self._id, path, to)

    def remove(self, path: RemotePath, *, recursive: bool = False) -> None:
        """Remove a file or link, or a folder, which must be empty unless recursive.

        Raises:
            FileTransferError: It cannot be removed.
        """
        self._client.remove_file(self._id, path, recursive=recursive)

    def watch(
        self, path: RemotePath, *, recursive: bool = False
    ) -> AbstractContextManager[Iterator[FileEvent]]:
        """Watch a file or folder; what happens in the `with` block and later is told, until it is gone.

        Watching is not using: the sandbox may idle meanwhile.

            with sandbox.files.watch("/srv", recursive=True) as events:
                for event in events:
                    print(event.type, event.path)

        Raises:
            FileTransferError: It cannot be watched.
        """
        return self._client.watch_files(self._id, path, recursive=recursive)

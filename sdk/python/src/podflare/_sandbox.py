"""A sandbox, as its user holds it."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from os import PathLike
from types import TracebackType

from podflare import _diff
from podflare._checkpoint import Checkpoint
from podflare._client import Client, resolve_host, shared_client
from podflare._diff import Diff
from podflare._errors import PodflareError, SandboxNotFoundError
from podflare._files import Files
from podflare._pty import PtyNamespace
from podflare._space import Space
from podflare._types import (
    Egress,
    Event,
    ExecInfo,
    ExecResult,
    ForkFailure,
    Language,
    NetworkInfo,
    SandboxInfo,
    check_children,
)


class Sandbox:
    """A microVM of your own; making the object makes the VM, leaving its `with` block destroys it.

    One sandbox may be used from several threads; the host runs one piece of code at a time in each sandbox,
    in the order of arrival.

    Args:
        template: Name of the image and state to start from; otherwise "default". `Client.templates` lists
            them.
        region: Where to create it, on hosts behind a router.
        host: Base URL. Otherwise PODFLARE_HOSTD_URL, then PODFLARE_HOST, then http://127.0.0.1:7070.
        client: Client to use; region, host, traceparent and api_key are then the client's own.
        traceparent: W3C trace context, sent with every request. Otherwise PODFLARE_TRACEPARENT.
        api_key: Bearer key. Otherwise PODFLARE_API_KEY.
        timeout_seconds: Longest life, in seconds.
        idle_timeout_seconds: Longest time without running code, or anybody at a terminal, in seconds.
        ram_mib: Memory, in MiB; otherwise the template's. Hosts raise it to a multiple of 256. The first
            sandbox of a template or of a size may wait some seconds for its boot.
        vcpus: Processors; otherwise the template's.
        rootfs_gb: Disk, in GiB; at least the template's 4. Copies have the same.
        persistent: Freeze the sandbox into a Space, as `freeze` does, when it has idled or lived for as long
            as it may, and when its host stops; otherwise it is destroyed. `Client.list_spaces` tells the
            Space. Closing the sandbox destroys it in any case.
        egress: What it reaches: everything public (True, the default), nothing (False), or what is on a list
            ({"allow": ["example.org", "10.1.0.0/16:443"]}). Fork children inherit this.

    A host lowers what is more than it offers, and says nothing: `info` tells what the sandbox really has.

    Attributes:
        id: The host's name for it.
        pty: Its terminals.

    Raises:
        ApiError: The host refused or failed.
        HostUnreachableError: There is no host.
    """

    id: str
    pty: PtyNamespace

    def __init__(
        self,
        *,
        template: str | None = None,
        region: str | None = None,
        host: str | None = None,
        client: Client | None = None,
        traceparent: str | None = None,
        api_key: str | None = None,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        ram_mib: int | None = None,
        vcpus: int | None = None,
        rootfs_gb: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
    ) -> None:
        client = client or _client_for(region, host, traceparent, api_key)
        sandbox_id = client.create_sandbox(
            template,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            ram_mib=ram_mib,
            vcpus=vcpus,
            rootfs_gb=rootfs_gb,
            persistent=persistent,
            egress=egress,
        )
        self._hold(sandbox_id, client)

    @classmethod
    def _existing(cls, sandbox_id: str, client: Client) -> Sandbox:
        sandbox = cls.__new__(cls)
        sandbox._hold(sandbox_id, client)
        return sandbox

    @classmethod
    def resume(
        cls,
        space_id: str,
        *,
        region: str | None = None,
        host: str | None = None,
        client: Client | None = None,
        traceparent: str | None = None,
        api_key: str | None = None,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
        keep: bool = False,
    ) -> Sandbox:
        """Make a sandbox of a Space, on the host that has it, as `Space.resume` does.

        Args:
            space_id: The Space. `Client.list_spaces` lists them.
            region: Where it was frozen, on hosts behind a router.
            host: Base URL, as for a new sandbox; so are client, traceparent and api_key.
            client: Client to use; region, host, traceparent and api_key are then the client's own.
            traceparent: W3C trace context.
            api_key: Bearer key.
            timeout_seconds: Longest life, in seconds, from now; otherwise the frozen sandbox's.
            idle_timeout_seconds: Longest time without running code; otherwise the frozen sandbox's.
            persistent: Freeze it again, into another Space, when its time is over; otherwise it is destroyed
                then.
            egress: What it reaches; otherwise what the frozen sandbox did.
            keep: Leave the Space as it is, so that it can be resumed again.

        Raises:
            SpaceNotFoundError: There is no such Space, or it has been resumed.
            CapacityError: The host is full.
            ApiError: It cannot be resumed on this host (409; the message says why), or the host failed; the
                Space is as it was.
            HostUnreachableError: There is no host.
        """
        client = client or _client_for(region, host, traceparent, api_key)
        resumed = client.resume_space(
            space_id,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            persistent=persistent,
            egress=egress,
            keep=keep,
        )
        return cls._existing(resumed["id"], client)

    def _hold(self, sandbox_id: str, client: Client) -> None:
        self.id = sandbox_id
        self.pty = PtyNamespace(client, self.id)
        self._client = client
        self._closed = False
        self._closing = threading.Lock()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} on {self._client.host}>"

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except PodflareError:
            # The block's own exception tells more than what follows from it.
            if exc is None:
                raise

    @property
    def files(self) -> Files:
        """The sandbox's files."""
        return Files(self._client, self.id)

    def info(self) -> SandboxInfo:
        """Ask what the sandbox really has, and how it is.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return self._client.sandbox_info(self.id)

    def extend(
        self,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        persistent: bool | None = None,
    ) -> SandboxInfo:
        """Give the sandbox more time, or less. What is not asked for stays as it is.

        Args:
            timeout_seconds: How long it may live from now on, in seconds.
            idle_timeout_seconds: Longest time without running code, or anybody at a terminal, in seconds.
            persistent: Whether it is frozen into a Space, and not destroyed, when its time is over.

        Returns:
            What the sandbox really has then, since a host lowers what is more than it offers. Its
            `timeout_seconds` counts from the sandbox's creation, as always.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return self._client.extend_sandbox(
            self.id,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            persistent=persistent,
        )

    def network(self) -> NetworkInfo:
        """Ask what the sandbox may reach, and what has gone through its network card.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return self._client.network(self.id)

    def set_egress(self, egress: Egress) -> None:
        """Change what the sandbox may reach, from now on, also for connections that are open.

        Raises:
            BadRequestError: The list has an entry that is none; the message names it.
            SandboxNotFoundError: The sandbox is gone.
        """
        self._client.set_egress(self.id, egress)

    def run_code(
        self,
        code: str,
        language: Language = "python",
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | bytes | None = None,
        timeout_ms: int | None = None,
        cancel_on_disconnect: bool = False,
    ) -> ExecResult:
        """Run code and wait for its end, however long that takes.

        Interrupting this, as Ctrl-C does, ends the waiting and not the code, unless `cancel_on_disconnect` is
        set: that runs on, its latest output is in `replay`, and what is run in this sandbox afterwards waits
        for its end. `execs` lists it and `cancel` ends it, as closing the sandbox does. Processes that the
        code has started in the background outlive it.

        Args:
            code: Source text, up to 32 MiB. It may be indented as a whole.
            language: "python" runs in the sandbox's one REPL, where variables stay; the value of a last bare
                expression is printed. "bash" is a new shell for each call.
            env: Environment variables for this call, at most 256 and 64 KiB together. Afterwards Python's
                `os.environ` has the former values of these names again, whatever the code did to them.
            cwd: Directory to run in, an absolute path. Python is back in its former one afterwards, wherever
                the code went.
            stdin: Standard input, up to 16 MiB: what bash, or `input()` and `sys.stdin` in Python, read
                during the call. Otherwise there is none.
            timeout_ms: Cancel the code when it has run for so long, not counting its wait for others.
                The exit code is then 124 and the reason "timeout". Python gets a KeyboardInterrupt, and keeps
                its variables unless it ignores that; bash ends with its process group.
            cancel_on_disconnect: Cancel the code when this call is broken off, or this program ends.

        Raises:
            BadRequestError: An argument is out of range.
            SandboxNotFoundError: The sandbox is gone; the message says why.
            ProtocolError: The sandbox or its host went away while the code ran.
        """
        stream = self.run_code_stream(
            code,
            language,
            env=env,
            cwd=cwd,
            stdin=stdin,
            timeout_ms=timeout_ms,
            cancel_on_disconnect=cancel_on_disconnect,
        )
        with closing(stream):
            return ExecResult.from_events(stream)

    def run_code_stream(
        self,
        code: str,
        language: Language = "python",
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: str | bytes | None = None,
        timeout_ms: int | None = None,
        cancel_on_disconnect: bool = False,
    ) -> Generator[Event, None, None]:
        """Run code and yield its output line by line as it is printed, then the exit code.

        The code starts with the first `next`. Closing the generator stops the reading, and the code only with
        `cancel_on_disconnect`. `run_code` tells of the arguments, and what is raised.
        """
        return self._client.exec_stream(
            self.id,
            code,
            language,
            env=env,
            cwd=cwd,
            stdin=stdin,
            timeout_ms=timeout_ms,
            cancel_on_disconnect=cancel_on_disconnect,
        )

    def execs(self) -> list[ExecInfo]:
        """List the executions that run or wait in this sandbox, in the order of their requests.

        In a fork's child this includes the Python code that ran in its source then, and goes on here too.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return self._client.list_execs(self.id)

    def cancel(self, exec_id: str) -> None:
        """Cancel an execution, without waiting for its end; one that is over is none to cancel.

        Python gets a KeyboardInterrupt, and keeps its variables unless it ignores that; bash ends with its
        process group. The exit code is 130, the reason "cancelled".

        Args:
            exec_id: The `id` of one of `execs`.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        self._client.cancel_exec(self.id, exec_id)

    def fork(self, n: int = 1) -> list[Sandbox]:
        """Copy the running sandbox n times: memory, processes, open files and disk.

        The children are independent of this sandbox, which runs on, and of each other. Close each of them.

        Args:
            n: Children wanted, 1 to 32.

        Raises:
            ValueError: n is out of range.
            SandboxNotFoundError: The sandbox is gone.
            ApiError: The host refused or failed; there are no children then. Its `failures` tell which of
                them could not be made.
        """
        check_children(n)
        return [Sandbox._existing(child, self._client) for child in self._client.fork_sandbox(self.id, n)]

    def fork_partial(self, n: int = 1) -> PartialFork:
        """Fork as `fork` does, but keep the children that could be made when others could not.

        Raises:
            ValueError: n is out of range.
            SandboxNotFoundError: The sandbox is gone.
            ApiError: The host refused, or no child could be made.
        """
        check_children(n)
        children, failures = self._client.fork_sandbox_partial(self.id, n)
        return PartialFork([Sandbox._existing(child, self._client) for child in children], failures)

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep the sandbox's state as it is now, to come back to it. The sandbox runs on.

        Args:
            name: A note for people, up to 128 characters.

        Raises:
            BadRequestError: The name is too long.
            SandboxNotFoundError: The sandbox is gone.
            CapacityError: The sandbox has 16 checkpoints, or the host is full.
        """
        return Checkpoint(self._client.create_checkpoint(self.id, name), self._client)

    def checkpoints(self) -> list[Checkpoint]:
        """List this sandbox's checkpoints, oldest first.

        Raises:
            SandboxNotFoundError: The sandbox is gone and has left no checkpoints.
        """
        return [Checkpoint(info, self._client) for info in self._client.list_checkpoints(self.id)]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put the sandbox back to one of its checkpoints, as often as you like.

        It keeps its id and its lifetime. What runs in it ends with exit code 137 and a reason.

        Raises:
            BadRequestError: The checkpoint is another sandbox's.
            SandboxNotFoundError: The sandbox is gone; `Checkpoint.fork` makes another of the checkpoint.
            CheckpointNotFoundError: The checkpoint is gone; the message says why.
            ApiError: The host refused or failed; the sandbox is as it was.
        """
        self._client.restore_sandbox(self.id, checkpoint.id)

    def freeze(self) -> Space:
        """Put the sandbox on the host's disk, all of it, where it waits to be resumed.

        It takes no memory and no processor there, and outlives its host's restarts. What runs in it ends with
        exit code 137 and a reason here, and goes on in what is resumed. This sandbox is gone then: closing it
        does nothing. Its checkpoints stay for as long as if its time had been over.

        Raises:
            SandboxNotFoundError: The sandbox is gone; the message says why.
            CapacityError: This API key has as many Spaces as it may have, or the host is busy.
            ApiError: It is being frozen already (409), the host's disk is full (507), or the host failed; the
                sandbox goes on.
            HostTimeoutError: The host has not answered for 15 minutes. It goes on freezing;
                `Client.list_spaces` tells whether it could.
        """
        space = Space(self._client.freeze_sandbox(self.id), self._client)
        self._closed = True
        return space

    def merge_into(self, winner: Sandbox) -> None:
        """Take over the winner's whole state; this sandbox's own is dropped.

        This sandbox keeps its id and its checkpoints, and gets the winner's, too. The winner must not be used
        any more; closing it does nothing.

        Raises:
            ValueError: The winner is this sandbox.
            SandboxNotFoundError: One of the two is gone.
        """
        if winner.id == self.id:
            raise ValueError("A sandbox cannot be merged into itself")
        self._client.merge_into(self.id, winner.id)
        winner._closed = True

    def diff(self, other: Sandbox, paths: Sequence[str] | None = None) -> Diff:
        """Compare the regular files of two sandboxes by their content.

        Args:
            other: The other sandbox.
            paths: Where to look, /root and /tmp unless given. A path that does not exist holds no files.

        Raises:
            TypeError: paths is a string.
            ValueError: A path is empty, holds a NUL or is not Unicode.
            PodflareError: The files of one sandbox could not be listed.
        """
        command = _diff.listing_command(paths or _diff.DEFAULT_PATHS)
        with ThreadPoolExecutor(max_workers=2) as pool:
            listings = pool.map(lambda sandbox: sandbox._list_files(command), (self, other))
            return _diff.compare(*listings)

    def upload(
        self, local_path: bytes | bytearray | memoryview | str | PathLike[str], remote_path: str
    ) -> None:
        """Write a file in the sandbox, making its folders.

        Args:
            local_path: The content as bytes, or the path of a local file.
            remote_path: Where it goes; an existing file is replaced when all has arrived, and keeps its mode.

        Raises:
            OSError: The local file cannot be read, or (`FileTransferError`) the remote one not be written.
        """
        if isinstance(local_path, (bytes, bytearray, memoryview)):
            self.files.write(remote_path, local_path)
        else:
            self.files.write_from(remote_path, local_path)

    def download(self, remote_path: str) -> bytes:
        """Read a file of the sandbox.

        Raises:
            FileTransferError: It cannot be read; also an OSError.
        """
        return self.files.read(remote_path)

    def ping(self) -> float:
        """Ask the guest for an answer; return its round trip as the host measured it, in milliseconds.

        It is answered also while code runs. A sandbox that is only pinged is idle all the same.

        Raises:
            SandboxNotFoundError: The sandbox is gone; the message says why.
            HostError: The guest did not answer in time.
        """
        return self._client.ping(self.id)

    def replay(self) -> list[Event]:
        """Return the latest events of this sandbox's executions, at most 1000.

        Raises:
            SandboxNotFoundError: The sandbox is gone.
        """
        return self._client.replay(self.id)

    def close(self) -> None:
        """Destroy the sandbox and its checkpoints.

        Does nothing if that was done before, or if the sandbox has been merged or frozen.

        Raises:
            PodflareError: The host failed or cannot be reached; closing may be tried again.
        """
        with self._closing:
            if self._closed:
                return
            with suppress(SandboxNotFoundError):  # Its time may be over already.
                self._client.destroy_sandbox(self.id)
            self._closed = True

    def _list_files(self, command: str) -> dict[str, str]:
        result = self.run_code(command, "bash")
        if not result.ok:
            raise PodflareError(f"Cannot list the files of {self.id}: {result.stderr}")
        return _diff.parse_listing(result.stdout)


@dataclass(frozen=True)
class PartialFork:
    """What became of a fork's children.

    Attributes:
        children: Those that live. Close each of them.
        failures: Why there are no others.
    """

    children: list[Sandbox]
    failures: list[ForkFailure]


def _client_for(region: str | None, host: str | None, traceparent: str | None, api_key: str | None) -> Client:
    url = resolve_host(host, region)
    if traceparent is None and api_key is None:
        return shared_client(url)
    return Client(url, traceparent=traceparent, api_key=api_key)

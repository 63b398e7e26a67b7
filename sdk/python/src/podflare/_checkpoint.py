"""A checkpoint, as its user holds it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from podflare._client import Client
from podflare._errors import PodflareError
from podflare._types import CheckpointInfo, check_children

if TYPE_CHECKING:
    from podflare._sandbox import Sandbox


class Checkpoint:
    """The state of a sandbox at one moment: memory, processes, open files and disk.

    `Sandbox.checkpoint` makes it. It stays as it is, whatever happens later in the sandbox or in what is made
    of it, and costs only what the sandbox changes. Leaving its `with` block deletes it. Closing its sandbox
    does so, too; if the sandbox ends in any other way, the checkpoint stays for as long as the sandbox was
    allowed to live, counted from the checkpoint's making.

    Attributes:
        id: The host's name for it.
        name: The name that it was given.
        sandbox_id: The sandbox that can be restored to it.
    """

    id: str
    name: str | None
    sandbox_id: str

    def __init__(self, info: CheckpointInfo, client: Client) -> None:
        self.id = info["id"]
        self.name = info.get("name")
        self.sandbox_id = info["sandbox"]
        self._client = client

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"<Checkpoint {self.id}{name} of {self.sandbox_id} on {self._client.host}>"

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.delete()
        except PodflareError:
            # The block's own exception tells more than what follows from it.
            if exc is None:
                raise

    def info(self) -> CheckpointInfo:
        """Ask what the host tells about it.

        Raises:
            CheckpointNotFoundError: It is gone; the message says why.
        """
        return self._client.checkpoint_info(self.id)

    def fork(self, n: int = 1) -> list[Sandbox]:
        """Make n new sandboxes of it, also when its own sandbox is gone. Close each of them.

        Args:
            n: Sandboxes wanted, 1 to 32.

        Raises:
            ValueError: n is out of range.
            CheckpointNotFoundError: It is gone; the message says why.
            ApiError: The host refused or failed; nothing was made then.
        """
        # A sandbox makes checkpoints, and a checkpoint sandboxes.
        from podflare._sandbox import Sandbox

        check_children(n)
        return [Sandbox._existing(child, self._client) for child in self._client.fork_checkpoint(self.id, n)]

    def delete(self) -> None:
        """Give it up; what was made of it stays. Does nothing if it is gone.

        Raises:
            PodflareError: The host failed or cannot be reached; deleting may be tried again.
        """
        self._client.delete_checkpoint(self.id)

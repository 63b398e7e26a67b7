"""A Space, as its user holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from podflare._client import Client
from podflare._types import Egress, SpaceInfo

if TYPE_CHECKING:
    from podflare._sandbox import Sandbox


class Space:
    """A sandbox on its host's disk: memory, processes, open files and disk, as they were in one instant.

    `Sandbox.freeze` makes it, and so does the end of a persistent sandbox's time. It stays until it is
    resumed or deleted, also when its host is restarted.

    Attributes:
        id: The host's name for it.
        sandbox_id: The sandbox that was frozen, whose id names nothing any more.
    """

    id: str
    sandbox_id: str

    def __init__(self, info: SpaceInfo, client: Client) -> None:
        self.id = info["id"]
        self.sandbox_id = info["sandbox"]
        self._client = client

    def __repr__(self) -> str:
        return f"<Space {self.id} of {self.sandbox_id} on {self._client.host}>"

    def info(self) -> SpaceInfo:
        """Ask what the host tells about it.

        Raises:
            SpaceNotFoundError: It is gone, or has been resumed.
        """
        return self._client.space_info(self.id)

    def resume(
        self,
        *,
        timeout_seconds: int | None = None,
        idle_timeout_seconds: int | None = None,
        persistent: bool | None = None,
        egress: Egress | None = None,
        keep: bool = False,
    ) -> Sandbox:
        """Make a sandbox of it, which goes on where the frozen one was. Close it.

        It has another id, and its own clock, randomness, host name and address, as every copy has. Size and
        template are the frozen sandbox's. A Space is resumed once, unless it is kept: it is removed when the
        sandbox is closed, and there again if the sandbox or its host is lost before that.

        Args:
            timeout_seconds: Longest life, in seconds, from now; otherwise the frozen sandbox's.
            idle_timeout_seconds: Longest time without running code; otherwise the frozen sandbox's.
            persistent: Freeze it again, into another Space, when its time is over; otherwise it is destroyed
                then.
            egress: What it reaches; otherwise what the frozen sandbox did.
            keep: Leave the Space as it is, so that it can be resumed again, also several times at once.

        Raises:
            SpaceNotFoundError: It is gone, or has been resumed.
            CapacityError: The host is full.
            ApiError: It cannot be resumed on this host (409; the message says why), or the host failed; the
                Space is as it was.
        """
        # A sandbox makes Spaces, and a Space sandboxes.
        from podflare._sandbox import Sandbox

        return Sandbox.resume(
            self.id,
            client=self._client,
            timeout_seconds=timeout_seconds,
            idle_timeout_seconds=idle_timeout_seconds,
            persistent=persistent,
            egress=egress,
            keep=keep,
        )

    def delete(self) -> None:
        """Give it up; what was made of it stays. Does nothing if it is gone.

        Raises:
            PodflareError: The host failed or cannot be reached; deleting may be tried again.
        """
        self._client.delete_space(self.id)

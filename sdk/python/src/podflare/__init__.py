"""Sandboxes for AI agents: microVMs that run code, fork and merge.

from podflare import Sandbox

with Sandbox() as sandbox:
    sandbox.run_code("x = 42")
    print(sandbox.run_code("print(x)").stdout)
"""

from podflare._checkpoint import Checkpoint
from podflare._client import Client, close_default_client
from podflare._diff import Diff
from podflare._errors import (
    ApiError,
    BadRequestError,
    CapacityError,
    CheckpointNotFoundError,
    ConnectionLostError,
    FileTransferError,
    HostError,
    HostTimeoutError,
    HostUnreachableError,
    PodflareError,
    ProtocolError,
    PtyError,
    PtyNotFoundError,
    SandboxNotFoundError,
    SpaceNotFoundError,
    UnauthorizedError,
)
from podflare._files import Files
from podflare._pty import PtyHandle, PtyNamespace, PtySessionInfo
from podflare._sandbox import PartialFork, Sandbox
from podflare._space import Space
from podflare._types import (
    CheckpointInfo,
    Egress,
    EgressList,
    Event,
    ExecInfo,
    ExecResult,
    FileEntry,
    FileEvent,
    ForkFailure,
    Language,
    NetworkInfo,
    PtyChunk,
    SandboxInfo,
    SpaceInfo,
    TemplateInfo,
    TemplateSize,
)
from podflare._version import __version__

__all__ = [
    "ApiError",
    "BadRequestError",
    "CapacityError",
    "Checkpoint",
    "CheckpointInfo",
    "CheckpointNotFoundError",
    "Client",
    "ConnectionLostError",
    "Diff",
    "Egress",
    "EgressList",
    "Event",
    "ExecInfo",
    "ExecResult",
    "FileEntry",
    "FileEvent",
    "FileTransferError",
    "Files",
    "ForkFailure",
    "HostError",
    "HostTimeoutError",
    "HostUnreachableError",
    "Language",
    "NetworkInfo",
    "PartialFork",
    "PodflareError",
    "ProtocolError",
    "PtyChunk",
    "PtyError",
    "PtyHandle",
    "PtyNamespace",
    "PtyNotFoundError",
    "PtySessionInfo",
    "Sandbox",
    "SandboxInfo",
    "SandboxNotFoundError",
    "Space",
    "SpaceInfo",
    "SpaceNotFoundError",
    "TemplateInfo",
    "TemplateSize",
    "UnauthorizedError",
    "__version__",
    "close_default_client",
]

"""The error tree, and how answers and transport failures become part of it.

    PodflareError
    ├── ApiError                 the host answered with an error; also httpx.HTTPStatusError
    │   ├── BadRequestError      400
    │   ├── UnauthorizedError    401
    │   ├── SandboxNotFoundError 404 for a sandbox
    │   ├── CheckpointNotFoundError 404 for a checkpoint
    │   ├── SpaceNotFoundError   404 for a Space
    │   ├── PtyNotFoundError     404 for a terminal
    │   ├── CapacityError        429, 503
    │   └── HostError            500 and other 5xx
    ├── HostUnreachableError     no connection; also httpx.ConnectError and httpx.ConnectTimeout
    ├── HostTimeoutError         connected, but silent for too long; also httpx.ReadTimeout
    ├── ConnectionLostError      the connection broke; also httpx.ReadError
    ├── ProtocolError            an answer is malformed, or a stream ended too early
    ├── PtyError                 a terminal could not be opened, or was lost; also RuntimeError
    └── FileTransferError        a file operation failed in the sandbox; also OSError

The second parents keep handlers working that were written for bare httpx errors.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from podflare._types import ForkFailure, RemotePath

_TEXT_LEN_MAX = 2000
# A host behind a router may have a path of its own before this.
_A_SANDBOX = re.compile("/v1/sandboxes/.")
_A_CHECKPOINT = re.compile("/v1/checkpoints/.")
_A_SPACE = re.compile("/v1/spaces/.")
# A restore names both, so that only the host's sentence tells which of them there is not.
_NO_CHECKPOINT = "checkpoint not found"
_NO_PTY = "terminal not found"


class PodflareError(Exception):
    """What goes wrong in a sandbox, at the host or on the way there.

    Wrong arguments and local files raise Python's own errors, a client that was closed RuntimeError.
    """


class ApiError(PodflareError, httpx.HTTPStatusError):
    """The host answered with an error.

    Attributes:
        status: The HTTP status.
        error: The host's sentence.
        method: The request's method.
        path: The request's path.
        failures: Of a fork, the children that could not be made.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.error = _sentence(response)
        self.failures = _failures(response)
        self.method = response.request.method
        self.path = response.request.url.path
        message = f"{self.error} ({self.status} from {self.method} {self.path})"
        super().__init__(message, request=response.request, response=response)


class BadRequestError(ApiError):
    """400: a value is out of its range, or an operation makes no sense."""


class UnauthorizedError(ApiError):
    """401: no API key, or one that the host does not know."""


class SandboxNotFoundError(ApiError):
    """404: there is no such sandbox, or no longer; the host's sentence says why."""


class CheckpointNotFoundError(ApiError):
    """404: there is no such checkpoint, or no longer; the host's sentence says why."""


class SpaceNotFoundError(ApiError):
    """404: there is no such Space, or it has been resumed; the host's sentence says which."""


class PtyNotFoundError(ApiError):
    """404: there is no such terminal in the sandbox, or no longer."""


class CapacityError(ApiError):
    """429 or 503: a limit is reached or the host is full; try again later."""


class HostError(ApiError):
    """5xx: the host, the VM or the agent in it failed."""


class HostUnreachableError(PodflareError, httpx.ConnectError, httpx.ConnectTimeout):
    """No connection to the host could be made."""


class HostTimeoutError(PodflareError, httpx.ReadTimeout):
    """The host was silent for longer than the client's timeout."""


class ConnectionLostError(PodflareError, httpx.ReadError):
    """The connection broke while a request was under way; whether it was served is unknown."""


class ProtocolError(PodflareError):
    """The host's answer is malformed, or a stream of events ended before the exit code."""


class PtyError(PodflareError, RuntimeError):
    """A program could not be started in a terminal, or the terminal was lost before the program's end."""


class FileTransferError(PodflareError, OSError):
    """A file operation failed in the sandbox; `errno` is Linux's, and `filename` the remote path."""


def api_error(response: httpx.Response) -> ApiError:
    """Choose the error for an answer that is not a success; its body must have been read."""
    by_status = {400: BadRequestError, 401: UnauthorizedError, 429: CapacityError, 503: CapacityError}
    other = HostError if response.is_server_error else ApiError
    # A template or a region may be what was not found.
    if response.status_code == 404:
        path = response.request.url.path
        if _A_CHECKPOINT.search(path) or _sentence(response).startswith(_NO_CHECKPOINT):
            other = CheckpointNotFoundError
        elif _A_SPACE.search(path):
            other = SpaceNotFoundError
        elif _sentence(response).startswith(_NO_PTY):
            other = PtyNotFoundError
        elif _A_SANDBOX.search(path):
            other = SandboxNotFoundError
    return by_status.get(response.status_code, other)(response)


def file_error(response: httpx.Response, path: RemotePath) -> PodflareError:
    """Choose the error for a file operation that failed; its answer's body must have been read."""
    try:
        code = response.json().get("code")
    except (ValueError, AttributeError, RecursionError):
        code = None
    if not isinstance(code, str):
        return api_error(response)
    number = getattr(errno, code, errno.EIO)
    sentence = _sentence(response).removeprefix(f"{os.fspath(path)}: ")
    return FileTransferError(number, sentence, os.fspath(path))


@contextmanager
def transport_errors(host: str) -> Iterator[None]:
    """Raise httpx's transport failures as part of this package's tree."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        message = f"Cannot connect to {host}: {error}. Start a host with `podflare up`, or name one in host="
        raise HostUnreachableError(message, request=error.request) from error
    except httpx.TimeoutException as error:
        message = f"{host} was silent for too long ({error}); a longer timeout= may help"
        raise HostTimeoutError(message, request=error.request) from error
    except httpx.TransportError as error:
        message = f"The connection to {host} broke: {error}"
        raise ConnectionLostError(message, request=error.request) from error


def _sentence(response: httpx.Response) -> str:
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = response.text.strip() or response.reason_phrase
    return text[:_TEXT_LEN_MAX]


def _failures(response: httpx.Response) -> list[ForkFailure]:
    try:
        return ForkFailure.list_from_json(response.json()["failures"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []

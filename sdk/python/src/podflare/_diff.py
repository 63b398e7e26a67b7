"""Compares the files of two sandboxes by what `find` and `sha256sum` say in each."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from typing import TypedDict

DEFAULT_PATHS = ("/root", "/tmp")

# Lengths in what `sha256sum --zero` prints for each file: digest, two separators, path, NUL.
_DIGEST_LEN = 64
_PATH_START = _DIGEST_LEN + 2


class Diff(TypedDict):
    """Sorted paths of regular files, seen from the first sandbox.

    Attributes:
        added: Only the other sandbox has them.
        removed: Only the first sandbox has them.
        modified: Both have them, with different content.
    """

    added: list[str]
    removed: list[str]
    modified: list[str]


def listing_command(paths: Sequence[str]) -> str:
    """Return the bash command that lists every file below the paths, in base64: names may be any bytes.

    A path that does not exist holds no files, and files may vanish while it runs; anything else fails it.

    Raises:
        TypeError: There is one path, not a sequence of them.
        ValueError: A path is empty, holds a NUL or is not Unicode.
    """
    # A string is a sequence of strings, too: of one letter each, "/" among them.
    if isinstance(paths, str):
        raise TypeError(f"paths is a sequence of paths, unlike {paths!r}")
    for path in paths:
        if not path or "\0" in path or _has_surrogates(path):
            raise ValueError(f"Not a path: {path!r}")
    starts = " ".join(shlex.quote(_not_an_expression(path)) for path in paths)
    return (
        f"find {starts} -type f -print0 2>/dev/null"
        " | xargs -0 -r sha256sum --zero -- 2>/dev/null | base64 -w 65536\n"
        'statuses="${PIPESTATUS[*]}"\n'
        'case "$statuses" in\n'
        '[01]" 0 0" | [01]" 123 0") ;;\n'
        '*) echo "find, xargs sha256sum and base64 ended with $statuses" >&2; exit 1 ;;\n'
        "esac\n"
    )


def parse_listing(stdout: str) -> dict[str, str]:
    """Return the digest of every path; bytes of a name that are not UTF-8 become surrogates."""
    entries = base64.b64decode(stdout).split(b"\0")
    return {
        entry[_PATH_START:].decode(errors="surrogateescape"): entry[:_DIGEST_LEN].decode()
        for entry in entries
        if entry
    }


def compare(first: Mapping[str, str], other: Mapping[str, str]) -> Diff:
    """Compare two listings."""
    return Diff(
        added=sorted(other.keys() - first.keys()),
        removed=sorted(first.keys() - other.keys()),
        modified=sorted(path for path in first.keys() & other.keys() if first[path] != other[path]),
    )


def _has_surrogates(path: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in path)


def _not_an_expression(path: str) -> str:
    # `find` has no `--`: it takes a word that starts with one of these as an option or an expression.
    return f"./{path}" if path.startswith(("-", "(", ")", "!", ",")) else path

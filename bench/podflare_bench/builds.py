"""Builds of this repository at a revision, and a host that runs one of them for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TRIPLE_RELEASE = Path("x86_64-unknown-linux-gnu/release")
PROGRAMS = ("podflare", "podflare-hostd", "podflare-vmm", "podflare-agent")
# Where cargo keeps the crates that are built.
_CACHE_PARTS = ("deps", "build", ".fingerprint")
# Ours are left out: to cargo, a crate of this repository is the same one at every commit, and newer than its
# sources if it was built after the commit.
_OUR_CRATES = shutil.ignore_patterns("podflare*", "libpodflare*")


@dataclass(frozen=True)
class Build:
    """Programs that belong together.

    Attributes:
        name: For people.
        programs: The folder that holds them.
    """

    name: str
    programs: Path


def commit_of(repository: Path, revision: str) -> str:
    """Return the full name of a commit.

    Raises:
        ValueError: There is no such commit.
    """
    command = ["git", "-C", str(repository), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ValueError(f"{revision!r} names no commit of this repository")
    return found.stdout.strip()


def build_at(repository: Path, commit: str, directory: Path) -> Build:
    """Build a commit into a folder, unless that was done before; its sources and libraries do not stay.

    Raises:
        OSError: A file cannot be written.
        subprocess.CalledProcessError: A command failed; it has said why.
    """
    build = Build(commit[:12], directory / "programs")
    if build.programs.is_dir():
        return build
    target, part = directory / "target", directory / "programs.part"
    for leftover in (target, part):
        shutil.rmtree(leftover, ignore_errors=True)
    # Not within this repository, whose settings cargo would add to those of the commit.
    source = Path(tempfile.mkdtemp(prefix="podflare-compare-"))
    try:
        say(f"building {build.name}")
        _unpack(repository, commit, source)
        _seed(repository / "target", target)
        packages = [argument for name in PROGRAMS for argument in ("--bin", name)]
        command = ["cargo", "build", "--release", "--quiet", "--workspace", *packages]
        environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        subprocess.run(command, cwd=source, env=environment, check=True)
        copy_programs(target / TRIPLE_RELEASE, part)
        part.rename(build.programs)
    finally:
        for made in (source, target, part):
            shutil.rmtree(made, ignore_errors=True)
    return build


def copy_programs(source: Path, destination: Path) -> None:
    """Copy the programs, so that a later build does not change them.

    Raises:
        OSError: One of them is missing, or cannot be written.
    """
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy2(source / name, destination / name)


@contextmanager
def running_host(build: Build, home: Path, images: Path, port: int) -> Iterator[str]:
    """Run a host of this build with a state of its own, and yield its URL; it stops in any case.

    Raises:
        subprocess.CalledProcessError: It did not start; it has said why.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    # Images are named by what they are made from: both builds may keep theirs in one place.
    images.mkdir(parents=True, exist_ok=True)
    (home / "images").symlink_to(images)
    environment = {**os.environ, "PODFLARE_HOME": str(home), "PODFLARE_BIN_DIR": str(build.programs)}
    address = f"127.0.0.1:{port}"
    try:
        _podflare(build, ["up", "--listen", address], environment)
        yield f"http://{address}"
    finally:
        _podflare(build, ["down"], environment)
        shutil.rmtree(home, ignore_errors=True)


def say(text: str) -> None:
    """Tell on standard error what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _podflare(build: Build, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    # What it prints is progress; results alone are for standard output. A session of its own: a Ctrl-C is for
    # this program, which then lets the host stop in good order.
    command = [str(build.programs / "podflare"), *arguments]
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True, start_new_session=True)


def _unpack(repository: Path, commit: str, destination: Path) -> None:
    # An archive, and no `git worktree`: whatever happens, the repository knows nothing of it.
    command = ["git", "-C", str(repository), "archive", commit]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as archive:
        subprocess.run(["tar", "-x", "--touch", "-C", str(destination)], stdin=archive.stdout, check=True)
    if archive.returncode:
        raise subprocess.CalledProcessError(archive.returncode, command)


def _seed(cache: Path, target: Path) -> None:
    """Let cargo find the crates of others that are built here already; it never writes to their files."""
    for folder in (Path("release"), TRIPLE_RELEASE):
        for part in _CACHE_PARTS:
            if (cache / folder / part).is_dir():
                _copy_linked(cache / folder / part, target / folder / part)


def _copy_linked(source: Path, destination: Path) -> None:
    try:
        shutil.copytree(source, destination, copy_function=os.link, ignore=_OUR_CRATES)
    except (OSError, shutil.Error):
        # Another file system.
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(source, destination, ignore=_OUR_CRATES)

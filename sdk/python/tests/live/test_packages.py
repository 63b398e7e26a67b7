"""Packages from the ordinary registries, without any configuration in the sandbox.

Where this machine itself does not reach a registry, the test says so and is skipped: a sandbox reaches no
more.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from podflare import Sandbox

from .vocabulary import bash, forked, python

pytestmark = pytest.mark.live

PROBE_TIMEOUT_SECONDS = 60


def skip_unless_reached(registry: str, *probe: str) -> None:
    """Skip the test, saying why, if this machine's own program does not reach its registry."""
    if shutil.which(probe[0]) is None:
        pytest.skip(f"not tested: there is no {probe[0]} here to tell whether {registry} is reached")
    try:
        told = subprocess.run(
            probe, capture_output=True, text=True, timeout=PROBE_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"not tested: this machine's own {probe[0]} gets no answer from {registry}")
    if told.returncode != 0:
        pytest.skip(
            f"not tested: this machine's own {probe[0]} does not reach {registry}: {told.stderr[-300:]}"
        )


def test_what_pip_installs_survives_fork_checkpoint_and_merge(sandbox: Sandbox, tmp_path: Path) -> None:
    skip_unless_reached(
        "a package index", "python3", "-m", "pip", "download", "--no-deps", "-d", str(tmp_path), "six"
    )
    bash(sandbox, "pip install six")
    assert python(sandbox, "import six; print(six.__name__)") == "six"
    checkpoint = sandbox.checkpoint()
    with forked(sandbox) as [child]:
        assert python(child, "print(six.__name__)") == "six"
        bash(child, "pip uninstall --yes six")
        assert "not found" in sandbox_without_six(child)
        sandbox.merge_into(child)
    assert "not found" in sandbox_without_six(sandbox)
    sandbox.restore(checkpoint)
    assert bash(sandbox, "python3 -c 'import six; print(six.__name__)'") == "six"


def sandbox_without_six(sandbox: Sandbox) -> str:
    return bash(sandbox, "pip show six 2>&1 || true")


def test_apt_installs_a_package(sandbox: Sandbox) -> None:
    first_index = "apt-get indextargets --format '$(SITE)/dists/$(RELEASE)/InRelease' | head -n 1"
    skip_unless_reached("a Debian mirror", "bash", "-c", f'curl -fsS -o /dev/null "$({first_index})"')
    bash(sandbox, "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y hello")
    assert bash(sandbox, "hello") == "Hello, world!"


def test_npm_installs_a_package(sandbox: Sandbox) -> None:
    skip_unless_reached("a package registry", "npm", "view", "is-number", "version")
    bash(sandbox, "mkdir -p /root/project && cd /root/project && npm install is-number")
    assert bash(sandbox, "cd /root/project && node -p 'require(\"is-number\")(42)'") == "true"


def test_git_clones_over_the_network(sandbox: Sandbox) -> None:
    bash(
        sandbox,
        """
        set -e
        git config --global user.email somebody@example.org
        git config --global user.name Somebody
        git init -q --bare -b main /srv/origin.git
        git init -q -b main /root/work
        cd /root/work
        echo content > file
        git add file
        git commit -q -m first
        git push -q /srv/origin.git main
        git daemon --detach --base-path=/srv --export-all --listen=127.0.0.1
        git clone -q git://127.0.0.1/origin.git /root/clone
        """,
    )
    assert bash(sandbox, "cat /root/clone/file") == "content"

"""Reading what the programs say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from podflare_bench import floors
from podflare_bench.circumstances import host_kind
from podflare_bench.floors import KernelFloors

URL = "http://127.0.0.1:7070"
STATUS = f"Host at {URL}: ready\nRuns in an emulated host: KVM is slow\nProcess 1, files in /x\n"


def test_the_kind_of_host_is_read_from_its_status() -> None:
    assert host_kind(STATUS, URL) == ("emulated", "KVM is slow")
    native = STATUS.replace("in an emulated host", "natively")
    assert host_kind(native, URL) == ("native", "KVM is slow")


def test_another_host_is_of_unknown_kind() -> None:
    assert host_kind(STATUS, "http://127.0.0.1:7171")[0] == "unknown"
    assert host_kind("No host runs here.", URL)[0] == "unknown"


def test_floors_are_read_in_milliseconds(tmp_path: Path) -> None:
    machine = {"processor": "Some", "processors": 2, "memory_mib": 4096, "kernel": "6.12"}
    times = {
        "fork_us": [1500.0],
        "vm_created_us": [250.0],
        "vm_destroyed_us": [1000.0],
        "disk_sync_us": [2000.0],
        "disk_write_us": [64000.0],
    }
    path = tmp_path / "floors.json"
    path.write_text(json.dumps({"machine": machine, "touched_kib": 2048, "vcpus": 2} | times))
    read = KernelFloors.read(path)
    assert (read.machine.processors, read.touched_mib, read.vcpus) == (2, 2, 2)
    assert read.samples_ms[floors.FORK] == {"kernel": [1.5]}


@pytest.mark.parametrize("text", ["", "{}", "no JSON", '{"machine": 1}'])
def test_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "floors.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        KernelFloors.read(path)

"""What a copy inherits: all that its source had at one instant, and that goes on in both."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from podflare import Sandbox

from .vocabulary import bash, forked, in_parallel, python

pytestmark = pytest.mark.live

HOLDING = """
    import fcntl, json, os, socket, subprocess, sys, threading

    os.makedirs("/tmp/holding", exist_ok=True)
    os.chdir("/tmp/holding")
    os.environ["HELD"] = "in the environment"
    os.umask(0o027)

    unsynced = open("unsynced", "w+")
    unsynced.write("not yet on the disk")
    unsynced.flush()
    deleted = open("deleted", "w+")
    deleted.write("without a name")
    deleted.flush()
    os.unlink("deleted")
    for path in ("/dev/shm/held", "/run/held"):
        with open(path, "w") as file:
            file.write("in memory")
    lock = open("lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    reader, writer = os.pipe()
    os.write(writer, b"in the pipe")
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    go, answers = threading.Event(), []
    thread = threading.Thread(target=lambda: (go.wait(), answers.append("from a thread")))
    thread.start()

    ECHO = '''
    import socket
    listener = socket.create_server(("127.0.0.1", 7001))
    connection = listener.accept()[0]
    while data := connection.recv(100):
        connection.sendall(data.upper())
    '''
    echo = subprocess.Popen([sys.executable, "-c", ECHO])

    def connected():
        while True:
            try:
                return socket.create_connection(("127.0.0.1", 7001))
            except ConnectionRefusedError:
                pass

    connection = connected()
    tcp = socket.create_server(("127.0.0.1", 7002))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("/tmp/holding/listener")
    unix.listen()

    def accepts(listener):
        with socket.socket(listener.family) as caller:
            caller.connect(listener.getsockname())
            accepted, _ = listener.accept()
            caller.sendall(b"new connection")
            with accepted:
                return accepted.recv(100).decode()
"""

# Uses everything up, so that a second answer would tell of a copy that shares something.
HELD = """
    def held():
        connection.sendall(b"old connection")
        cat.stdin.write(b"through cat\\n")
        cat.stdin.flush()
        go.set()
        thread.join()
        unsynced.seek(0)
        deleted.seek(0)
        is_locked = subprocess.run(["flock", "--nonblock", "lock", "true"]).returncode == 1
        return {
            "directory": os.getcwd(),
            "environment": os.environ["HELD"],
            "umask": os.umask(0o027),
            "unsynced file": unsynced.read(),
            "deleted file": deleted.read(),
            "files in memory": [open(path).read() for path in ("/dev/shm/held", "/run/held")],
            "lock": is_locked,
            "pipe": os.read(reader, 100).decode(),
            "process at both ends": cat.stdout.readline().decode(),
            "thread": answers,
            "TCP connection within the guest": connection.recv(100).decode(),
            "TCP listener": accepts(tcp),
            "Unix listener": accepts(unix),
        }
"""

EXPECTED = {
    "directory": "/tmp/holding",
    "environment": "in the environment",
    "umask": 0o027,
    "unsynced file": "not yet on the disk",
    "deleted file": "without a name",
    "files in memory": ["in memory"] * 2,
    "lock": True,
    "pipe": "in the pipe",
    "process at both ends": "through cat\n",
    "thread": ["from a thread"],
    "TCP connection within the guest": "OLD CONNECTION",
    "TCP listener": "new connection",
    "Unix listener": "new connection",
}


def test_copies_hold_what_their_source_held(sandbox: Sandbox) -> None:
    python(sandbox, HOLDING)
    python(sandbox, HELD)
    with forked(sandbox, 2) as children:
        copies = [*children, sandbox]
        held = in_parallel(lambda copy: json.loads(python(copy, "print(json.dumps(held()))")), copies)
        assert held == [EXPECTED] * 3
        # What was in the page cache at the fork is the copy's to write.
        bash(children[0], "sync; echo 3 > /proc/sys/vm/drop_caches")
        assert bash(children[0], "cat /tmp/holding/unsynced") == "not yet on the disk"


def test_a_bash_that_a_fork_meets_runs_to_its_end_in_each_copy(sandbox: Sandbox) -> None:
    command = "echo running; sleep 3; hostname > /root/ended.new; mv /root/ended.new /root/ended"
    with closing(sandbox.run_code_stream(command, "bash")) as stream:
        assert next(stream).data == "running"
        with forked(sandbox, 2) as children:
            for child in children:
                bash(child, "until [ -e /root/ended ]; do sleep 0.1; done")
                assert bash(child, "cat /root/ended") == bash(child, "hostname")
        assert [event.data for event in stream] == [0]
    assert bash(sandbox, "cat /root/ended") == bash(sandbox, "hostname")

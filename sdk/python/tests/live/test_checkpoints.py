"""Checkpoints: the state at a moment comes back, wherever the sandbox has gone since."""

import pytest

from podflare import BadRequestError, CheckpointNotFoundError, Client, Sandbox, SandboxNotFoundError

from .vocabulary import assert_works, attempt_bash, bash, forked, in_parallel, python, wait_until

pytestmark = pytest.mark.live

PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60"
SLEEPER = "import subprocess; sleeper = subprocess.Popen(['sleep', '100000'])"
STATE = "print(x, open('/root/file').read(), sleeper.poll())"


def test_variables_files_and_processes_come_back_as_often_as_wanted(sandbox: Sandbox) -> None:
    python(sandbox, f"x = 'then'; open('/root/file', 'w').write('then'); {SLEEPER}")
    with sandbox.checkpoint("before the plan") as checkpoint:
        assert checkpoint.info()["name"] == "before the plan"
        sandbox_id = sandbox.id
        for attempt_number in range(2):
            python(
                sandbox,
                f"""
                x = 'attempt {attempt_number}'
                open('/root/file', 'w').write(x)
                sleeper.kill()
                sleeper.wait()
                """,
            )
            sandbox.restore(checkpoint)
            assert python(sandbox, STATE) == "then then None"
        assert sandbox.id == sandbox_id
        info = sandbox.info()
        assert (info["checkpoint"], info["parent"], info["generation"]) == (checkpoint.id, None, 2)
        assert info["renewed"]
        assert_works(sandbox)


def test_a_checkpoint_is_not_touched_by_what_is_made_of_it(sandbox: Sandbox) -> None:
    python(sandbox, "import os, random; x = 1")
    with sandbox.checkpoint() as checkpoint:
        children = checkpoint.fork(3)
        try:
            python(sandbox, "x = 'later'")
            python(children[0], "x = 'of a child'; open('/root/child', 'w').close()")
            draw = "print(x, os.path.exists('/root/child'), os.urandom(8).hex(), random.random())"
            told = [line.split() for line in in_parallel(lambda child: python(child, draw), children[1:])]
            [late] = checkpoint.fork()
            children.append(late)
            told.append(python(late, draw).split())
            assert [line[:2] for line in told] == [["1", "False"]] * 3
            assert len({line[2] for line in told}) == len({line[3] for line in told}) == 3
        finally:
            for child in children:
                child.close()
        assert python(sandbox, "print(x)") == "later"


def test_a_restored_sandbox_is_checkpointed_and_forked_like_any_other(sandbox: Sandbox) -> None:
    python(sandbox, "history = ['first']")
    first = sandbox.checkpoint()
    sandbox.restore(first)
    python(sandbox, "history.append('second')")
    second = sandbox.checkpoint()
    assert [checkpoint.id for checkpoint in sandbox.checkpoints()] == [first.id, second.id]
    with forked(sandbox) as [child]:
        assert python(child, "print(history)") == "['first', 'second']"
        with pytest.raises(BadRequestError):
            child.restore(first)
    sandbox.restore(first)
    assert python(sandbox, "print(history)") == "['first']"
    sandbox.restore(second)
    assert python(sandbox, "print(history)") == "['first', 'second']"


def test_a_home_that_was_removed_is_restored(sandbox: Sandbox) -> None:
    bash(sandbox, "mkdir -p ~/project && echo precious > ~/project/notes && sync")
    with sandbox.checkpoint() as checkpoint:
        bash(sandbox, "rm -rf ~/* && sync")
        assert attempt_bash(sandbox, "cat ~/project/notes")
        sandbox.restore(checkpoint)
        assert bash(sandbox, "cat ~/project/notes") == "precious"


def test_what_runs_while_its_sandbox_is_restored_is_told(sandbox: Sandbox) -> None:
    with sandbox.checkpoint() as checkpoint:
        stream = sandbox.run_code_stream("import time; print('begun', flush=True); time.sleep(10_000)")
        assert next(stream).data == "begun"
        sandbox.restore(checkpoint)
        told, end = list(stream)
        assert told.data == f"the sandbox has ended: it was restored to {checkpoint.id}"
        assert (end.type, end.data) == ("exit", 137)
        assert_works(sandbox)


def test_a_crashed_sandbox_is_brought_back_from_its_checkpoint(client: Client, sandbox: Sandbox) -> None:
    python(sandbox, "x = 'survived'")
    checkpoint = sandbox.checkpoint()
    attempt_bash(sandbox, PANIC)
    wait_until(lambda: sandbox.id not in {view["id"] for view in client.list_sandboxes()}, "it is gone")
    with pytest.raises(SandboxNotFoundError):
        sandbox.restore(checkpoint)
    [heir] = checkpoint.fork()
    with heir:
        assert python(heir, "print(x)") == "survived"
        assert heir.info()["parent"] == sandbox.id
        sandbox.close()
        with pytest.raises(CheckpointNotFoundError, match="was deleted"):
            checkpoint.fork()
        assert_works(heir)


def test_a_merge_keeps_the_checkpoints_of_both(sandbox: Sandbox) -> None:
    python(sandbox, "x = 'parent'")
    of_parent = sandbox.checkpoint()
    with forked(sandbox) as [winner]:
        python(winner, "x = 'winner'")
        of_winner = winner.checkpoint()
        sandbox.merge_into(winner)
    sandbox.restore(of_parent)
    assert python(sandbox, "print(x)") == "parent"
    sandbox.restore(of_winner)
    assert python(sandbox, "print(x)") == "winner"

"""What breaks in one sandbox is told clearly, and stays in it."""

import re
from collections.abc import Callable

import httpx
import pytest

from podflare import ApiError, BadRequestError, Client, Sandbox, SandboxNotFoundError

from .vocabulary import assert_works, attempt, attempt_bash, bash, forked, python, wait_until

pytestmark = pytest.mark.live

UNKNOWN_ID = "sbx_" + "0" * 32
KILL_REPL = "import os; os.kill(os.getpid(), 9)"
LOST = "variables are lost"


def test_a_killed_repl_is_told_once_and_replaced(sandbox: Sandbox, bystander: Sandbox) -> None:
    python(sandbox, "x = 1; open('/root/file', 'w').write('kept')")
    killed = sandbox.run_code(KILL_REPL)
    assert killed.exit_code == 137
    assert "killed by signal 9" in killed.stderr
    assert killed.stderr.count(LOST) == 1
    after = sandbox.run_code("print('x' in globals(), open('/root/file').read())")
    assert (after.stdout, after.stderr, after.exit_code) == ("False kept", "", 0)
    assert_works(sandbox)
    assert_works(bystander)


def test_a_repl_that_ends_itself_is_told_once_and_replaced(sandbox: Sandbox) -> None:
    python(sandbox, "x = 1")
    ended = sandbox.run_code("import os; os._exit(3)")
    assert ended.exit_code == 3
    assert ended.stderr.count(LOST) == 1
    after = sandbox.run_code("print('x' in globals())")
    assert (after.stdout, after.stderr, after.exit_code) == ("False", "", 0)
    assert_works(sandbox)


def test_a_repl_killed_from_bash_is_told_to_the_next_python_call(sandbox: Sandbox) -> None:
    pid = python(sandbox, "import os; x = 1; print(os.getpid())")
    bash(sandbox, f"kill -9 {pid}")
    told = sandbox.run_code("print('x' in globals())")
    assert told.stderr.count(LOST) == 1
    # The call may have reached the dying process, and have ended with it.
    assert (told.exit_code, told.stdout) in [(0, "False"), (137, "")]
    after = sandbox.run_code("print('x' in globals())")
    assert (after.stdout, after.stderr, after.exit_code) == ("False", "", 0)
    assert_works(sandbox)


def test_a_killed_repl_of_a_child_is_replaced_and_the_parents_is_untouched(sandbox: Sandbox) -> None:
    python(sandbox, "x = 1")
    with forked(sandbox, 2) as children:
        killed = children[0].run_code(KILL_REPL)
        assert (killed.exit_code, killed.stderr.count(LOST)) == (137, 1)
        assert python(children[0], "print('x' in globals())") == "False"
        assert_works(children[0])
        assert python(children[1], "print(x)") == "1"
    assert python(sandbox, "print(x)") == "1"


# Process 1 and the agent, its child, run the same file.
FIND_AGENT = """
for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    if [ "$pid" != 1 ] && [ "$(readlink "$process/exe")" = /run/podflare/agent ]; then echo "$pid"; fi
done
"""
AGENT_KILLED = (
    "the agent in the sandbox was killed and has been restarted; the Python REPL's variables are lost"
)


def test_a_killed_agent_is_told_and_restarted(sandbox: Sandbox, bystander: Sandbox) -> None:
    python(bystander, "x = 'bystander'")
    python(sandbox, "x = 1; open('/root/file', 'w').write('kept')")
    with forked(sandbox) as [child]:
        agent = bash(sandbox, FIND_AGENT)
        assert re.fullmatch("[0-9]+", agent)
        killed = sandbox.run_code(f"kill -9 {agent}; sleep 600", "bash")
        assert killed.exit_code == 137
        assert AGENT_KILLED in killed.stderr
        assert python(sandbox, "print('x' in globals(), open('/root/file').read())") == "False kept"
        assert bash(sandbox, FIND_AGENT) != agent
        assert_works(sandbox)
        assert python(child, "print(x)") == "1"
        assert_works(child)
    with forked(sandbox) as [later_child]:
        assert_works(later_child)
    assert python(bystander, "print(x)") == "bystander"
    assert_works(bystander)


def test_process_1_cannot_be_killed_from_inside(sandbox: Sandbox) -> None:
    python(sandbox, "x = 1")
    agent = bash(sandbox, FIND_AGENT)
    bash(sandbox, "kill -KILL 1 && kill -TERM 1")
    assert bash(sandbox, FIND_AGENT) == agent
    assert python(sandbox, "print(x)") == "1"
    assert_works(sandbox)


def test_a_guest_that_eats_all_its_memory_loses_its_repl_and_hurts_nobody_else(
    sandbox: Sandbox, bystander: Sandbox
) -> None:
    python(bystander, "x = 1")
    killed = sandbox.run_code("blocks = []\nwhile True: blocks.append(b'x' * (64 << 20))")
    assert killed.exit_code == 137
    assert "killed by signal 9" in killed.stderr
    assert_works(sandbox)
    assert python(bystander, "print(x)") == "1"
    assert_works(bystander)


def test_more_memory_than_there_is_is_refused_in_the_guest(sandbox: Sandbox) -> None:
    assert attempt(sandbox, "block = bytearray(1 << 46)").endswith("MemoryError")
    assert_works(sandbox)


def test_a_panic_of_the_guests_kernel_is_told_and_ends_the_sandbox(
    client: Client, sandbox: Sandbox, bystander: Sandbox
) -> None:
    with forked(sandbox) as [child]:
        complaint = attempt_bash(
            sandbox, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60"
        )
        assert complaint.strip()
        wait_until(lambda: is_gone(client, sandbox.id), "the sandbox is gone")
        with pytest.raises(SandboxNotFoundError) as caught:
            sandbox.run_code("1")
        assert re.search("(?i)panic|crash|stopped|died|ended|exited|shut", caught.value.error), (
            caught.value.error
        )
        assert_works(bystander)
        assert_works(child)


def test_a_guest_that_powers_off_ends_its_sandbox(
    client: Client, sandbox: Sandbox, bystander: Sandbox
) -> None:
    complaint = attempt_bash(
        sandbox, "echo 1 > /proc/sys/kernel/sysrq; echo o > /proc/sysrq-trigger; sleep 60"
    )
    assert complaint.strip()
    wait_until(lambda: is_gone(client, sandbox.id), "the sandbox is gone")
    assert_works(bystander)


def is_gone(client: Client, sandbox_id: str) -> bool:
    try:
        client.sandbox_info(sandbox_id)
    except SandboxNotFoundError:
        return True
    return False


@pytest.mark.parametrize("operation", ["exec", "fork", "replay", "info", "merge_into"])
def test_an_unknown_sandbox_is_not_found(client: Client, operation: str) -> None:
    operations: dict[str, Callable[[], object]] = {
        "exec": lambda: list(client.exec_stream(UNKNOWN_ID, "1")),
        "fork": lambda: client.fork_sandbox(UNKNOWN_ID),
        "replay": lambda: client.replay(UNKNOWN_ID),
        "info": lambda: client.sandbox_info(UNKNOWN_ID),
        "merge_into": lambda: client.merge_into(UNKNOWN_ID, "sbx_" + "1" * 32),
    }
    with pytest.raises(SandboxNotFoundError) as caught:
        operations[operation]()
    assert caught.value.error


def test_destroying_an_unknown_sandbox_is_no_error(client: Client) -> None:
    client.destroy_sandbox(UNKNOWN_ID)


def test_a_closed_sandbox_is_not_found_and_not_listed(client: Client) -> None:
    with Sandbox(client=client) as sandbox:
        assert sandbox.id in {view["id"] for view in client.list_sandboxes()}
    with pytest.raises(SandboxNotFoundError):
        sandbox.run_code("1")
    assert sandbox.id not in {view["id"] for view in client.list_sandboxes()}


@pytest.mark.parametrize("n", [0, 33, 1_000_000])
def test_a_fork_out_of_range_is_refused_by_the_host(client: Client, sandbox: Sandbox, n: int) -> None:
    with pytest.raises(BadRequestError):
        client.fork_sandbox(sandbox.id, n)
    assert_works(sandbox)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"language": "python"}', b'{"code": "1", "language": "ruby"}']
)
def test_a_malformed_execution_is_refused_with_a_sentence(
    client: Client, sandbox: Sandbox, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    if client.api_key:
        headers["authorization"] = f"Bearer {client.api_key}"
    response = httpx.post(f"{client.host}/v1/sandboxes/{sandbox.id}/exec", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]
    assert_works(sandbox)


def test_an_unknown_template_is_refused_with_a_sentence(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        Sandbox(client=client, template="no-such-template")
    assert (type(caught.value), caught.value.status) == (ApiError, 404)
    assert "no-such-template" in caught.value.error

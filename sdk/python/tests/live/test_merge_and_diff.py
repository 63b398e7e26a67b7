"""Taking over a child, and comparing two."""

import pytest

from podflare import BadRequestError, Client, Sandbox, SandboxNotFoundError

from .vocabulary import assert_works, bash, forked, python

pytestmark = pytest.mark.live


def test_after_a_merge_the_parent_has_the_winners_state(sandbox: Sandbox) -> None:
    python(sandbox, "x = 'parent'")
    with forked(sandbox, 3) as children:
        for number, child in enumerate(children):
            python(child, f"x = 'child {number}'; open('/root/file', 'w').write(x)")
        sandbox.merge_into(children[1])
        assert python(sandbox, "print(x, open('/root/file').read(), sep=', ')") == "child 1, child 1"
        assert python(children[0], "print(x)") == "child 0"
        children[1].close()
        assert_works(sandbox)


def test_the_winners_own_id_is_gone(sandbox: Sandbox, client: Client) -> None:
    with forked(sandbox) as [winner]:
        sandbox.merge_into(winner)
        with pytest.raises(SandboxNotFoundError):
            winner.run_code("1")
        with pytest.raises(SandboxNotFoundError):
            client.merge_into(sandbox.id, winner.id)


def test_a_merged_sandbox_can_be_forked_and_merged_again(sandbox: Sandbox) -> None:
    python(sandbox, "history = []")
    for round_number in range(3):
        with forked(sandbox, 2) as children:
            python(children[0], f"history.append({round_number})")
            sandbox.merge_into(children[0])
    assert python(sandbox, "print(history)") == "[0, 1, 2]"


def test_a_merge_with_itself_is_refused_by_the_host(sandbox: Sandbox, client: Client) -> None:
    with pytest.raises(BadRequestError):
        client.merge_into(sandbox.id, sandbox.id)
    assert_works(sandbox)


def test_a_diff_of_two_children_tells_their_files_apart(sandbox: Sandbox) -> None:
    bash(
        sandbox,
        "mkdir /root/d; echo same > /root/d/same; echo base > /root/d/changed; echo base > /root/d/old",
    )
    with forked(sandbox, 2) as [first, other]:
        bash(first, "echo first > /root/d/changed; echo first > /root/d/first")
        bash(other, "echo other > /root/d/changed; rm /root/d/old; echo other > /tmp/other")
        assert first.diff(other) == {
            "added": ["/tmp/other"],
            "removed": ["/root/d/first", "/root/d/old"],
            "modified": ["/root/d/changed"],
        }
        assert first.diff(other, ["/root/d/same", "/nowhere"]) == {"added": [], "removed": [], "modified": []}


def test_a_diff_holds_odd_names_whole(sandbox: Sandbox) -> None:
    names = ["it's", 'a "b"', "new\nline", "-rf", "back\\slash", "ünï\u2028cödé", "not-utf8-\udcff"]
    with forked(sandbox) as [other]:
        python(
            other,
            f"""
            import os
            os.mkdir("/root/$(odd) folder")
            for name in {names!a}:
                open("/root/$(odd) folder/" + name, "w").close()
            """,
        )
        expected = sorted(f"/root/$(odd) folder/{name}" for name in names)
        assert sandbox.diff(other, ["/root/$(odd) folder"])["added"] == expected

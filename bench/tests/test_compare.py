"""Comparing two builds, without building or starting one."""

from __future__ import annotations

from pathlib import Path

import pytest

from podflare_bench import operations
from podflare_bench.builds import Build, commit_of
from podflare_bench.compare import Samples, order, table
from podflare_bench.run import chosen

OLD, NEW = Build("old", Path("old")), Build("new", Path("new"))


def samples(*rounds: list[float], operation: str = operations.CREATE) -> Samples:
    kept = Samples()
    for one in rounds:
        kept.keep(operation, {"caller": one})
    return kept


def test_builds_take_turns_at_going_first() -> None:
    assert [order((OLD, NEW), number)[0].name for number in range(4)] == ["old", "new", "old", "new"]


def test_a_row_has_both_medians_and_their_ratio() -> None:
    text = table(samples([4.0, 4.0], [4.0]), samples([8.0, 8.0], [8.0]), ("old", "new"))
    assert f"| {operations.CREATE} | 4.00 | 8.00 | 2.00 | 2.00 to 2.00 |" in text


def test_what_one_build_lacks_is_left_empty() -> None:
    text = table(Samples(), samples([8.0]), ("old", "new"))
    assert f"| {operations.CREATE} | – | 8.00 | – | – |" in text
    assert operations.DESTROY not in text


def test_a_revision_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no commit"):
        commit_of(tmp_path, "no-such-revision")


def test_operations_are_chosen_by_a_regular_expression() -> None:
    assert [one.name for one in chosen("^fork")] == ["fork(1)", "fork(5)", "fork(32)"]
    assert len(chosen("")) == len(operations.OPERATIONS)
    with pytest.raises(ValueError, match="finds no operation"):
        chosen("teleport")
    with pytest.raises(ValueError, match="no regular expression"):
        chosen("(")

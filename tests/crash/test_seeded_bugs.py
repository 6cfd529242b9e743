"""The suite finds what it is for: mistakes made on purpose in a copy of the tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash.bugs import Bug
from tests.crash.seeded import BUGS, copy_tree, judge, plant
from tests.program import ROOT

# One in Python, one that builds the kernel anew; the others take their time in `make prove`.
QUICK = [bug for bug in BUGS if bug.name in ("no unique id", "attempts not counted")]


def named(bug: Bug) -> str:
    return bug.name


def caught(bug: Bug, folder: Path) -> str:
    """Fails unless one of the bug's tests does. -> a line that says which one, and when."""
    tree = copy_tree(folder / "tree")
    plant(bug, tree)
    verdict = judge(tree, bug.tests)
    assert verdict.code == 1, f"{bug.name} is not caught: {verdict.said}"
    assert verdict.failed, verdict.said
    test = verdict.failed[0].rpartition("::")[2]
    return f"{bug.name:<62} {verdict.seconds:5.1f} s  {test}\n"


@pytest.mark.parametrize("bug", BUGS, ids=named)
def test_a_seeded_bug_fits_the_code_that_it_spoils(bug: Bug) -> None:
    for edit in bug.edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.old) == 1, f"not once in {edit.file}: {edit.old!r}"
        assert edit.old != edit.new


@pytest.mark.parametrize("bug", QUICK, ids=named)
def test_a_seeded_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    assert caught(bug, tmp_path)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_the_tests_that_catch_seeded_bugs_pass_without_them(tmp_path: Path) -> None:
    tests = tuple(dict.fromkeys(test for bug in BUGS for test in bug.tests))
    verdict = judge(copy_tree(tmp_path / "tree"), tests)
    assert verdict.code == 0, verdict.said
    sys.stdout.write(f"\n{'no bug: all of the tests below pass':<62} {verdict.seconds:5.1f} s\n")


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS, ids=named)
def test_every_seeded_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    sys.stdout.write(f"\n{caught(bug, tmp_path)}")

"""The model of the ring's protocol: searched through, and of the same steps as the kernel."""

from __future__ import annotations

import re
import shutil

import pytest

from ringbuf.model.check import (
    CASES,
    MISTAKES,
    MODEL,
    PROMISES,
    Case,
    Outcome,
    main,
    report,
    search,
    trace,
)
from tests.ringbuf.steps import step_names

SHORT = [case for case in CASES if not case.long]


@pytest.fixture(scope="module")
def tools() -> None:
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {program}")


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    "case", [case for case in PROMISES if case in SHORT], ids=lambda c: c.title
)
def test_no_state_of_the_protocol_breaks_a_promise(case: Case) -> None:
    outcome = search(case)
    assert outcome.verdict == "holds"
    assert outcome.states > 10_000


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    "case", [case for case in MISTAKES if case in SHORT], ids=lambda c: c.title
)
def test_the_search_finds_a_mistake_made_on_purpose(case: Case) -> None:
    assert search(case).verdict == "found"


@pytest.mark.usefixtures("tools")
def test_a_search_that_was_cut_short_proves_nothing() -> None:
    outcome = search(PROMISES[0], depth_max=100)
    assert outcome.verdict == "CUT SHORT: max search depth too small"
    assert not outcome.good


@pytest.mark.usefixtures("tools")
def test_a_broken_promise_and_a_mistake_not_found_fail_the_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert report([Case("broken", 1, 1, 1, 2, "BUG_TAIL_FIRST", kills=0)]) == 1
    assert "  BROKEN: " in capsys.readouterr().out
    unseen = Outcome(MISTAKES[0], 1, 1, 0.1, broken="", cut_short="")
    assert unseen.verdict == "NOT FOUND"
    assert not unseen.good


@pytest.mark.usefixtures("tools")
@pytest.mark.prove
def test_the_way_to_a_mistakes_damage_is_shown_step_by_step() -> None:
    shown = trace(Case("trace", 1, 1, 1, 2, kills=0, mistake="TAIL_FIRST"))
    assert "assertion violated" in shown
    assert "(Writer:" in shown


@pytest.mark.usefixtures("tools")
@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_no_state_of_any_size_searched_breaks_a_promise_and_every_mistake_is_found() -> None:
    print()
    assert main([]) == 0


def test_every_seeded_mistake_of_the_model_is_searched_for() -> None:
    seeded = set(re.findall(r"\bBUG_([A-Z_]+)", MODEL.read_text(encoding="utf-8")))
    assert {case.mistake for case in MISTAKES} == seeded


def test_the_model_names_every_step_of_the_kernel_and_no_other() -> None:
    """Its head says which of them have no step there, and why."""
    steps = step_names()
    families = "|".join(sorted({name.split(".")[0] for name in steps}))
    named = re.findall(rf"\b(?:{families})\.[a-z_]+\b", MODEL.read_text(encoding="utf-8"))
    assert set(named) == set(steps)

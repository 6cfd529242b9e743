"""SIGKILL at every step that the kernel names; new processes then look at what is left."""

from __future__ import annotations

import pytest

from tests.ringbuf.conftest import MakeStage
from tests.ringbuf.stage import (
    ADOPT,
    ENTER,
    LEAVE,
    PUT,
    RELEASE,
    REPAIR,
    REPAIR_PUT,
    TAKE,
    Hit,
    Scene,
    Stage,
    again,
    waiting,
)


def hits_of(scene: Scene) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("hit", scene.hits(), ids=str)


def set_the_scene(scene: Scene, stage: Stage, hit: Hit) -> None:
    scene.prepare(stage)
    stage.kill(scene.script, hit)


# ---- put --------------------------------------------------------------------------------------


@hits_of(PUT)
def test_a_killed_put_is_in_as_a_whole_or_not_at_all(stage: Stage, hit: Hit) -> None:
    set_the_scene(PUT, stage, hit)
    published = hit.step in PUT.from_here_on("put.published")
    there = [0, 1, 2, 3, 4, 5] if published else [0, 1, 2]
    assert stage.everywhere() == there
    assert stage.finds(there)
    assert published or not stage.finds([3])
    assert stage.fresh(["join", 1], ["take_all"], ["release"])[1] == waiting(there)
    stage.both_sides_work()
    assert stage.ring.repairs == (PUT.lock(hit) == "writers")


@hits_of(ENTER)
def test_the_entry_of_a_writer_killed_while_it_enters_is_given_out_again(
    stage: Stage, hit: Hit
) -> None:
    set_the_scene(ENTER, stage, hit)
    with stage.ring.writer():
        assert stage.fresh(["enter"], ["put", 6])[1] == 1  # both entries of this ring are in use
    assert stage.fresh(["join", 0], ["take_all"], ["release"])[1] == waiting(range(7))
    stage.both_sides_work()


# ---- take and release -------------------------------------------------------------------------


def marked_in_doubt(hit: Hit) -> int:
    """How many cells a take killed there had marked, and not yet published."""
    counts = {
        "take.half_copied": hit.nth - 1,
        "take.copied": hit.nth - 1,
        "take.stamped": hit.nth,
        "take.publishing": 3,
    }
    return counts.get(hit.step, 0)


@pytest.mark.parametrize("first", ["heir", "other"])
@hits_of(TAKE)
def test_what_a_killed_take_moved_is_in_one_place_only(stage: Stage, hit: Hit, first: str) -> None:
    set_the_scene(TAKE, stage, hit)
    published = hit.step in TAKE.from_here_on("take.published")
    held, left = ([0, 1, 2, 3], [4, 5]) if published else ([0], [1, 2, 3, 4, 5])
    assert stage.everywhere() == [0, 1, 2, 3, 4, 5]
    assert stage.finds(range(6))
    if first == "heir":
        assert stage.fresh(["join", 0], ["take_all"], ["release"])[1] == again(held) + waiting(left)
    else:
        assert stage.fresh(["join", 1], ["take_all"], ["release"])[1] == waiting(left)
        assert stage.everywhere() == held
        assert stage.fresh(["join", 0], ["take_all"], ["release"])[1] == again(held)
    stage.both_sides_work()
    assert stage.ring.repairs == (TAKE.lock(hit) == "readers")
    assert stage.ring.mapping.cleared == marked_in_doubt(hit)


@hits_of(RELEASE)
def test_a_killed_release_leaves_the_others_to_its_heir(stage: Stage, hit: Hit) -> None:
    set_the_scene(RELEASE, stage, hit)
    held = range(hit.nth - (hit.step == "release.begun"), 3)
    assert stage.everywhere() == [*held, 3, 4, 5]
    heirs = stage.fresh(["join", 0], ["take_all"], ["release"])[1]
    assert heirs == again(held) + waiting([3, 4, 5])
    stage.both_sides_work()
    assert stage.ring.repairs == 0


# ---- taking over a hand -----------------------------------------------------------------------


@hits_of(ADOPT)
def test_a_killed_heir_leaves_the_hand_to_the_next(stage: Stage, hit: Hit) -> None:
    """Two owners have died by now: each item was given out again after one of them, or both."""
    set_the_scene(ADOPT, stage, hit)
    assert stage.everywhere() == [0, 1, 2, 3, 4, 5]
    assert stage.fresh(["join", 1], ["take_all"], ["release"])[1] == waiting([3, 4, 5])
    adopted = stage.fresh(["join", 0], ["take_all"], ["release"])[1]
    assert [n for n, _, _ in adopted] == [0, 1, 2]
    counted = hit.nth if hit.step == "adopt.counted" else 0
    assert sorted(attempts for _, _, attempts in adopted) == [1] * (3 - counted) + [2] * counted
    stage.both_sides_work()
    assert stage.ring.repairs == (ADOPT.lock(hit) == "readers")


@hits_of(LEAVE)
def test_a_reader_killed_while_it_leaves_keeps_its_hand_for_an_heir(stage: Stage, hit: Hit) -> None:
    set_the_scene(LEAVE, stage, hit)
    left_before = hit.step == "entry.swapped"
    adopted = stage.fresh(["join", 0], ["take_all"], ["release"])[1]
    assert adopted == (waiting if left_before else again)([0, 1, 2]) + waiting([3, 4, 5])
    stage.both_sides_work()


# ---- repair -----------------------------------------------------------------------------------


def check_half_taken(stage: Stage) -> None:
    """0 was in a dead reader's hand, 1 to 5 were not: and so they are given out."""
    assert stage.everywhere() == [0, 1, 2, 3, 4, 5]
    assert stage.finds(range(6))
    assert stage.fresh(["join", 1], ["take_all"], ["release"])[1] == waiting([1, 2, 3, 4, 5])
    assert stage.fresh(["join", 0], ["take_all"], ["release"])[1] == again([0])
    stage.both_sides_work()


COUNTED = ("repair.counted", "repair.consistent")


@hits_of(REPAIR)
def test_a_killed_repair_of_a_take_is_met_again(stage: Stage, hit: Hit) -> None:
    set_the_scene(REPAIR, stage, hit)
    check_half_taken(stage)
    assert stage.ring.repairs == 1 + (hit.step in COUNTED)
    assert stage.ring.mapping.cleared == 3 - (hit.step == "repair.cleared")


@hits_of(REPAIR_PUT)
def test_a_killed_repair_of_a_put_is_met_again(stage: Stage, hit: Hit) -> None:
    set_the_scene(REPAIR_PUT, stage, hit)
    put = [3] if hit.step.startswith("unlock") else []
    assert stage.everywhere() == [0, 1, 2, *put]
    assert stage.fresh(["join", 1], ["take_all"], ["release"])[1] == waiting([0, 1, 2, *put])
    stage.both_sides_work()
    assert stage.ring.repairs == 1 + (hit.step in COUNTED)


UNDER_LOCK = [hit for hit in REPAIR.hits() if REPAIR.lock(hit) == "readers"]


def in_doubt_after(hit: Hit, in_doubt: int) -> int:
    """How many cells are still to be cleared, after a repair that was killed there."""
    left = {
        "repair.begun": in_doubt,
        "repair.found": in_doubt - (hit.nth - 1),
        "repair.cleared": in_doubt - hit.nth,
    }
    return left.get(hit.step, 0)


def passes(hit: Hit, in_doubt: int) -> bool:
    return hit.step not in ("repair.found", "repair.cleared") or hit.nth <= in_doubt


@pytest.mark.parametrize("first", UNDER_LOCK, ids=str)
def test_a_repair_killed_in_what_a_killed_repair_left_is_met_again(
    make_stage: MakeStage, first: Hit
) -> None:
    for second in UNDER_LOCK:
        if passes(second, in_doubt_after(first, 3)):
            stage = make_stage()
            set_the_scene(REPAIR, stage, first)
            stage.kill(REPAIR.script, second)
            check_half_taken(stage)
            assert stage.ring.repairs == 1 + (first.step in COUNTED) + (second.step in COUNTED)


def test_twelve_repairs_killed_one_after_the_other_are_met_again(stage: Stage) -> None:
    REPAIR.prepare(stage)
    cell_by_cell = ["repair.begun", "repair.found", "repair.cleared"] * 3
    for step in (*cell_by_cell, "repair.disowned", *COUNTED):
        stage.kill(REPAIR.script, Hit(step))
    check_half_taken(stage)
    assert stage.ring.repairs == 3
    assert stage.ring.mapping.cleared == 0

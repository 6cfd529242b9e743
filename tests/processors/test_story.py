"""The order line against a naive model, told the same random stories."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter

import pytest
import sqlalchemy as sa

from processors import allocation
from processors.fefo import Shelf
from processors.tables import lots
from tests.processors.kit import House
from tests.processors.story import Story

SHORT = 2_000
# A mistake is noticed after a thousand steps, on average; then the story ends.
MISTAKEN = 40_000
STORIES = 100
# A story has its own database; all of them together are 1,000,000 steps, on PostgreSQL 100,000.
STEPS = {"sqlite": 10_000, "postgresql": 1_000}


def a_seed() -> int:
    """Another one each time, or TEST_STORY_SEED, to tell the same story again."""
    seed = int(os.environ.get("TEST_STORY_SEED", random.randrange(10**9)))
    sys.stdout.write(f"TEST_STORY_SEED={seed}\n")
    return seed


def test_a_story_ends_as_the_model_says(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(house, a_seed(), monkeypatch)
    story.tell(SHORT)
    seen = Counter(outcome for outcome, _ in story.model.outcomes.values())
    assert min(seen["allocated"], seen["rejected"]) > SHORT // 20  # neither is rare


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("_number", range(STORIES))
def test_a_million_steps_end_as_the_model_says(
    house: House, monkeypatch: pytest.MonkeyPatch, _number: int
) -> None:
    Story(house, a_seed(), monkeypatch).tell(STEPS[house.store.engine.dialect.name])


def expired_is_used(patch: pytest.MonkeyPatch) -> None:
    at_the_moment = lots.c.expires_us >= sa.bindparam("moment")
    patch.setattr(allocation, "NOT_EXPIRED", at_the_moment)


def age_is_ignored(patch: pytest.MonkeyPatch) -> None:
    real = allocation._lots

    def by_name(bound: sa.ColumnElement[bool]) -> sa.Select[tuple[int, int, str, int, int]]:
        return real(bound).order_by(None).order_by(lots.c.expires_us, lots.c.lot_id)

    patch.setattr(allocation, "_lots", by_name)


def a_part_will_do(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shelf, "covers", lambda self, _: self.left > 0 or bool(self._read(None)))


@pytest.mark.parametrize("mistake", [expired_is_used, age_is_ignored, a_part_will_do])
def test_a_mistake_in_the_product_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch, mistake: object
) -> None:
    mistake(monkeypatch)  # type: ignore[operator]
    story = Story(house, a_seed(), monkeypatch)
    try:
        story.tell(MISTAKEN)
    except Exception:  # how it shows depends on the mistake
        return
    pytest.fail("nobody noticed")

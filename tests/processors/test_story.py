"""The order line against a naive model, told the same random stories."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors import allocation, cancelling, explaining, fefo, posting
from processors.fefo import INSUFFICIENT_STOCK, UNKNOWN_SKU, Portion, Shelf, Verdict
from processors.posting import Sku
from processors.schema import Line, Order
from processors.tables import lots
from tests.processors.kit import House
from tests.processors.story import Story

SHORT = 2_000
# A mistake is noticed after some hundred steps; then the story ends.
MISTAKEN = 10_000
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
    seen = story.outcomes()
    # None is rare.
    assert min(seen["allocated"], seen["rejected"]) > SHORT // 20
    assert min(story.withdrawn, story.given_back, story.recalled) > 0
    assert story.explained > SHORT // 100


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("_number", range(STORIES))
def test_a_million_steps_end_as_the_model_says(
    house: House, monkeypatch: pytest.MonkeyPatch, _number: int
) -> None:
    story = Story(house, a_seed(), monkeypatch)
    story.tell(STEPS[house.store.engine.dialect.name])
    sys.stdout.write(f"{story.told:,} steps, {story.counts()}: 0 differences\n")


def expired_is_used(patch: pytest.MonkeyPatch) -> None:
    at_the_moment = lots.c.expires_us >= sa.bindparam("moment")
    patch.setattr(allocation, "NOT_EXPIRED", at_the_moment)


def age_is_ignored(patch: pytest.MonkeyPatch) -> None:
    real = allocation._lots

    def by_name(bound: sa.ColumnElement[bool]) -> sa.Select[tuple[int, int, str, int, int]]:
        return real(bound).order_by(None).order_by(lots.c.expires_us, lots.c.lot_id)

    patch.setattr(allocation, "_lots", by_name)


def a_part_will_do(patch: pytest.MonkeyPatch) -> None:
    def serve(shelves: Mapping[str, Shelf], lines: list[Line]) -> Verdict:
        if any(line.sku not in shelves for line in lines):
            return Verdict([], UNKNOWN_SKU)
        portions: list[Portion] = []
        for line in lines:
            if not shelves[line.sku].covers(line.thousandths):
                return Verdict(portions, INSUFFICIENT_STOCK)
            portions += shelves[line.sku].give(line.sku, line.thousandths)
        return Verdict(portions)

    patch.setattr(fefo, "serve", serve)


def last_come_is_first_served(patch: pytest.MonkeyPatch) -> None:
    def allocate(shelves: Mapping[str, Shelf], batch: Iterable[Order]) -> list[Verdict]:
        return [fefo.serve(shelves, order.lines) for order in [*batch][::-1]][::-1]

    patch.setattr(allocation, "allocate", allocate)


def recalled_is_used(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(allocation, "IN_STOCK", sa.text("available > 0 AND expired_seq IS NULL"))


def a_sum_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(posting.Sku, "changes", lambda *_: None)


def a_lot_may_come_before_it_was_received(patch: pytest.MonkeyPatch) -> None:
    real = explaining._why

    def why(row: Any, *others: Any) -> str:
        bare = SimpleNamespace(**{**row._mapping, "received_seq": None})
        return real(bare, *others)

    patch.setattr(explaining, "_why", why)


def all_comes_back_to_the_first_lot(patch: pytest.MonkeyPatch) -> None:
    real = cancelling._post

    def post(
        connection: Connection, locked: dict[int, Sku], returns: list[dict[str, Any]], now: int
    ) -> None:
        real(connection, locked, [{**one, "lot": returns[0]["lot"]} for one in returns], now)

    patch.setattr(cancelling, "_post", post)


@pytest.mark.parametrize(
    "mistake",
    [
        expired_is_used,
        age_is_ignored,
        a_part_will_do,
        last_come_is_first_served,
        recalled_is_used,
        all_comes_back_to_the_first_lot,
        a_sum_is_forgotten,
        a_lot_may_come_before_it_was_received,
    ],
)
def test_a_mistake_in_the_product_is_found(
    house: House, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mistake(monkeypatch)
    story = Story(house, a_seed(), monkeypatch)
    with pytest.raises(AssertionError):
        story.tell(MISTAKEN)
    # By what it does, not by an error in the mistake itself.
    assert house.rows("SELECT count(*) FROM orders WHERE status = 'dead'") == [(0,)]
    sys.stdout.write(f"found after {story.told} steps\n")

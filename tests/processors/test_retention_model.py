"""Orders, corrections, cancels, recalls and retention in any order: every balance stays what it
was, and the audit holds after each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors.cancelling import Canceller
from processors.inventory import adjust_lot
from processors.recalling import recall_lot
from processors.retention import MARGIN_US, Retention
from processors.schema import Adjustment
from tests.processors.kit import House

SKUS = "ABC"
Step = tuple[str, int, int, int]

steps = st.lists(
    st.one_of(
        st.tuples(st.just("order"), st.integers(0, 2), st.integers(1, 3000), st.integers(0, 2)),
        st.tuples(st.just("adjust"), st.integers(0, 5), st.integers(-900, 900), st.just(0)),
        st.tuples(st.just("lot"), st.integers(0, 2), st.integers(1, 5000), st.integers(1, 50)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.booleans(), st.just(0)),
        st.tuples(st.just("recall"), st.integers(0, 5), st.just(0), st.just(0)),
        st.tuples(st.just("retain"), st.integers(0, 100), st.integers(1, 12), st.integers(0, 3)),
    ),
    min_size=4,
    max_size=30,
)


class Story:
    """A house, and what happens to it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.lots = 0
        self.keys: list[bytes] = []
        self.canceller = Canceller(house.ring.epoch)
        self.retention: Retention | None = None

    def do(self, step: Step) -> None:
        kind, *numbers = step
        getattr(self, kind)(*numbers)

    def lot(self, sku: int, thousandths: int, hours: int) -> None:
        name = f"L{self.lots}"
        self.house.stock(self.house.lot(name, SKUS[sku], thousandths, hours=hours))
        self.lots += 1

    def order(self, sku: int, thousandths: int, more: int) -> None:
        names = SKUS[sku : sku + 1 + more]
        self.keys.append(self.house.put(*((name, thousandths) for name in names)))
        self.house.work()

    def cancel(self, order: int, waits: int, _: int) -> None:
        """One of those that are settled, or a new one that waits."""
        if not waits and self.keys:
            self.canceller.cancel(self.house.store, self.keys[order % len(self.keys)], None)
            return
        found = self.house.ring.find(self.house.put((SKUS[order % 3], 1)))
        assert found is not None
        self.canceller.cancel(self.house.store, found.item.key, found.item)
        self.house.work()

    def recall(self, lot: int, _: int, __: int) -> None:
        recall_lot(self.house.store, f"L{lot}", limit=1)

    def adjust(self, lot: int, delta: int, _: int) -> None:
        adjust_lot(self.house.store, f"L{lot}", Adjustment(delta or 1, "count"))

    def retain(self, percent: int, count: int, new: int) -> None:
        """So many steps, with what was committed before that moment old; perhaps of a new run."""
        if self.retention is None or not new:
            self.retention = Retention(self.house.store, 1, self.limit(percent), now=lambda: 2**62)
            self.retention.forgetting.rows = self.retention.folding.rows = 1
        for _ in range(count):
            if not self.retention.step():
                break

    def limit(self, percent: int) -> Callable[[], int]:
        ((first, last),) = self.house.rows("SELECT min(at_us), max(at_us) + 1 FROM movements")
        moment = self.house.now if first is None else first + (last - first) * percent // 100
        return lambda: moment + MARGIN_US


def tell(story: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder, closing(House(Path(folder))) as house:
        told = Story(house)
        for step in story:
            before = house.rows("SELECT lot_id, available FROM lots ORDER BY 1")
            told.do(step)
            if step[0] == "retain":
                assert house.rows("SELECT lot_id, available FROM lots ORDER BY 1") == before
                report = house.audit()
                assert report.ok, list(report.lines())
        assert house.audit().ok


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_retention_changes_no_balance_and_leaves_an_audit_that_holds(story: list[Step]) -> None:
    tell(story)


@pytest.mark.prove
@pytest.mark.timeout(900)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_in_500_stories_retention_changes_no_balance(story: list[Step]) -> None:
    tell(story)

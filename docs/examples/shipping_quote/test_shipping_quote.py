"""No service needed: python -m pytest"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa
from shipping_quote import Quoting, cents_for, processor, quotes
from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Work, fefo
from processors.testing import Workbench, posted

PRICES = sa.select(quotes.c.grams, quotes.c.cents).order_by(quotes.c.grams)


@pytest.fixture
def bench() -> Iterator[Workbench]:
    with Workbench(processor()) as bench:
        bench.lot("PORK-BELLY", "200")
        yield bench
        bench.audit()


@pytest.mark.parametrize(
    ("grams", "cents"), [(1, 590), (5_000, 590), (5_001, 990), (100_000, 2_490), (100_001, None)]
)
def test_a_rate_holds_up_to_its_limit(grams: int, cents: int | None) -> None:
    assert cents_for(grams) == cents


def test_what_is_allocated_is_quoted(bench: Workbench) -> None:
    assert bench.order(("PORK-BELLY", "12.5")).status == "allocated"
    assert bench.rows(PRICES) == [(12_500, 990)]


def test_what_no_parcel_takes_is_rejected_and_touches_no_stock(bench: Workbench) -> None:
    heavy, light = bench.settle(posted(("PORK-BELLY", "150")), posted(("PORK-BELLY", "90")))
    assert (heavy.status, heavy.reason) == ("rejected", "too_heavy_to_ship")
    assert light.status == "allocated"
    assert bench.rows(PRICES) == [(90_000, 2_490)]


def test_what_is_not_in_stock_is_not_quoted(bench: Workbench) -> None:
    bench.order(("PORK-BELLY", "99"))
    bench.order(("PORK-BELLY", "99"))
    assert bench.order(("PORK-BELLY", "99")).reason == "insufficient_stock"
    assert len(bench.rows(PRICES)) == 2


def test_a_worker_killed_before_its_commit_leaves_neither_quote_nor_table(bench: Workbench) -> None:
    order = posted(("PORK-BELLY", "1"))
    bench.settle_killed(order)
    assert bench.settle(order)[0].status == "allocated"
    assert bench.rows(PRICES) == [(1_000, 590)]


def test_a_batch_that_fails_quotes_only_what_comes_through_alone() -> None:
    def fail_on_b(
        transaction: Connection, orders: Sequence[Work], moment_us: int
    ) -> Sequence[Outcome]:
        if any(work.order.customer == "B" for work in orders):
            raise ValueError("B")
        return allocate(transaction, orders, moment_us)

    allocate = fefo()
    with Workbench(Quoting(fail_on_b)) as bench:
        bench.lot("HAM", "10")
        orders = [posted(("HAM", "1"), customer=name) for name in "ABC"]
        statuses = [result.status for result in bench.settle(*orders)]
        assert statuses == ["allocated", "dead", "allocated"]
        assert bench.rows(PRICES) == [(1_000, 590), (1_000, 590)]
        bench.audit()

"""What the helper for processors of one's own claims is what workers do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from shipping_quote import processor as shipping_quote
from shipping_quote import quotes

from processors.pipeline import Outcome, Processor, Retry, Work, fefo
from processors.schema import encode_order
from processors.tables import lots, orders, outbox
from processors.testing import Workbench, posted
from processors.worker import Rules
from tests.processors.kit import House, settled_by

ALLOCATED = Outcome("allocated")


def fussy(work: Work) -> Outcome:
    """Its customers' names say what happens."""
    match work.order.customer:
        case "retry":
            raise Retry(7.0)
        case "retry once" if not work.tries:
            raise Retry(1.0)
        case "raise":
            raise ValueError("no")
    return Outcome.rejected("as_ever")


def test_orders_are_given_what_expires_first() -> None:
    with Workbench(fefo()) as bench:
        bench.lot("HAM", "5", lot_id="LATE", expires_in_s=60)
        bench.lot("HAM", "5", lot_id="SOON", expires_in_s=30)
        bench.lot("HAM", "5", lot_id="GONE", expires_in_s=-1)
        given = bench.order(("HAM", "7.5")).allocations
        assert [(one.lot_id, one.quantity) for one in given] == [("SOON", "5"), ("LATE", "2.5")]
        assert bench.order(("HAM", "2.501")).reason == "insufficient_stock"
        bench.audit()


def test_a_batch_that_fails_is_run_one_by_one() -> None:
    with Workbench(settled_by(fussy)) as bench:
        names = ["any", "retry", "raise", "other"]
        results = bench.settle(*(posted(("HAM", "1"), customer=name) for name in names))
        assert [one.status for one in results] == ["rejected", "retry", "dead", "rejected"]
        assert results[1].after_s == 7.0
        assert isinstance(results[2].error, ValueError)
        assert len(bench.rows(sa.select(orders.c.id))) == len(bench.rows(sa.select(outbox.c.id)))
        bench.audit()


def test_one_that_asked_for_another_try_is_told_that_it_is_one() -> None:
    with Workbench(settled_by(fussy)) as bench:
        order = posted(("HAM", "1"), customer="retry once")
        assert [bench.settle(order)[0].status for _ in range(2)] == ["retry", "rejected"]


def test_an_order_with_an_outcome_is_not_processed_again() -> None:
    calls: list[bytes] = []

    def note(work: Work) -> Outcome:
        calls.append(work.order_id)
        return Outcome.rejected("noted")

    with Workbench(settled_by(note)) as bench:
        order = posted(("HAM", "1"))
        assert {one.status for one in bench.settle(order, order) + bench.settle(order)} == {
            "rejected"
        }
        assert calls == [order.order_id]


def test_killed_before_the_commit_nothing_stays() -> None:
    with Workbench(fefo()) as bench:
        bench.lot("HAM", "1")
        bench.settle_killed(posted(("HAM", "1")))
        assert bench.rows(sa.select(lots.c.available)) == [(1000,)]
        assert bench.rows(sa.select(orders.c.id)) == []


@pytest.mark.parametrize("outcomes", [[], [ALLOCATED] * 2, [Outcome("cancelled")]])
def test_what_is_no_outcome_is_the_orders_death(outcomes: list[Outcome]) -> None:
    with Workbench(lambda _transaction, _orders, _moment_us: outcomes) as bench:
        assert bench.order(("HAM", "1")).status == "dead"


def test_the_audit_tells_of_stock_that_was_never_given() -> None:
    with Workbench(settled_by(lambda _: ALLOCATED)) as bench:
        bench.order(("HAM", "1"))
        with pytest.raises(AssertionError, match="covered"):
            bench.audit()


@pytest.mark.parametrize("make", [fefo, lambda: settled_by(fussy)], ids=["fefo", "fussy"])
def test_a_worker_comes_to_the_same_outcomes(make: Callable[[], Processor], house: House) -> None:
    batch = [posted(("HAM", "1"), customer=name) for name in ("any", "retry", "raise", "other")]
    with Workbench(make()) as bench:
        bench.lot("HAM", "2")
        ours = [one.status for one in bench.settle(*batch)]
    house.stock(house.lot("L", "HAM", 2000))
    keys = [house.put_bytes(encode_order(one.order), one.order_id) for one in batch]
    house.work(make(), Rules(attempts=1))
    theirs = [house.view(key).status for key in keys]
    assert theirs == ["dead" if status == "retry" else status for status in ours]


def test_a_table_of_ones_own_is_made_by_two_workers_at_once(url: str) -> None:
    with Workbench(shipping_quote(), database=url) as one:
        with Workbench(shipping_quote(), database=url) as other:
            one.lot("HAM", "2")
            together = threading.Barrier(2)

            def order(bench: Workbench) -> None:
                together.wait(10)
                statuses.append(bench.order(("HAM", "1")).status)

            statuses: list[str] = []
            threads = [threading.Thread(target=order, args=[each]) for each in (one, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert statuses == ["allocated", "allocated"]
            assert len(one.rows(sa.select(quotes.c.cents))) == 2
            one.audit()

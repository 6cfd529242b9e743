"""No service and no network needed: python -m pytest"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from courier import AWAY_S, Courier, Reserving

from processors.pipeline import fefo
from processors.testing import Workbench, posted


class Depot(httpx.AsyncBaseTransport):
    """The courier's side. `status`: its answers; None: it hangs. `refuses`: a customer."""

    def __init__(self) -> None:
        self.status: int | None = 201
        self.refuses = ""
        self.calls: list[str] = []
        self.now = 100.0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.path}")
        if self.status is None:
            await asyncio.Event().wait()
        if self.refuses and self.refuses in request.content.decode():
            return httpx.Response(422)
        return httpx.Response(self.status or 500, content=b"x" * 100_000)


@pytest.fixture
def depot() -> Depot:
    return Depot()


@pytest.fixture
def bench(depot: Depot) -> Iterator[Workbench]:
    courier = Courier("http://depot", limit_s=0.05, transport=depot, clock=lambda: depot.now)
    with Workbench(Reserving(fefo(), courier)) as bench:
        bench.lot("HAM", "3")
        yield bench
        bench.audit()


def test_what_is_allocated_is_reserved_and_nothing_else(bench: Workbench, depot: Depot) -> None:
    fits, lacks = bench.settle(posted(("HAM", "2")), posted(("HAM", "2")))
    assert (fits.status, lacks.reason) == ("allocated", "insufficient_stock")
    assert depot.calls == [f"PUT /reservations/{fits.order_id}"]


def test_a_courier_that_hangs_makes_orders_wait_and_not_lost(
    bench: Workbench, depot: Depot
) -> None:
    depot.status = None
    order = posted(("HAM", "2"))
    assert [one.after_s for one in bench.settle(order)] == [AWAY_S]
    depot.status, depot.now = 201, depot.now + AWAY_S
    assert bench.settle(order)[0].status == "allocated"


def test_while_it_is_away_nobody_asks(bench: Workbench, depot: Depot) -> None:
    depot.status = None
    bench.order(("HAM", "1"))
    calls = len(depot.calls)
    assert {one.status for one in bench.settle(posted(("HAM", "1")), posted(("HAM", "1")))} == {
        "retry"
    }
    assert len(depot.calls) == calls


def test_an_answer_of_503_holds_up_its_own_order_alone(bench: Workbench, depot: Depot) -> None:
    depot.status = 503
    assert bench.order(("HAM", "1")).status == "retry"
    depot.status = 201
    assert bench.order(("HAM", "1")).status == "allocated"


def test_a_worker_killed_before_its_commit_has_reserved_once(
    bench: Workbench, depot: Depot
) -> None:
    order = posted(("HAM", "2"))
    bench.settle_killed(order)
    assert bench.settle(order)[0].status == "allocated"
    assert len(depot.calls) == 2
    assert len(set(depot.calls)) == 1


def test_what_is_refused_is_rejected_and_its_stock_goes_to_the_next(
    bench: Workbench, depot: Depot
) -> None:
    depot.refuses = "Far Away"
    far, near = bench.settle(
        posted(("HAM", "3"), customer="Far Away"), posted(("HAM", "3"), customer="Near")
    )
    assert (far.status, far.reason) == ("rejected", "no_courier")
    assert near.status == "allocated"
    assert depot.calls == [f"PUT /reservations/{one.order_id}" for one in (far, near)]

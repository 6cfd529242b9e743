"""The relay, telling what happens to stock."""

from __future__ import annotations

import pytest

from processors.delivery_list import backlog, list_deliveries
from processors.expiring import Expirer
from processors.low_stock import set_thresholds
from tests.partners import FAILS, OK, Message, partner, until
from tests.processors.kit import House
from tests.processors.test_relay import (
    _quick,
    anyio_backend,
    endpoint,
    reject,
    relaying,
    told,
)

pytestmark = pytest.mark.anyio
__all__ = ["_quick", "anyio_backend"]  # fixtures


async def test_what_happens_to_stock_is_told_with_ids_of_its_own(house: House) -> None:
    set_thresholds(house.store, {"HAM": 5000})
    async with partner() as shop, partner() as desk:
        wanted = [endpoint(shop), endpoint(desk, "desk", events=("stock.low",))]
        async with relaying(house, *wanted):
            house.stock(house.lot("old", "HAM", 3000, hours=-1), house.lot("new", "HAM", 6000))
            Expirer(house.store).step()
            house.put(("HAM", 2000))
            house.work()
            await until(lambda: len(shop.heard) == 3 and desk.heard)
        by_type = {one.content["type"]: one for one in shop.heard}
        assert sorted(by_type) == ["order.allocated", "stock.expired", "stock.low"]
        old = by_type["stock.expired"].content["data"]
        expires_at = old.pop("expires_at")
        assert expires_at < by_type["stock.expired"].content["timestamp"]
        assert old == {"sku": "HAM", "lot_id": "old", "quantity": "3"}
        low = {"sku": "HAM", "available": "4", "below": "5"}
        assert by_type["stock.low"].content["data"] == low
        assert [one.content["data"] for one in desk.heard] == [low]
        assert [one.id for one in desk.heard] == [by_type["stock.low"].id]
        assert len(set(shop.ids)) == 3
    found = list_deliveries(house.store, limit=9).items
    assert {(one.endpoint, one.type, one.sku) for one in found if one.order_id is None} == {
        ("shop", "stock.expired", "HAM"),
        ("shop", "stock.low", "HAM"),
        ("desk", "stock.low", "HAM"),
    }
    assert backlog(house.store, ["shop", "desk"]) == (0, 0.0)


async def test_what_happened_to_stock_before_an_endpoint_came_is_not_told(house: House) -> None:
    house.stock(house.lot("old", "HAM", 3000, hours=-1))
    Expirer(house.store).step()
    async with partner() as shop, relaying(house, endpoint(shop)):
        reject(house)
        await until(lambda: shop.heard)
        assert [one.content["type"] for one in shop.heard] == ["order.rejected"]


async def test_an_event_of_stock_that_failed_is_tried_again_with_what_it_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([FAILS])

    async def fails_once(_message: Message, _writer: object) -> bytes:
        return next(answers, OK)

    async with partner(fails_once) as shop, relaying(house, endpoint(shop)):
        house.stock(house.lot("old", "HAM", 3000, hours=-1))
        Expirer(house.store).step()
        house.ring.bump_commits()
        await until(lambda: len(shop.heard) == 2)
        assert len({(one.id, one.body) for one in shop.heard}) == 1
    assert told(house) == [("shop", "stock.expired", "delivered", 2)]

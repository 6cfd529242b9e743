"""Pages of orders: bounded work, and cursors that nothing that happens meanwhile upsets."""

from __future__ import annotations

import pytest

from processors import listing
from processors.cancelling import Canceller
from processors.listing import Wanted, list_orders
from processors.paging import CursorError, encode_cursor
from processors.schema import Line, Order, encode_order
from tests.processors.kit import House
from tests.processors.retaining import later, pass_over, retention
from tests.processors.test_dead_letters import die, replay


def settle(
    house: House, count: int, customer: str = "c", reference: str | None = None
) -> list[bytes]:
    order = Order(customer, [Line("HAM", 1)], reference)
    keys = [house.put_bytes(encode_order(order)) for _ in range(count)]
    house.work()
    return keys


def everything(house: House, limit: int = 100, **wanted: str) -> list[bytes]:
    seen, cursor = list[bytes](), None
    while True:
        page = list_orders(house.store, Wanted(**wanted), limit=limit, cursor=cursor)
        seen += [view.order_id for view in page.items]
        if (cursor := page.next_cursor) is None:
            return seen


def test_the_newest_outcome_comes_first_and_pages_lead_to_all(house: House) -> None:
    assert everything(house) == []
    keys = settle(house, 7)
    assert everything(house, limit=3) == keys[::-1]
    page = list_orders(house.store, Wanted(), limit=7)
    assert (len(page.items), page.next_cursor) == (7, None)


def test_pages_continue_where_they_were_whatever_happens_meanwhile(house: House) -> None:
    house.stock(house.lot("a", "HAM", 5))
    keys = settle(house, 5)
    (dead,) = die(house, b"D" * 16)
    first = list_orders(house.store, Wanted(), limit=2)
    assert [view.order_id for view in first.items] == [dead, keys[4]]
    settle(house, 3)
    canceller = Canceller(house.ring.epoch)
    for key in (keys[4], keys[2]):
        canceller.cancel(house.store, key, None)
    replay(house, dead)
    house.work()
    second = list_orders(house.store, Wanted(), limit=9, cursor=first.next_cursor)
    assert [(view.order_id, view.status) for view in second.items] == [
        (keys[3], "allocated"),
        (keys[2], "cancelled"),
        (keys[1], "allocated"),
        (keys[0], "allocated"),
    ]


def test_filters_find_what_is_among_many(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SCAN_MAX", 4)
    house.stock(house.lot("a", "HAM", 2))
    allocated = settle(house, 2, "Funky Foods", "R-1")
    rejected = settle(house, 15)
    late = settle(house, 1, "Funky Foods")
    assert everything(house, customer="Funky Foods") == [*late, *allocated[::-1]]
    assert everything(house, customer="Funky Foods", reference="R-1") == allocated[::-1]
    assert everything(house, customer="Funky Foods", status="rejected") == late
    assert everything(house, status="allocated", limit=1) == allocated[::-1]
    assert everything(house, status="cancelled") == everything(house, owner="nobody") == []
    assert set(everything(house, status="rejected")) == {*rejected, *late}
    page = list_orders(house.store, Wanted(customer="Funky Foods"), limit=9)
    assert [view.order_id for view in page.items] == late  # of four, and there are more
    assert page.next_cursor is not None


def test_an_owner_has_only_their_own(house: House) -> None:
    keys = settle(house, 3)
    house.tamper(f"UPDATE orders SET owner = 'ann' WHERE id = x'{keys[1].hex()}'")
    assert everything(house, owner="ann") == [keys[1]]
    assert len(everything(house)) == 3


def test_a_page_reads_no_more_than_it_may(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SCAN_MAX", 10)
    settle(house, 100)
    asked: list[tuple[int, int]] = []
    real = listing._rows

    def counted(connection: object, wanted: Wanted, begin: int, before: int, count: int) -> object:
        asked.append((begin, before))
        return real(connection, wanted, begin, before, count)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "_rows", counted)
    assert everything(house, customer="nobody") == []
    assert [before - begin for begin, before in asked] == [10] * 10


def test_a_gap_that_retention_left_is_crossed_in_one_page(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dead,) = die(house, b"D" * 16)
    settle(house, 40)
    keys = settle(house, 2)
    house.tamper(f"DELETE FROM outbox WHERE id > 1 AND order_id <> x'{keys[1].hex()}'")
    monkeypatch.setattr(listing, "SCAN_MAX", 2)
    page = list_orders(house.store, Wanted(), limit=9)
    assert ([view.order_id for view in page.items], page.next_cursor) == ([keys[1], dead], None)


def test_what_is_forgotten_is_left_out(house: House) -> None:
    settle(house, 5)
    assert len(everything(house)) == 5
    cursor = list_orders(house.store, Wanted(), limit=2).next_cursor
    pass_over(retention(house, now=later(house)))
    (newest,) = everything(house)
    assert list_orders(house.store, Wanted(), limit=2, cursor=cursor).items == []
    keys = settle(house, 2)
    assert everything(house) == [*keys[::-1], newest]


@pytest.mark.parametrize("cursor", ["", "x", encode_cursor((1,)), encode_cursor(("slot", 1))])
def test_a_cursor_of_another_list_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(CursorError):
        list_orders(house.store, Wanted(), limit=1, cursor=cursor)


@pytest.mark.parametrize("place", [-(2**63), -1, 0, 2**63 - 1])
def test_any_number_in_a_cursor_is_borne(house: House, place: int) -> None:
    keys = settle(house, 2)
    page = list_orders(house.store, Wanted(), limit=5, cursor=encode_cursor(("event", place)))
    assert [view.order_id for view in page.items] == (keys[::-1] if place > 0 else [])
    assert page.next_cursor is None

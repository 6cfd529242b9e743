from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from msgspec.structs import replace

from processors import inventory
from processors.inventory import (
    LIST_LOTS_MAX,
    SKU_LOTS_MAX,
    STATES,
    LotView,
    State,
    add_lot,
    add_lots,
    adjust_lot,
    list_inventory,
    list_lots,
    sku_inventory,
)
from processors.paging import CursorError, Page
from processors.quantity import format_quantity
from processors.recalling import recall_lot
from processors.schema import Adjustment, format_instant
from tests.processors.kit import House


def correct(house: House, lot_id: str, delta: int) -> str:
    return adjust_lot(house.store, lot_id, Adjustment(delta, "count")).outcome


def test_a_lot_is_entered_with_its_movement(house: House) -> None:
    result = add_lot(house.store, house.lot("a", "HAM", 12_500))
    assert (result.outcome, result.lot_id) == ("created", "a")
    assert (result.view.quantity, result.view.available, result.view.state) == (
        "12.5",
        "12.5",
        "available",
    )
    assert house.rows("SELECT sku_id, seq, lot, delta, kind FROM movements") == [
        (1, 1, 1, 12_500, "receive")
    ]
    assert house.audit().ok


def test_the_same_lot_again_changes_nothing_even_after_it_was_adjusted(house: House) -> None:
    lot = house.lot("a", "HAM", 1000)
    add_lot(house.store, lot)
    correct(house, "a", -300)
    again = add_lot(house.store, lot)
    assert (again.outcome, again.view.available) == ("same", "0.7")
    assert house.rows("SELECT count(*) FROM movements") == [(2,)]


@pytest.mark.parametrize(
    "change",
    [
        {"sku": "BACON"},
        {"thousandths": 1001},
        {"expires_us": 1},
        {"received_us": 1},
        {"supplier": "Meier"},
    ],
)
def test_a_lot_id_with_another_body_is_a_conflict(house: House, change: dict[str, Any]) -> None:
    lot = house.lot("a", "HAM", 1000)
    add_lot(house.store, lot)
    result = add_lot(house.store, replace(lot, **change))
    assert (result.outcome, result.view.sku) == ("conflict", "HAM")
    assert house.rows("SELECT count(*) FROM lots") == [(1,)]


def test_without_a_lot_id_each_time_is_a_new_lot(house: House) -> None:
    lot = replace(house.lot("", "HAM", 1000), lot_id=None)
    ids = {add_lot(house.store, lot).lot_id for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", lot_id) for lot_id in ids)


def test_a_lot_received_without_a_time_was_received_now(house: House) -> None:
    view = add_lot(house.store, house.lot("a", "HAM", 1000)).view
    assert view.received_at >= format_instant(house.now)


def test_two_bodies_for_one_lot_id_at_once_have_one_winner(house: House) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def enter(number: int) -> None:
        barrier.wait()
        outcomes.append(add_lot(house.store, house.lot("a", "HAM", number)).outcome)

    threads = [threading.Thread(target=enter, args=(i + 1,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "conflict", "conflict", "created"]


def test_an_adjustment_is_a_movement_with_its_reason(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    result = adjust_lot(house.store, "a", Adjustment(-250, "spoilage"))
    assert (result.outcome, result.available) == ("adjusted", 750)
    assert result.to_json_dict() == {"lot_id": "a", "available": "0.75"}
    assert house.rows("SELECT seq, delta, kind, reason FROM movements WHERE seq > 1") == [
        (2, -250, "adjust", "spoilage")
    ]
    assert house.audit().ok


def test_an_adjustment_may_empty_a_lot_and_not_more(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    refused = adjust_lot(house.store, "a", Adjustment(-1001, "count"))
    assert (refused.outcome, refused.available) == ("below_zero", 1000)
    assert correct(house, "a", -1000) == "adjusted"
    assert correct(house, "a", -1) == "below_zero"
    assert house.rows("SELECT count(*) FROM movements") == [(2,)]


def test_an_expired_and_a_spent_lot_can_be_adjusted(house: House) -> None:
    house.stock(house.lot("old", "HAM", 1000, hours=-1), house.lot("a", "HAM", 1000))
    assert correct(house, "old", -1) == "adjusted"
    assert correct(house, "a", -1000) == "adjusted"
    assert correct(house, "a", 5) == "adjusted"
    assert house.audit().ok


def test_an_unknown_lot_can_not_be_adjusted(house: House) -> None:
    assert correct(house, "none", 5) == "unknown_lot"


def test_a_sku_shows_its_lots_in_the_order_of_use_with_their_states(house: House) -> None:
    house.stock(
        house.lot("late", "HAM", 3000, hours=9),
        house.lot("expired", "HAM", 500, hours=-1),
        house.lot("spent", "HAM", 700, hours=5),
        house.lot("b", "HAM", 1000, hours=2, received_us=2),
        house.lot("a", "HAM", 1000, hours=2, received_us=2),
        house.lot("z", "HAM", 1000, hours=2, received_us=1),
        house.lot("other", "BACON", 1000),
    )
    correct(house, "spent", -700)
    view = sku_inventory(house.store, "HAM")
    assert view is not None
    assert (view.sku, view.available, view.more_lots) == ("HAM", "6", False)
    assert [(lot.lot_id, lot.available, lot.state) for lot in view.lots] == [
        ("expired", "0.5", "expired"),
        ("z", "1", "available"),
        ("a", "1", "available"),
        ("b", "1", "available"),
        ("spent", "0", "spent"),
        ("late", "3", "available"),
    ]


def test_a_sku_that_never_had_a_lot_has_no_view(house: House) -> None:
    assert sku_inventory(house.store, "none") is None
    assert list_lots(house.store, sku="none", limit=5).items == []


def test_a_sku_with_very_many_lots_shows_the_first_in_stock(house: House) -> None:
    count = SKU_LOTS_MAX + 5
    lots = [house.lot(f"{i:05}", "HAM", 1000, hours=1 + i) for i in range(count)]
    add_lots(house.store, lots)
    for i in range(3):
        correct(house, f"{i:05}", -1000)
    view = sku_inventory(house.store, "HAM")
    assert view is not None
    assert view.more_lots
    assert [lot.lot_id for lot in view.lots] == [f"{i:05}" for i in range(3, count - 2)]
    assert view.available == format_quantity((count - 3) * 1000)
    (listed,) = list_inventory(house.store, limit=1).items
    assert len(listed.lots) == LIST_LOTS_MAX


def test_pages_of_lots_show_each_lot_once_in_the_order_of_use(house: House) -> None:
    house.stock(
        *(house.lot(f"h{i}", "HAM", 1, hours=5 - i // 2, received_us=7) for i in range(7)),
    )
    house.stock(*(house.lot(f"b{i}", "BACON", 1, hours=i) for i in range(3)))
    for sku in (None, "HAM"):
        seen: list[str] = []
        cursor = None
        while True:
            page = list_lots(house.store, sku=sku, limit=2, cursor=cursor)
            seen += [lot.lot_id for lot in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        ham = ["h6", "h4", "h5", "h2", "h3", "h0", "h1"]
        assert seen == (ham if sku else [*ham, "b0", "b1", "b2"])


def pages(
    house: House, state: State | None, sku: str | None = None, limit: int = 2
) -> list[Page[LotView]]:
    found = [list_lots(house.store, sku=sku, state=state, limit=limit)]
    while (cursor := found[-1].next_cursor) is not None:
        found.append(list_lots(house.store, sku=sku, state=state, limit=limit, cursor=cursor))
    return found


def ids(found: list[Page[LotView]]) -> list[str]:
    return [lot.lot_id for page in found for lot in page.items]


def mixed(house: House) -> None:
    """Of two skus, four lots in each state."""
    house.stock(
        *(
            house.lot(f"{sku}{i:02}", sku, 1000, hours=-50 if i % 8 == 0 else i + 1)
            for sku in ("HAM", "BACON")
            for i in range(16)
        )
    )
    for sku in ("HAM", "BACON"):
        for i in range(16):
            if i % 4 in (1, 2):
                correct(house, f"{sku}{i:02}", -1000)
            if i % 4 == 2 or i in (4, 12):
                recall_lot(house.store, f"{sku}{i:02}", limit=1)


@pytest.mark.parametrize("scan_max", [2, 3, 7, 5000])
def test_the_lots_of_a_state_are_those_that_the_whole_list_shows_in_it(
    house: House, monkeypatch: pytest.MonkeyPatch, scan_max: int
) -> None:
    monkeypatch.setattr(inventory, "SCAN_MAX", scan_max)
    mixed(house)
    for sku in (None, "HAM", "BACON"):
        everything = [lot for page in pages(house, None, sku) for lot in page.items]
        assert {lot.state for lot in everything} == set(STATES)
        for state in STATES:
            found = pages(house, state, sku)
            assert {lot.state for page in found for lot in page.items} == {state}
            assert ids(found) == [lot.lot_id for lot in everything if lot.state == state]


def test_a_page_of_a_state_looks_through_no_more_than_its_share(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "SCAN_MAX", 4)
    house.stock(*(house.lot(f"l{i:02}", "HAM", 1000, hours=i + 1) for i in range(10)))
    for i in range(9):
        correct(house, f"l{i:02}", -1000)
    recall_lot(house.store, "l08", limit=1)
    assert [ids([page]) for page in pages(house, "recalled")] == [[], [], ["l08"]]
    # Those that are spent are not even passed by.
    assert [ids([page]) for page in pages(house, "available")] == [["l09"]]


def test_pages_of_skus_show_each_once_by_their_bytes(house: House) -> None:
    house.stock(*(house.lot(f"l{sku}", sku, 1) for sku in ["b", "A", "a", "10", "9"]))
    first = list_inventory(house.store, limit=3)
    rest = list_inventory(house.store, limit=3, cursor=first.next_cursor)
    assert [view.sku for view in [*first.items, *rest.items]] == ["10", "9", "A", "a", "b"]
    assert rest.next_cursor is None


def test_a_cursor_of_another_list_is_refused(house: House) -> None:
    house.stock(house.lot("a", "A", 1), house.lot("b", "B", 1))
    cursor = list_inventory(house.store, limit=1).next_cursor
    with pytest.raises(CursorError):
        list_lots(house.store, limit=1, cursor=cursor)

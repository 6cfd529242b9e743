"""Recalled lots: never used again, and everybody who holds some is named."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from processors import recalling
from processors.audit import run_audit
from processors.cancelling import Canceller
from processors.inventory import adjust_lot, list_lots, sku_inventory
from processors.migrate import FOLDER
from processors.paging import CursorError, encode_cursor
from processors.recalling import Holder, list_holders, recall_lot
from processors.schema import Adjustment, format_uuid
from processors.store import Store, migrate
from processors.tables import lots, movements, orders, outbox, skus
from tests.postgres import Postgres
from tests.processors.kit import PATIENCE_S, House
from tests.processors.retaining import add_newest, later, retention
from tests.processors.test_at_once import workers


def is_sound(house: House) -> None:
    report = house.audit()
    assert report.ok, list(report.lines())


def holders(house: House, lot_id: str, limit: int = 100) -> list[Holder]:
    seen, cursor = list[Holder](), None
    while True:
        page = list_holders(house.store, lot_id, limit=limit, cursor=cursor)
        assert page is not None
        seen += page.items
        if (cursor := page.next_cursor) is None:
            return seen


def test_a_recalled_lot_is_not_used_and_says_so(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=1), house.lot("b", "HAM", 5000, hours=2))
    recall = recall_lot(house.store, "a", limit=1)
    assert recall is not None
    assert (recall.lot.lot_id, recall.lot.available, recall.lot.state) == ("a", "1", "recalled")
    key = house.put(("HAM", 1500))
    house.work()
    assert house.given(key) == [("HAM", "b", "1.5")]
    view = sku_inventory(house.store, "HAM")
    assert view is not None
    assert [(lot.lot_id, lot.state) for lot in view.lots] == [
        ("a", "recalled"), ("b", "available"),
    ]  # fmt: skip
    assert view.available == "3.5"
    assert [lot.state for lot in list_lots(house.store, limit=9).items] == ["recalled", "available"]
    more = house.put(("HAM", 3501))
    house.work()
    assert house.view(more).reason == "insufficient_stock"
    is_sound(house)


def test_recalled_again_it_stays_as_it_was(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000), house.lot("b", "HAM", 1000))
    recall_lot(house.store, "a", limit=1)
    before = house.rows("SELECT recalled_us, recalled_seq FROM lots WHERE lot_id = 'a'")
    house.put(("HAM", 10))
    house.work()
    recall_lot(house.store, "a", limit=1)
    assert house.rows("SELECT recalled_us, recalled_seq FROM lots WHERE lot_id = 'a'") == before
    assert recall_lot(house.store, "nothing", limit=1) is None
    assert list_holders(house.store, "nothing", limit=1) is None
    is_sound(house)


def test_everybody_who_holds_some_is_named_and_nobody_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalling, "SCAN_MAX", 7)
    house.stock(house.lot("a", "HAM", 10_000, hours=1), house.lot("b", "HAM", 10_000, hours=2))
    keys = [house.put(("HAM", 300)) for _ in range(40)]
    house.work()
    cancelled = keys[3]
    Canceller(house.ring.epoch).cancel(house.store, cancelled, None)
    recall = recall_lot(house.store, "a", limit=5)
    assert recall is not None
    wanted = [(key, "0.3") for key in keys[:33] if key != cancelled] + [(keys[33], "0.1")]
    for limit in (1, 5, 100):
        found = holders(house, "a", limit)
        assert [(one.order_id, one.quantity) for one in found] == [
            (format_uuid(key), part) for key, part in reversed(wanted)
        ]
    assert [one.order_id for one in holders(house, "b")] == [
        format_uuid(key) for key in reversed(keys[33:])
    ]
    assert recall.holders.next_cursor is not None
    first = list_holders(house.store, "a", limit=5)
    assert first == recall.holders


def test_the_cost_of_a_page_does_not_grow_with_what_the_sku_has_moved(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalling, "SCAN_MAX", 10)
    house.stock(house.lot("late", "HAM", 10_000, hours=2), house.lot("a", "HAM", 1000, hours=1))
    for _ in range(100):
        house.put(("HAM", 100))
    house.work()
    page, pages = list_holders(house.store, "a", limit=100), 1
    while page is not None and page.next_cursor is not None:
        page = list_holders(house.store, "a", limit=100, cursor=page.next_cursor)
        pages += 1
    assert pages == 11  # 10 of 10 movements each, and the one with its receipt


def test_a_lot_can_be_counted_and_emptied_after_its_recall(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    recall_lot(house.store, "a", limit=1)
    assert adjust_lot(house.store, "a", Adjustment(-1000, "destroyed")).outcome == "adjusted"
    assert adjust_lot(house.store, "a", Adjustment(5, "found")).outcome == "adjusted"
    assert [lot.state for lot in list_lots(house.store, limit=9).items] == ["recalled"]
    key = house.put(("HAM", 1))
    house.work()
    assert house.view(key).reason == "insufficient_stock"
    is_sound(house)


def test_retention_around_a_recall_leaves_an_audit_that_holds(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=1), house.lot("b", "HAM", 5000, hours=2))
    house.put(("HAM", 100))
    house.work()
    recall_lot(house.store, "a", limit=1)
    house.put(("HAM", 100))
    house.work()
    add_newest(house)
    one = retention(house, now=later(house))
    one.forgetting.rows = one.folding.rows = 1
    while one.step():
        one.forgetting.rows = one.folding.rows = 1
        is_sound(house)
    assert house.rows("SELECT folded, seq FROM skus") == [(4, 4)]
    assert holders(house, "a") == []
    house.put(("HAM", 100))
    house.work()
    is_sound(house)


def test_recalls_beside_workers_are_minded_from_their_moment_on(house: House) -> None:
    house.stock(*(house.lot(f"L{i:02}", "HAM", 10_000, hours=1 + i) for i in range(40)))
    for _ in range(300):
        house.put(("HAM", 1000))
    other = Store.open(house.url, busy_timeout_s=PATIENCE_S)

    def recall() -> None:
        for number in range(1, 40, 3):
            assert recall_lot(other, f"L{number:02}", limit=1) is not None

    thread = threading.Thread(target=recall)
    with workers(house, 2, batch=4):
        thread.start()
    thread.join()
    other.close()
    assert house.audit().counts["lots recalled"] == 13
    is_sound(house)


@pytest.mark.parametrize("cursor", ["", encode_cursor(("event", 1))])
def test_a_cursor_of_another_list_is_refused(house: House, cursor: str) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    with pytest.raises(CursorError):
        list_holders(house.store, "a", limit=1, cursor=cursor)


@pytest.mark.parametrize("place", [-(2**63), 0, 2**63 - 1])
def test_any_number_in_a_cursor_is_borne(house: House, place: int) -> None:
    house.stock(house.lot("a", "HAM", 1000))
    page = list_holders(house.store, "a", limit=1, cursor=encode_cursor((place,)))
    assert page is not None
    assert (page.items, page.next_cursor) == ([], None)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_database_of_before_is_migrated_in_place_beside_its_users(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its rows stay, and who is connected minds the new rules at once."""
    url = f"sqlite:///{tmp_path / 'old.db'}"
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.url(server.database())
    engine, store = migrated_to("0005", url), Store.open(url)
    with engine.connect() as other:
        for row in OF_BEFORE:
            other.execute(row)
        other.commit()
        assert [refused(other, change) for change in CHANGES] == [True] * 4
        migrate(url)
        assert [refused(other, change) for change in CHANGES] == [False, False, True, True]
        assert other.execute(sa.select(orders.c.id, orders.c.status)).all() == [(KEY, "allocated")]
        other.rollback()
    report = run_audit([], store)
    assert report.ok, list(report.lines())  # SQLite's own checks are part of it
    store.close()
    engine.dispose()


def migrated_to(version: str, url: str) -> sa.Engine:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(FOLDER))
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    return engine


def refused(connection: sa.Connection, change: sa.Update) -> bool:
    try:
        assert connection.execute(change).rowcount == 1
    except sa.exc.IntegrityError:
        return True
    finally:
        connection.rollback()
    return False


KEY = b"K" * 16
MOVEMENT = {"sku_id": 1, "lot": 1, "at_us": 5}
OF_BEFORE = [
    sa.insert(skus).values(id=1, sku="HAM", seq=2),
    sa.insert(lots).values(
        id=1, lot_id="a", sku_id=1, received=10, available=9, expires_us=9, received_us=0,
        body_hash=KEY,
    ),
    sa.insert(movements).values(seq=1, delta=10, kind="receive", **MOVEMENT),
    sa.insert(movements).values(seq=2, delta=-1, kind="allocate", order_id=KEY, **MOVEMENT),
    sa.insert(orders).values(
        id=KEY, round=0, status="allocated", lines='[["HAM",1]]', ring_epoch=KEY[:8],
        ring_sequence=0, accepted_us=1, taken_us=2, committed_us=3, attempts=1,
    ),
    sa.insert(outbox).values(order_id=KEY, round=0, type="order.allocated", created_us=3),
]  # fmt: skip
CHANGES = [
    sa.update(orders).values(status="cancelled"),
    sa.update(movements).where(movements.c.seq == 2).values(kind="return"),
    sa.update(movements).where(movements.c.seq == 1).values(kind="return"),
    sa.update(orders).values(status="lost"),
]

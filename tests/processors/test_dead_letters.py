"""Dead letters: kept with the cause, replayed once, or let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.dead_letters import (
    DeadLetter,
    Revival,
    count_dead_letters,
    discard,
    find_dead_letter,
    list_dead_letters,
    revive,
)
from processors.inventory import sku_inventory
from processors.jobs import DAMAGED
from processors.known import Known
from processors.paging import CursorError
from processors.pipeline import Outcome, Processor, Work, fefo
from processors.recording import Recorder
from processors.schema import Line, Order, body_hash, encode_order, load_header
from processors.store import Store
from processors.tables import orders
from ringbuf import Identity
from tests.processors.kit import House, on_sqlite, settled_by

ORDER = Order("Funky Foods", [Line("HAM", 1500)], "R-1", {"shelf": "lowest", "nul": "\0"})


def raising() -> Processor:
    def decide(_: Work) -> Outcome:
        raise ZeroDivisionError("bad bacon")

    return settled_by(decide)


def die(house: House, *keys: bytes, order: Order = ORDER) -> list[bytes]:
    """Orders that died."""
    died = [house.put_bytes(encode_order(order), key) for key in keys or (None,)]
    house.work(raising())
    return died


def replay(house: House, key: bytes) -> None:
    """Puts it once more, as a front does."""
    found = revived(house, key)
    assert house.writer.try_put(found.payload, key, found.header, found.round) is not None


def revived(house: House, key: bytes) -> Revival:
    found = revive(house.store, key)
    assert isinstance(found, Revival)
    return found


def events(house: House, key: bytes) -> list[tuple[int, str]]:
    rows = house.rows("SELECT order_id, round, type FROM outbox ORDER BY id")
    return [(row[1], row[2]) for row in rows if row[0] == key]


def available(house: House) -> str:
    view = sku_inventory(house.store, "HAM")
    assert view is not None
    return view.available


def test_a_replay_is_the_order_as_it_was_posted_with_the_next_round(house: House) -> None:
    (key,) = die(house)
    found = revived(house, key)
    assert (found.payload, found.round) == (encode_order(ORDER), 1)
    assert load_header(found.header).body_hash == body_hash(found.payload)


def test_a_replay_is_settled_over_the_row_that_is_dead(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    before = house.view(key)
    replay(house, key)
    house.work()
    after = house.view(key)
    assert (after.status, after.round, after.reason, after.cause) == ("allocated", 1, None, None)
    assert (after.accepted_us, after.metadata) == (before.accepted_us, ORDER.metadata)
    assert after.committed_us > before.committed_us
    assert events(house, key) == [(0, "order.dead"), (1, "order.allocated")]
    assert count_dead_letters(house.store) == 0
    assert house.audit().ok


def test_two_replays_of_one_allocate_once(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    replay(house, key)
    replay(house, key)
    house.work()
    replay_late = revive(house.store, key)
    assert replay_late == "not_dead"
    assert available(house) == "8.5"
    assert events(house, key) == [(0, "order.dead"), (1, "order.allocated")]
    assert house.audit().ok


def test_a_replay_that_comes_again_after_its_commit_is_only_released(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    found = revived(house, key)
    for _ in range(2):
        house.writer.try_put(found.payload, key, found.header, found.round)
        house.work()
    assert available(house) == "8.5"
    assert house.ring.depth == sum(map(house.ring.held_count, range(house.ring.readers))) == 0


def test_a_replay_that_dies_again_is_a_dead_letter_again(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    for number in (1, 2):
        replay(house, key)
        house.work(raising())
        found = find_dead_letter(house.store, key)
        assert found is not None
        assert (found.round, found.reason) == (number, "processor_error")
    replay(house, key)
    house.work()
    kinds = [kind for _, kind in events(house, key)]
    assert kinds == ["order.dead"] * 3 + ["order.allocated"]
    assert house.audit().ok


def test_what_is_let_go_takes_a_replay_that_waits_with_it(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    replay(house, key)
    assert discard(house.store, key) == "discarded"
    house.work()
    assert available(house) == "10"
    view = house.view(key)
    assert (view.status, view.reason, view.round) == ("dead", "discarded", 1)
    assert (view.customer, view.lines, view.metadata, view.cause) == (None, [], None, None)
    assert view.body_hash == body_hash(encode_order(ORDER))
    assert events(house, key) == [(0, "order.dead")]
    assert house.audit().ok


def test_what_is_let_go_is_known_to_the_journal_and_no_dead_letter(house: House) -> None:
    (key,) = die(house)
    discard(house.store, key)
    with house.store.reading() as connection:
        both = [Identity(key, 0), Identity(key, 1)]
        assert Known().of(connection, both) == set(both)
    assert discard(house.store, key) == "unknown"
    assert revive(house.store, key) == "unknown"
    assert find_dead_letter(house.store, key) is None
    assert not list_dead_letters(house.store, limit=9).items
    assert count_dead_letters(house.store) == 0


def test_what_lives_is_no_dead_letter(house: House) -> None:
    key = house.put(("HAM", 1000))
    house.work()
    assert revive(house.store, key) == discard(house.store, key) == "not_dead"
    assert revive(house.store, bytes(16)) == discard(house.store, bytes(16)) == "unknown"
    assert find_dead_letter(house.store, key) is None
    assert house.audit().ok


@pytest.mark.parametrize("round_", [1, 2, 7])
def test_a_replay_of_nothing_is_let_go(
    house: House, round_: int, caplog: pytest.LogCaptureFixture
) -> None:
    house.writer.try_put(encode_order(ORDER), b"k" * 16, b"", round_)
    house.work()
    assert house.rows("SELECT count(*) FROM orders") == [(0,)]
    assert house.ring.depth == 0
    assert "was let go before its replay" in caplog.text


def test_a_replay_of_a_later_round_than_the_next_is_let_go(house: House) -> None:
    (key,) = die(house)
    house.writer.try_put(encode_order(ORDER), key, b"", 2)
    house.work()
    assert (house.view(key).status, house.view(key).round) == ("dead", 0)


def test_a_posted_order_does_not_wake_the_dead(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    house.put_bytes(encode_order(ORDER), key)
    house.work()
    assert (house.view(key).status, house.view(key).round) == ("dead", 0)


def test_a_replay_that_another_worker_settled_meanwhile_is_looked_at_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two workers on a database that locks rows only."""
    house.stock(house.lot("a", "HAM", 10_000))
    (key,) = die(house)
    replay(house, key)
    looks = []
    record = Recorder.record

    def overtaken(self: Recorder, transaction: Connection, settled: Sequence[object]) -> None:
        looks.append(len(settled))
        if len(looks) == 1:
            transaction.execute(
                sa.update(orders).where(orders.c.id == key).values(round=1, status="rejected")
            )
        record(self, transaction, settled)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "record", overtaken)
    house.work()
    # The first transaction was rolled back, with what the other one had done in it.
    assert looks == [1, 1]
    assert (house.view(key).status, house.view(key).round) == ("allocated", 1)
    assert available(house) == "8.5"


def test_what_could_not_be_read_is_replayed_from_its_bytes(house: House) -> None:
    key = house.put_bytes(b"no order")
    house.work()
    found = revived(house, key)
    assert (found.payload, found.header, found.round) == (b"no order", b"", 1)
    replay(house, key)
    house.work()
    again = find_dead_letter(house.store, key)
    assert again is not None
    assert (again.reason, again.round, again.whole, again.lines) == ("unreadable", 1, True, [])
    assert house.audit().ok


def test_what_was_damaged_can_only_be_let_go(house: House) -> None:
    (key,) = die(house)
    house.tamper(
        f"UPDATE orders SET reason = '{DAMAGED}', lines = NULL, customer = NULL, payload = x'00'"
    )
    assert revive(house.store, key) == "not_whole"
    found = find_dead_letter(house.store, key)
    assert found is not None
    assert not found.whole
    assert discard(house.store, key) == "discarded"


# ---- lists --------------------------------------------------------------------------------------


def shown(house: House, limit: int, reason: str | None = None) -> list[list[DeadLetter]]:
    pages, cursor = [], None
    while True:
        page = list_dead_letters(house.store, limit=limit, cursor=cursor, reason=reason)
        pages.append(page.items)
        cursor = page.next_cursor
        if cursor is None:
            return pages


def test_pages_show_each_once_in_the_order_of_their_deaths(house: House) -> None:
    keys = [bytes([255 - number]) * 16 for number in range(7)]
    for key in keys:
        die(house, key)
    pages = shown(house, 3)
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [one.order_id for page in pages for one in page] == keys
    assert [one.cause is not None and "bad bacon" in one.cause for one in pages[0]] == [True] * 3
    assert count_dead_letters(house.store) == 7


def test_a_list_of_one_reason_has_no_other(house: House) -> None:
    unreadable = house.put_bytes(b"no order")
    house.work()
    die(house)
    assert [[one.order_id for one in page] for page in shown(house, 5, "unreadable")] == [
        [unreadable]
    ]
    assert shown(house, 5, "elsewhere") == [[]]


def test_a_cursor_of_another_list_is_refused(house: House) -> None:
    with pytest.raises(CursorError):
        list_dead_letters(house.store, limit=3, cursor="bm8")


Look = Callable[[Store], object]


@on_sqlite
@pytest.mark.parametrize(
    "look", [lambda store: list_dead_letters(store, limit=5), count_dead_letters]
)
def test_dead_letters_are_found_without_looking_at_other_orders(house: House, look: Look) -> None:
    seen: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        seen.append((statement, parameters))

    sa.event.listen(house.store.engine, "before_cursor_execute", note)
    look(house.store)
    statement, parameters = next(one for one in seen if "orders" in one[0])
    with house.store.reading() as connection:
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
    assert "INDEX dead_letters" in plan
    assert "TEMP B-TREE" not in plan


def test_what_is_let_go_is_not_allocated_by_any_processor(house: House) -> None:
    """A replay beside a discard: the discard was first, and nothing is done for the replay."""
    (key,) = die(house)
    found = revived(house, key)
    discard(house.store, key)
    house.writer.try_put(found.payload, key, found.header, found.round)
    asked: list[Work] = []
    inner = fefo()

    def process(transaction: Connection, works: Sequence[Work], moment: int) -> Sequence[Outcome]:
        asked.extend(works)
        return inner(transaction, works, moment)

    house.work(process)
    assert asked == []

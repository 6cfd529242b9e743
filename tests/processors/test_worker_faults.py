from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from uuid import uuid4

import pytest
from sqlalchemy.engine import Connection

from processors import worker as worker_module
from processors.pipeline import Outcome, Retry, Work, fefo
from processors.recording import Recorder
from processors.stop import Stop
from processors.store import Store, StoreError, StoreUnavailable
from processors.worker import Rules, pauses
from tests.processors.kit import House, on_sqlite, settled_by

REJECTED = Outcome.rejected("tested")


def statuses(house: House) -> dict[bytes, tuple[str, str | None]]:
    return {row[0]: row[1:] for row in house.rows("SELECT id, status, reason FROM orders")}


class Awry(Store):
    """The database is away as often as `away` says; `pauses` counts how often it was."""

    away = 0
    pauses = 0

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        if self.away:
            self.away -= 1
            self.pauses += 1
            raise StoreUnavailable("away")
        with super().writing() as connection:
            yield connection


# ---- the exception rule ---------------------------------------------------------------------


def test_an_order_that_raises_is_dead_with_its_traceback_and_the_others_go_on(
    house: House,
) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    inner = fefo()
    keys = [house.put(("HAM", 1000)) for _ in range(5)]

    def process(transaction: Connection, orders: Sequence[Work], moment: int) -> Sequence[Outcome]:
        outcomes = inner(transaction, orders, moment)
        if keys[2] in {work.order_id for work in orders}:
            raise ZeroDivisionError("bad bacon")
        return outcomes

    house.work(process)
    found = [house.view(key) for key in keys]
    assert [view.status for view in found] == ["allocated"] * 2 + ["dead"] + ["allocated"] * 2
    dead = found[2]
    assert (dead.reason, dead.customer, dead.lines) == (
        "processor_error",
        "Funky Foods",
        [("HAM", 1000)],
    )
    assert dead.cause is not None
    assert "ZeroDivisionError: bad bacon" in dead.cause
    assert house.rows("SELECT type FROM outbox ORDER BY type") == [
        *[("order.allocated",)] * 4,
        ("order.dead",),
    ]
    assert house.audit().ok


def test_after_a_failed_batch_each_order_is_alone_in_its_transaction(house: House) -> None:
    sizes: list[int] = []

    def process(_t: Connection, orders: Sequence[Work], _m: int) -> list[Outcome]:
        sizes.append(len(orders))
        if len(orders) > 1:
            raise ZeroDivisionError
        return [REJECTED]

    for _ in range(3):
        house.put(("HAM", 1))
    house.work(process)
    assert sizes == [3, 1, 1, 1]
    assert set(statuses(house).values()) == {("rejected", "tested")}


def test_a_retry_stays_in_hand_while_the_others_go_on(house: House) -> None:
    slow = uuid4().bytes
    seen: list[tuple[bytes, int]] = []

    def decide(work: Work) -> Outcome:
        seen.append((work.order_id, work.tries))
        if work.order_id == slow and work.tries < 2:
            raise Retry(0)
        return REJECTED

    house.put(("HAM", 1), key=slow)
    others = [house.put(("HAM", 1)) for _ in range(3)]
    house.work(settled_by(decide), Rules(batch=2, attempts=3))
    assert statuses(house) == dict.fromkeys([slow, *others], ("rejected", "tested"))
    assert [tries for key, tries in seen if key == slow] == [0, 0, 1, 2]
    assert house.view(slow).attempts == 3
    assert house.ring.held_count(0) == 0


def test_an_order_that_was_tried_as_often_as_allowed_is_dead(house: House) -> None:
    tries: list[int] = []

    def decide(work: Work) -> Outcome:
        tries.append(work.tries)
        raise Retry(0, "the slicer is out")

    key = house.put(("HAM", 1))
    house.work(settled_by(decide), Rules(attempts=3))
    assert tries == [0, 1, 2]
    view = house.view(key)
    assert (view.status, view.reason, view.attempts) == ("dead", "retries_exhausted", 3)
    assert "the slicer is out" in (view.cause or "")


def test_retries_wait_longer_each_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    moments: list[float] = []

    class Sleeper(Stop):
        def wait(self, seconds: float) -> bool:
            nonlocal clock
            clock += seconds
            return self.requested

    def decide(work: Work) -> Outcome:
        moments.append(clock)
        raise Retry(4)

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    house.put(("HAM", 1))
    house.ring.close()
    with Sleeper() as stop, house.ring.reader(0) as reader:
        house.worker(stop, settled_by(decide), Rules(attempts=5)).run(reader)
    gaps = [after - before for before, after in pairwise(moments)]
    for gap, wanted in zip(gaps, [4, 8, 16, 32], strict=True):
        assert wanted <= gap <= wanted * 1.2


def test_a_hand_full_of_retries_blocks_nothing_for_good(house: House, tmp_path: object) -> None:
    tried: set[bytes] = set()

    def decide(work: Work) -> Outcome:
        if work.order_id not in tried:
            tried.add(work.order_id)
            raise Retry(0.01)
        return REJECTED

    keys = [house.put(("HAM", 1)) for _ in range(300)]
    house.work(settled_by(decide), Rules(batch=64))
    assert set(statuses(house)) == set(keys)


@pytest.mark.parametrize("answer", [[], [REJECTED, REJECTED], [Outcome("rejected")]])
def test_a_processor_with_a_wrong_answer_makes_the_order_dead(
    house: House, answer: list[Outcome]
) -> None:
    key = house.put(("HAM", 1))
    house.work(lambda *_: answer)
    assert statuses(house) == {key: ("dead", "processor_error")}


def test_a_reason_that_the_database_refuses_makes_the_order_dead(house: House) -> None:
    key = house.put(("HAM", 1))
    house.work(lambda *_: [Outcome.rejected("\ud800")])
    assert statuses(house) == {key: ("dead", "processor_error")}


def test_an_order_whose_fields_the_database_refuses_is_kept_as_bytes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise sqlite3.DataError("not this text")

    monkeypatch.setattr("processors.recording.Recorder._content", refuse)
    key = house.put(("HAM", 1))
    house.work()
    assert house.rows("SELECT status, customer, payload IS NOT NULL FROM orders") == [
        ("dead", None, 1)
    ]
    assert statuses(house) == {key: ("dead", "processor_error")}


def test_an_order_that_can_not_be_stored_at_all_stays_in_hand_and_others_go_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursed = house.put(("HAM", 1))
    other = house.put(("HAM", 1))
    inner = Recorder.record

    def record(self: object, transaction: Connection, settled: list[tuple[object, object]]) -> None:
        if any(job.item.key == cursed for job, _ in settled):  # type: ignore[attr-defined]
            raise sqlite3.IntegrityError("never")
        inner(self, transaction, settled)  # type: ignore[arg-type]

    monkeypatch.setattr("processors.recording.Recorder.record", record)
    with Stop() as stop, house.ring.reader(0) as reader:
        worker = house.worker(stop, settled_by(lambda _: REJECTED))
        worker._settle_items(reader, reader.take(64, 0))
        assert [item.key for item in reader.held()] == [cursed]
        assert len(worker._later) == 1
    assert list(statuses(house)) == [other]


# ---- what can't be read ---------------------------------------------------------------------


def test_an_unreadable_payload_is_dead_with_its_bytes_and_the_others_go_on(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    bad = house.put_bytes(b"\xc1 no msgpack")
    good = house.put(("HAM", 1000))
    house.work()
    assert statuses(house) == {bad: ("dead", "unreadable"), good: ("allocated", None)}
    assert house.rows("SELECT payload FROM orders WHERE status = 'dead'") == [(b"\xc1 no msgpack",)]
    assert house.audit().ok


def test_a_damaged_item_is_dead_under_its_key_with_its_bytes(house: House) -> None:
    house.stock(house.lot("a", "HAM", 10_000))
    bad = house.put(("HAM", 1000))
    good = house.put(("HAM", 1000))
    slot = house.ring.find(bad)
    assert slot is not None
    # The file is what is mapped: one bit of the payload flips in memory.
    at = house.ring.mapping.slots_at + 64 + len(slot.item.header) + 3
    byte = os.pread(house.ring.fd, 1, at)
    os.pwrite(house.ring.fd, bytes([byte[0] ^ 1]), at)
    house.work()
    assert statuses(house) == {bad: ("dead", "damaged"), good: ("allocated", None)}
    view = house.view(bad)
    assert "checksum" in (view.cause or "")
    ((payload,),) = house.rows("SELECT payload FROM orders WHERE status = 'dead'")
    sent = slot.item.header + slot.item.payload
    assert [a ^ b for a, b in zip(payload, sent, strict=True) if a != b] == [1]
    assert house.audit().ok


# ---- the database away ----------------------------------------------------------------------


def test_a_database_that_is_away_is_waited_for_and_nobody_is_dead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "BACKOFF_MIN_S", 0.0001)
    house.stock(house.lot("a", "HAM", 10_000))
    keys = [house.put(("HAM", 1000)) for _ in range(3)]
    house.store = awry = Awry(house.store.engine, house.store.kind)
    awry.away = 7
    house.work()
    assert awry.pauses == 7
    assert set(statuses(house).values()) == {("allocated", None)}
    assert set(statuses(house)) == set(keys)


def test_a_database_that_is_configured_wrongly_is_no_order_s_fault(house: House) -> None:
    class Wrong(Store):
        @contextmanager
        def writing(self) -> Iterator[Connection]:
            raise StoreError("no WAL")
            yield

    house.put(("HAM", 1))
    house.put(("HAM", 1))
    good, house.store = house.store, Wrong(house.store.engine, house.store.kind)
    with pytest.raises(StoreError):
        house.work()
    house.ring.reopen()
    house.store = good
    house.work()
    assert set(statuses(house).values()) == {("rejected", "unknown_sku")}


@on_sqlite
def test_a_locked_database_is_waited_for(house: House) -> None:
    class Waiting(Stop):
        paused = threading.Event()

        def wait(self, seconds: float) -> bool:
            self.paused.set()
            return super().wait(seconds)

    key = house.put(("HAM", 1))
    house.ring.close()
    locker = Store.open(house.url)
    house.store.close()
    house.store = Store.open(house.url, busy_timeout_s=0.01)
    with Waiting() as stop, house.ring.reader(0) as reader:
        thread = threading.Thread(target=house.worker(stop).run, args=(reader,))
        with locker.writing():
            thread.start()
            assert stop.paused.wait(10)
        thread.join()
    locker.close()
    assert statuses(house) == {key: ("rejected", "unknown_sku")}


def test_asked_to_stop_while_the_database_is_away_it_leaves_the_batch_in_hand(
    house: House,
) -> None:
    class Asked(Stop):
        def wait(self, seconds: float) -> bool:
            self.request()
            return True

    house.put(("HAM", 1))
    house.store = awry = Awry(house.store.engine, house.store.kind)
    awry.away = 99
    with Asked() as stop, house.ring.reader(0) as reader:
        house.worker(stop).run(reader)
        assert len(reader.held()) == 1
    awry.away = 0
    house.work()
    assert len(statuses(house)) == 1


def test_pauses_double_up_to_a_bound_and_are_spread() -> None:
    found = [pause for pause, _ in zip(pauses(), range(50), strict=False)]
    assert found[0] <= worker_module.BACKOFF_MIN_S
    assert all(pause <= worker_module.BACKOFF_MAX_S for pause in found)
    assert max(found) > worker_module.BACKOFF_MAX_S / 2
    assert len(set(found)) == len(found)

"""Finished orders are forgotten after their time, and nothing else is."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from processors import retention as retention_module
from processors.journal import journal_dir, make_journal_dir
from processors.known import forgotten_before
from processors.pipeline import fefo
from processors.requests import Request, earlier_answer, keep_answer
from processors.retention import (
    AGAIN_S,
    AWAY_S,
    BURST_S,
    DAY_US,
    MARGIN_US,
    SHARE,
    Retention,
    make_retention,
    oldest_us,
)
from processors.settings import Settings
from processors.spill import spill
from processors.stop import Stop
from processors.store import Store, StoreBroken, StoreUnavailable
from processors.upkeep import Upkeep
from processors.worker import BaconWorker, Rules
from tests.processors.kit import House, on_sqlite
from tests.processors.left import PAYLOAD, header_of, records, write
from tests.processors.retaining import (
    DAYS,
    balances,
    counts,
    later,
    pass_over,
    retention,
    settle,
    settle_another,
)


@pytest.fixture
def settled(house: House) -> House:
    return settle(house)


def test_what_is_finished_and_old_goes_with_its_events_and_the_balances_stay(
    settled: House,
) -> None:
    before = balances(settled)
    pass_over(retention(settled))
    assert settled.rows("SELECT id, status FROM orders") == [(b"D" * 16, "dead")]
    assert settled.rows("SELECT order_id, type FROM outbox") == [(b"D" * 16, "order.dead")]
    assert counts(settled)["movements"] == 0
    assert settled.rows("SELECT lot_id, opening FROM lots ORDER BY lot_id") == before
    assert settled.rows("SELECT count(*) FROM skus WHERE folded = seq") == [(3,)]
    assert balances(settled) == before
    report = settled.audit()
    assert report.ok, list(report.lines())
    assert report.counts["movements in opening balances"] == 11


def test_work_goes_on_from_the_opening_balances(settled: House) -> None:
    pass_over(retention(settled))
    key = settled.put(("HAM", 4000))
    settled.work()
    assert settled.given(key) == [("HAM", "second", "4")]
    settle_another(settled)
    assert settled.audit().ok
    pass_over(retention(settled, now=later(settled, 2 * DAYS)))
    assert settled.audit().ok
    # The dead letter, and the order of the newest event.
    assert counts(settled) == {"orders": 2, "outbox": 2, "movements": 0}


def test_what_is_younger_than_its_time_stays(settled: House) -> None:
    before = counts(settled)
    pass_over(retention(settled, now=later(settled, DAYS - 1)))
    assert counts(settled) == before
    assert settled.rows("SELECT value FROM meta WHERE name = 'forgotten_before'") == [(bytes(8),)]


def test_a_limit_between_orders_parts_them(settled: House) -> None:
    (committed_us,) = settled.rows(
        "SELECT committed_us FROM orders WHERE id = x'" + "45" * 16 + "'"
    )
    pass_over(retention(settled, now=committed_us[0] + DAYS * DAY_US))
    assert {row[0] for row in settled.rows("SELECT id FROM orders")} == {b"D" * 16, b"E" * 16}
    assert settled.audit().ok
    with settled.store.reading() as connection:
        assert forgotten_before(connection) == committed_us[0]


def test_a_dead_letter_stays_until_it_was_discarded(settled: House) -> None:
    settled.tamper(
        "UPDATE orders SET status = 'dead', reason = 'discarded', round = 1 WHERE status = 'dead'"
    )
    newest = settle_another(settled)
    pass_over(retention(settled))
    assert settled.rows("SELECT id FROM orders") == [(newest,)]
    assert counts(settled)["outbox"] == 1


def test_an_order_that_was_replayed_goes_with_all_of_its_events(settled: House) -> None:
    settled.tamper(
        "UPDATE orders SET round = 2 WHERE id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)",
        "UPDATE outbox SET type = 'order.dead' WHERE order_id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)",
        "INSERT INTO outbox (order_id, round, type, created_us)"
        " SELECT id, 1, 'order.dead', committed_us FROM orders WHERE round = 2",
        "INSERT INTO outbox (order_id, round, type, created_us)"
        " SELECT id, 2, 'order.allocated', committed_us FROM orders WHERE round = 2",
    )
    newest = settle_another(settled)
    pass_over(retention(settled))
    assert settled.rows("SELECT order_id FROM outbox ORDER BY id") == [(b"D" * 16,), (newest,)]


def test_the_newest_event_stays_so_that_no_number_is_given_again(settled: House) -> None:
    (last,) = settled.rows("SELECT max(id) FROM outbox")
    settled.tamper(
        "DELETE FROM orders WHERE status = 'dead'", f"DELETE FROM outbox WHERE id = {last[0]}"
    )
    pass_over(retention(settled))
    assert settled.rows("SELECT order_id FROM outbox") == [(b"E" * 16,)]
    assert settled.audit().ok
    settled.put(("HAM", 1))
    settled.work()
    assert settled.rows("SELECT max(id) FROM outbox") >= [last]
    pass_over(retention(settled, now=later(settled, 2 * DAYS)))
    assert settled.rows("SELECT count(*) FROM orders") == [(1,)]


def test_the_order_of_the_newest_event_stays_also_if_that_was_a_replay(settled: House) -> None:
    settled.tamper(
        "UPDATE orders SET round = 1 WHERE id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)",
        "UPDATE outbox SET type = 'order.dead' WHERE order_id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)",
        "INSERT INTO outbox (order_id, round, type, created_us)"
        " SELECT id, 1, 'order.allocated', committed_us FROM orders WHERE round = 1",
    )
    (last,) = settled.rows("SELECT max(id) FROM outbox")
    pass_over(retention(settled))
    assert settled.rows("SELECT max(id) FROM outbox") == [last]
    assert settled.audit().ok


def test_an_order_whose_movement_is_younger_than_the_limit_stays(settled: House) -> None:
    late = later(settled)
    bacon = "sku_id = (SELECT id FROM skus WHERE sku = 'BACON')"
    settled.tamper(f"UPDATE movements SET at_us = {late} WHERE {bacon} AND kind = 'allocate'")
    pass_over(retention(settled))
    left = {row[0] for row in settled.rows("SELECT id FROM orders")}
    assert left == {b"A" * 16, b"D" * 16, b"E" * 16}


def test_an_id_that_was_forgotten_is_a_new_order_and_holds_only_its_own(settled: House) -> None:
    one = retention(settled)
    while settled.rows("SELECT 1 FROM orders WHERE status = 'allocated'"):
        one.step()
    assert counts(settled)["movements"] == 11
    assert settled.audit().ok
    settled.put(("HAM", 20), key=b"A" * 16)
    settled.work()
    shift = later(settled) - settled.now  # it came after, by the calendar
    settled.tamper(
        f"UPDATE orders SET accepted_us = accepted_us + {shift} WHERE id = x'{'41' * 16}'",
        "UPDATE movements SET at_us = (SELECT accepted_us FROM orders WHERE id = x'"
        + "41" * 16
        + "') WHERE (sku_id, seq) IN (SELECT id, seq FROM skus WHERE sku = 'HAM')",
        f"UPDATE lots SET expires_us = expires_us + {2 * shift}",
    )
    assert settled.given(b"A" * 16) == [("HAM", "second", "0.02")]
    pass_over(one)
    assert counts(settled)["movements"] == 1
    assert settled.given(b"A" * 16) == [("HAM", "second", "0.02")]
    assert settled.audit().ok, list(settled.audit().lines())


@on_sqlite
def test_every_statement_of_a_pass_finds_its_rows_by_an_index(settled: House) -> None:
    statements: list[str] = []
    store = Store.open(settled.url, connections_max=1)
    event.listen(store.engine, "connect", lambda one, _: one.set_trace_callback(statements.append))
    now = later(settled)
    with closing(store):
        pass_over(Retention(store, DAYS, lambda: now, now=lambda: now))
    plans = [
        step[3]
        for text in statements
        if text.startswith(("SELECT", "UPDATE", "DELETE"))
        for step in settled.rows(f"EXPLAIN QUERY PLAN {text}")
    ]
    scans = [plan for plan in plans if plan.startswith("SCAN") and plan != "SCAN anon_1"]
    assert len(plans) > 10
    assert not scans


# ---- never in the way of recovery ------------------------------------------------------------


@pytest.fixture
def settings(house: House) -> Settings:
    found = Settings(data_dir=str(house.folder), database=house.url)
    make_journal_dir(found)
    (house.folder / "ring.path").write_text(f"{house.ring.path}\n")
    return found


def test_what_the_journal_may_still_bring_is_not_forgotten(
    settings: Settings, house: House
) -> None:
    made_ns = (house.now - 5 * DAY_US) * 1000
    path = write(settings, house, records(1), replace(header_of(house), made_ns=made_ns))
    assert oldest_us(settings) == made_ns // 1000
    path.rename(path.with_suffix(".sealed"))
    assert oldest_us(settings) == made_ns // 1000


def test_what_waits_or_lies_in_a_hand_is_not_forgotten(settings: Settings, house: House) -> None:
    assert oldest_us(settings) > house.now
    for accepted_us in (house.now - 3 * DAY_US, house.now - 7 * DAY_US, house.now):
        house.writer.put(PAYLOAD, os.urandom(16), accepted_ns=accepted_us * 1000)
    assert oldest_us(settings) == house.now - 7 * DAY_US
    with house.ring.reader(0) as reader:
        reader.take(2, 0)
        assert oldest_us(settings) == house.now - 7 * DAY_US


def test_what_a_stop_wrote_says_when_its_oldest_was_accepted(
    settings: Settings, house: House
) -> None:
    house.writer.put(PAYLOAD, os.urandom(16), accepted_ns=(house.now - DAY_US) * 1000)
    spill(settings, [house.ring], bytes(16))
    house.work()
    assert oldest_us(settings) == house.now - DAY_US


def test_a_segment_that_is_gone_when_it_is_looked_at_puts_it_off(
    settings: Settings, settled: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = journal_dir(settings) / "0000000000000001.journal"
    monkeypatch.setattr(retention_module, "segment_paths", lambda _: [gone])
    one = make_retention(settings, settled.store)
    assert one is not None
    with pytest.raises(FileNotFoundError):
        one.step()


def test_a_day_is_left_between_what_is_needed_and_what_goes(settled: House) -> None:
    before = counts(settled)
    (newest,) = settled.rows("SELECT max(committed_us) FROM orders")
    pass_over(retention(settled, oldest=newest[0] + MARGIN_US - 1000))
    assert counts(settled)["orders"] == 2
    pass_over(retention(settled, oldest=newest[0] + MARGIN_US + 1))
    assert counts(settled)["orders"] == 1 < before["orders"]


def test_kept_for_ever_nothing_is_looked_at(settings: Settings, house: House) -> None:
    for_ever = Settings(data_dir=settings.data_dir, database=house.url, retain_days=0)
    assert make_retention(for_ever, house.store) is None


# ---- when it goes wrong ----------------------------------------------------------------------


class Interrupting(Store):
    """One connection, whose statements are interrupted when the countdown has come to its end: a
    unit is a few instructions of SQLite's machine."""

    countdown: int | None = None

    def arm(self, countdown: int | None) -> None:
        self.countdown = countdown

    def handler(self) -> int:
        if self.countdown is None:
            return 0
        self.countdown -= 1
        return int(self.countdown < 0)


@pytest.fixture
def interrupting(settled: House) -> Iterator[Interrupting]:
    store = Interrupting.open(settled.url, connections_max=1)

    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.set_progress_handler(store.handler, 25)

    event.listen(store.engine, "connect", connected)
    yield store
    store.close()


@on_sqlite
def test_interrupted_anywhere_it_is_as_if_that_step_had_not_begun(
    settled: House, interrupting: Interrupting
) -> None:
    before = balances(settled)
    now = later(settled)
    one = Retention(interrupting, DAYS, lambda: now, now=lambda: now)
    one.forgetting.rows = one.folding.rows = 8
    countdown, interruptions, more = 0, 0, True
    while more:
        interrupting.arm(countdown)
        try:
            more = one.step()
        except StoreUnavailable:
            interruptions, countdown = interruptions + 1, countdown + 1
            report = settled.audit()
            assert report.ok, list(report.lines())
        else:
            countdown = 0
        interrupting.arm(None)
    assert interruptions > 20
    assert balances(settled) == before
    assert counts(settled) == {"orders": 1, "outbox": 1, "movements": 0}
    assert settled.audit().ok


def test_killed_between_any_two_steps_the_next_goes_on(settled: House) -> None:
    before, steps = balances(settled), 0
    while counts(settled) != {"orders": 1, "outbox": 1, "movements": 0}:
        steps += 1
        one = retention(settled)  # what a new process knows
        for _ in range(steps):
            one.step()
        assert settled.audit().ok
        assert balances(settled) == before
    assert steps > 4


def test_a_finished_order_that_changed_meanwhile_is_left_for_the_next_time(
    settled: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_another(settled)
    one = retention(settled)
    one.step()
    settle_another(settled)
    before = counts(settled)
    with monkeypatch.context() as patch:
        patch.setattr(one, "_can_go", lambda *_: [b"A" * 16, b"D" * 16])
        with pytest.raises(StoreUnavailable, match="has changed"):
            one.step()
    assert counts(settled) == before
    pass_over(one)
    assert counts(settled)["orders"] == 2


# ---- its share of a worker's time --------------------------------------------------------------


class Clock:
    """`time`, as far as the module needs it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Slow(Retention):
    """Steps that take so long, and end with what is given."""

    def __init__(self, house: House, clock: Clock, step_s: float, *ends: object) -> None:
        super().__init__(house.store, DAYS, lambda: 0)
        self.clock, self.step_s, self.ends, self.steps = clock, step_s, list(ends), 0

    def step(self) -> bool:
        self.steps += 1
        self.clock.now += self.step_s
        end = self.ends.pop(0) if self.ends else True
        if isinstance(end, Exception):
            raise end
        return bool(end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retention_module, "time", clock)
    return clock


@pytest.mark.parametrize("look_every_s", [0.001, 0.5])
def test_it_takes_its_share_of_the_time_and_no_more(
    house: House, clock: Clock, look_every_s: float
) -> None:
    slow, begun, longest = Slow(house, clock, 0.004), clock.now, 0.0
    while clock.now - begun < 100:
        clock.now += look_every_s
        before = clock.now
        slow.look()
        longest = max(longest, clock.now - before)
    share = slow.steps * slow.step_s / (clock.now - begun)
    assert 0.045 < share < SHARE * 1.02
    assert longest <= BURST_S + slow.step_s


def test_a_pass_that_is_over_rests_for_an_hour(house: House, clock: Clock) -> None:
    slow = Slow(house, clock, 0.001, True, False)
    for _ in range(int(AGAIN_S) + 5):
        clock.now += 1
        slow.look()
        if clock.now < 1000 + AGAIN_S:
            assert slow.steps == 2
    assert slow.steps > 2


@pytest.mark.parametrize(
    "error", [StoreUnavailable("away"), FileNotFoundError(errno.ENOENT, "gone")]
)
def test_what_passes_is_tried_again_after_a_while(
    house: House, clock: Clock, error: Exception
) -> None:
    slow = Slow(house, clock, 0.001, error)
    clock.now += 1
    slow.look()
    clock.now += AWAY_S / 2
    slow.look()
    assert slow.steps == 1
    clock.now += AWAY_S
    slow.look()
    assert slow.steps > 1


def test_an_error_of_the_disk_is_final(house: House, clock: Clock) -> None:
    slow = Slow(house, clock, 0.001, OSError(errno.EIO, os.strerror(errno.EIO)))
    clock.now += 1
    with pytest.raises(StoreBroken, match="Input/output error"):
        slow.look()


def test_its_part_of_a_checkpoint_is_charged_to_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = retention(house)
    charged: list[float] = []
    monkeypatch.setattr(one, "charge", charged.append)
    upkeep = Upkeep(house.store, None, one)
    upkeep.committed(1000)
    assert not charged
    one.removed = 10
    upkeep.committed(1000)
    upkeep.committed(1000)
    assert len(charged) == 1


@on_sqlite
def test_a_worker_forgets_beside_its_work(settled: House, tmp_path: Path) -> None:
    one = retention(settled)
    one.charge(-1.0)  # a second saved up
    settled.put(("HAM", 10), key=b"F" * 16)
    settled.ring.close()
    with Stop() as stop, settled.ring.reader(0) as reader:
        upkeep = Upkeep(settled.store, None, one)
        worker = BaconWorker(settled.ring, settled.store, fefo(), Rules(), stop, upkeep=upkeep)
        for _ in range(20):
            upkeep.look()
        worker.run(reader)
    settled.ring.reopen()
    assert settled.audit().ok
    with closing(sqlite3.connect(tmp_path / "rasher.db")) as database:
        ids = {row[0] for row in database.execute("SELECT id FROM orders")}
    assert b"F" * 16 in ids
    assert b"A" * 16 not in ids


def test_what_requests_with_a_key_were_answered_is_forgotten_after_its_time(
    settled: House,
) -> None:
    old, young = (Request.of(None, name, "asked") for name in (b"old", b"young"))
    with settled.store.writing() as connection:
        keep_answer(connection, old, b"1")
    settled.tamper("UPDATE requests SET created_us = 1")
    with settled.store.writing() as connection:
        keep_answer(connection, young, b"2")
    day = settled.now + int(DAYS * DAY_US) - DAY_US
    pass_over(retention(settled, now=day, oldest=day))
    with settled.store.reading() as connection:
        assert earlier_answer(connection, old) is None
        assert earlier_answer(connection, young) == b"2"

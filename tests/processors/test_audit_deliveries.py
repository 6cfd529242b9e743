"""The audit of deliveries: each rule against rows in which just that was tampered with."""

from __future__ import annotations

import pytest

from processors import deliveries, expiring
from processors.audit_report import RULES
from processors.deliveries import Ended, Told
from processors.delivery_list import resend
from processors.events import Event, Place
from processors.expiring import Expirer
from processors.low_stock import set_thresholds
from processors.outbox import events_behind
from processors.retention import Retention
from processors.webhooks import Endpoint, event_id
from tests.processors.kit import HOUR_US, House
from tests.processors.retaining import DAYS, later, settle, settle_another

SHOP = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))
BANK = Endpoint("bank", "http://127.0.0.1:2/", (b"s" * 24,))
GONE = Endpoint("gone", "http://127.0.0.1:3/", (b"s" * 24,))
OF_DELIVERIES = {"told", "place", "turn", "delivery"}


def delivered(event: Event, row: int | None = None) -> Ended:
    return Ended(event, "delivered", row, attempts=1, first_us=5, status=200)


def failing(event: Event, attempts: int = 1) -> Ended:
    error = "answered 500"
    return Ended(event, "waiting", None, attempts, 5, next_us=2**60, status=500, error=error)


def events(house: House) -> list[Event]:
    with house.store.reading() as connection:
        return events_behind(connection, Place(0, 0), Place(1000, 1000), 100)


def record(house: House, name: str, ended: list[Ended], place: int) -> None:
    house.store.commit(deliveries.record, [Told(name, ended, Place(place, 0))])


@pytest.fixture
def told(house: House) -> House:
    """The shop: A delivered (row 1), B fails and waits (2), its second outcome waits behind that
    (3), C failed (4), E waits and was not tried yet (5), D it did not want. The bank was told of A
    (6) and is behind. A third one, for which A waited (7), is gone from the settings."""
    house.store.commit(deliveries.enlist, [SHOP, BANK, GONE], Place(0, 0))
    settle(house)
    a, b, c, e, _ = events(house)
    house.tamper(
        "UPDATE orders SET round = 1 WHERE id = CAST('BBBBBBBBBBBBBBBB' AS BLOB)",
        "UPDATE outbox SET type = 'order.dead' WHERE id = 2",
        "INSERT INTO outbox (order_id, round, type, created_us)"
        " SELECT order_id, 1, 'order.allocated', created_us FROM outbox WHERE id = 2",
    )
    b, second = [one for one in events(house) if one.subject == b.subject]
    untried = Ended(e, "waiting", next_us=5)
    failed = Ended(c, "failed", attempts=9, first_us=5, error="answered 500", status=500)
    waits = Ended(second, "waiting")
    record(house, "shop", [delivered(a), failing(b), waits, failed, untried], second.place)
    record(house, "bank", [delivered(a)], a.place)
    record(house, "gone", [failing(a)], a.place)
    house.store.commit(deliveries.enlist, [SHOP, BANK], Place(0, 0))
    return house


def test_what_was_told_passes_with_its_counts(told: House) -> None:
    report = told.audit()
    assert report.ok, list(report.lines())
    assert report.counts["endpoints"] == 2
    assert report.counts["deliveries"] == 7
    states = ("delivered", "waiting", "failed")
    assert [report.counts[f"deliveries {state}"] for state in states] == [2, 3, 2]


def test_whatever_is_sent_once_more_passes(told: House) -> None:
    for row in (3, 1, 4, 2, 6, 7):
        told.store.commit(resend, row)
        report = told.audit()
        assert report.ok, list(report.lines())
    assert report.counts["deliveries waiting"] == 6  # one endpoint is gone


OF_2 = "WHERE id = 2"


@pytest.mark.parametrize(
    ("rule", "message", "statements"),
    [
        ("told", "order.dead that is not there", f"UPDATE deliveries SET created_us = 7 {OF_2}"),
        (
            "told",
            "delivery 1 to shop is of an event order.rejected that is not there",
            "UPDATE deliveries SET type = 'order.rejected' WHERE id = 1",
        ),
        ("told", "order.allocated that", "UPDATE deliveries SET number = 9,"
         f" event_id = x'{event_id(b'A' * 16, 9).hex()}' WHERE id = 6"),
        ("place", "delivery 4 to shop is of event 3", "UPDATE endpoints SET event = 2"),
        ("place", "up to event 99, the last one is 6", "UPDATE endpoints SET event = 99"),
        ("turn", "delivery 2 to shop is the first that waits, without a time",
         f"UPDATE deliveries SET next_us = NULL {OF_2}"),
        ("turn", "delivery 3 to shop is tried out of turn",
         "UPDATE deliveries SET next_us = 5 WHERE id = 3"),
        ("turn", "is of outcome 0 and follows one of 1", f"UPDATE deliveries SET id = 50 {OF_2};"
         "UPDATE deliveries SET next_us = 5 WHERE id = 3;"
         "UPDATE deliveries SET next_us = NULL WHERE id = 50"),
        ("turn", "delivery 2 to shop waits for an endpoint that is gone",
         "DELETE FROM endpoints WHERE name = 'shop'"),
        ("delivery", "is delivered and has not ended",
         "UPDATE deliveries SET ended_us = NULL WHERE id = 1"),
        ("delivery", "is waiting and has ended", f"UPDATE deliveries SET ended_us = 9 {OF_2}"),
        ("delivery", "is failed and to be tried again",
         "UPDATE deliveries SET next_us = 9 WHERE id = 4"),
        ("delivery", "has 0 attempts", f"UPDATE deliveries SET attempts = 0 {OF_2}"),
        ("delivery", "has 0 attempts", "UPDATE deliveries SET first_us = 5 WHERE id = 3"),
        ("delivery", "has -1 attempts", "UPDATE deliveries SET attempts = -1 WHERE id = 3"),
        ("delivery", "after 0 attempts", "UPDATE deliveries SET attempts = 0, first_us = NULL,"
         " status = NULL WHERE id = 1"),
        ("delivery", "status 302", "UPDATE deliveries SET status = 302 WHERE id = 1"),
        ("delivery", "error no", "UPDATE deliveries SET error = 'no' WHERE id = 1"),
        ("delivery", "delivered after 1 attempts",
         "UPDATE deliveries SET first_us = NULL WHERE id = 1"),
        ("delivery", "delivery 4 to shop has failed without a reason",
         "UPDATE deliveries SET error = NULL WHERE id = 4"),
        ("delivery", "of the unknown type order.lost",
         "UPDATE deliveries SET type = 'order.lost' WHERE id = 1"),
        ("delivery", "an id that is not its event's",
         "UPDATE deliveries SET event_id = x'00000000000000000000000000000000' WHERE id = 1"),
    ],
)  # fmt: skip
def test_what_was_tampered_with_breaks_that_rule_alone(
    told: House, rule: str, message: str, statements: str
) -> None:
    told.tamper(*statements.split(";"))
    report = told.audit()
    assert set(report.by_rule) == {rule}, list(report.lines())
    assert any(message in one.detail for one in report.violations), list(report.lines())


def test_each_of_these_rules_is_one() -> None:
    assert set(RULES) >= OF_DELIVERIES


def test_of_an_order_that_is_forgotten_what_was_told_may_be_left(told: House) -> None:
    """The shop is disabled: it keeps nothing, and its rows that wait stay."""
    settle_another(told)
    told.store.commit(deliveries.record, [Told("shop", [], None, "it answered 410")])
    record(told, "bank", [], events(told)[-1].place)
    now = later(told)
    one = Retention(told.store, DAYS, lambda: now, now=lambda: now, told_to=["shop", "bank"])
    while one.step():
        report = told.audit()
        assert report.ok, list(report.lines())
    assert report.counts["deliveries"] == report.counts["deliveries of forgotten orders"] == 3
    told.store.commit(resend, 2)
    assert told.audit().ok


def test_what_an_order_left_that_had_the_id_before_passes(told: House) -> None:
    """Of A the event, and of B the second one, are those of a new order."""
    told.tamper(
        "UPDATE deliveries SET created_us = 5 WHERE id IN (1, 6)",
        "UPDATE deliveries SET created_us = 5, state = 'failed', ended_us = 9, error = 'no'"
        " WHERE id = 3",
        "UPDATE deliveries SET id = 50 WHERE id = 2",
    )
    assert set(told.audit().by_rule) == {"told", "turn"}
    told.tamper("UPDATE meta SET value = x'000000000000000a' WHERE name = 'forgotten_before'")
    report = told.audit()
    assert report.ok, list(report.lines())
    assert report.counts["deliveries of forgotten orders"] == 3


@pytest.fixture
def of_stock(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """A lot has expired, and with that movement its sku is low: the shop was told of the first (row
    1) and refused the second (2), which the desk has (3)."""
    set_thresholds(house.store, {"HAM": 5000})
    house.stock(house.lot("old", "HAM", 3000, hours=1), house.lot("new", "HAM", 4000, hours=9))
    monkeypatch.setattr(expiring, "now_us", lambda: house.now + 2 * HOUR_US)
    Expirer(house.store).step()
    expired, low = events(house)
    house.store.commit(deliveries.enlist, [SHOP, BANK], Place(0, 0))
    for name, ended in (("shop", [delivered(expired), failing(low)]), ("bank", [delivered(low)])):
        house.store.commit(deliveries.record, [Told(name, ended, Place(0, 2))])
    return house


def test_what_was_told_of_stock_passes(of_stock: House) -> None:
    report = of_stock.audit()
    assert report.ok, list(report.lines())
    assert report.counts["deliveries"] == 3


@pytest.mark.parametrize(
    ("rule", "message", "statement"),
    [
        ("told", "stock.low that is not there", "DELETE FROM stock_events WHERE type='stock.low'"),
        ("place", "is of event 2, its", "UPDATE endpoints SET stock_event = 1"),
        (
            "place",
            "up to event of stock 9, the last one is 2",
            "UPDATE endpoints SET stock_event=9",
        ),
        ("turn", "the first that waits", "UPDATE deliveries SET next_us = NULL WHERE id = 2"),
        (
            "delivery",
            "an id that is not its event's",
            "UPDATE deliveries SET event_id = x'00000000000000000000000000000000' WHERE id = 2",
        ),
    ],
)
def test_the_rules_hold_for_events_of_stock_too(
    of_stock: House, rule: str, message: str, statement: str
) -> None:
    of_stock.tamper(statement)
    found = [one.detail for one in of_stock.audit().violations if one.rule == rule]
    assert any(message in detail for detail in found), found

"""What endpoints were told, as the database has it, and what retention leaves of it."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from processors import deliveries
from processors.cancelling import Canceller
from processors.deliveries import Ended, Told
from processors.delivery_list import backlog, enable, resend
from processors.events import Event, Place
from processors.expiring import Expirer
from processors.outbox import events_behind
from processors.retention import Retention
from processors.tables import endpoints
from processors.webhooks import Endpoint
from tests.processors.kit import House, on_postgresql, until
from tests.processors.retaining import (
    DAYS,
    counts,
    later,
    pass_over,
    settle,
    settle_another,
)

SHOP = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))
BANK = Endpoint("bank", "http://127.0.0.1:2/", (b"s" * 24,))
BOTH = ("shop", "bank")


@pytest.fixture
def told(house: House) -> House:
    """All was settled since both were there."""
    house.store.commit(deliveries.enlist, [SHOP, BANK], Place(0, 0))
    return settle(house)


def events(house: House) -> list[Event]:
    with house.store.reading() as connection:
        return events_behind(connection, Place(0, 0), Place(1000, 1000), 100)


def record(house: House, endpoint: Endpoint, ended: list[Ended], place: int | None = None) -> None:
    up_to = None if place is None else Place(place, 0)
    house.store.commit(deliveries.record, [Told(endpoint.name, ended, up_to)])


def forget(house: House, *names: str) -> None:
    now = later(house)
    pass_over(Retention(house.store, DAYS, lambda: now, now=lambda: now, told_to=names))


def test_what_an_endpoint_was_not_told_yet_stays_with_its_order(told: House) -> None:
    before, last = counts(told), events(told)[-1].place
    record(told, SHOP, [], last)
    forget(told, "shop", "bank")  # the other one is at the beginning
    assert counts(told)["orders"] == before["orders"]
    record(told, BANK, [], last)
    forget(told, "shop", "bank")
    assert counts(told)["orders"] == 1  # the dead letter


def test_an_order_of_which_a_later_event_was_not_told_yet_stays(told: House) -> None:
    last = events(told)[-1].place
    assert Canceller(1).cancel(told.store, b"A" * 16, None).verdict == "cancelled"
    settle_another(told)
    record(told, SHOP, [], last)
    forget(told, "shop")
    assert told.rows("SELECT count(*) FROM outbox WHERE type = 'order.cancelled'") == [(1,)]
    assert told.view(b"A" * 16).status == "cancelled"
    record(told, SHOP, [], last + 1)
    forget(told, "shop")
    assert told.rows("SELECT count(*) FROM outbox WHERE type = 'order.cancelled'") == [(0,)]
    assert told.audit().ok


def test_what_waits_for_its_next_attempt_stays_with_its_order(told: House) -> None:
    first, *others = events(told)
    ended = [Ended(one, "delivered", attempts=1) for one in others]
    record(told, SHOP, [Ended(first, "waiting", attempts=1, next_us=1), *ended], others[-1].place)
    forget(told, "shop")
    assert told.rows("SELECT id FROM orders ORDER BY id") == [(b"A" * 16,), (b"D" * 16,)]
    assert told.rows("SELECT event_id FROM deliveries") == [(first.id,)]
    with told.store.reading() as connection:
        (due,) = deliveries.due_of(connection, "shop", 1, 10)
    record(told, SHOP, [Ended(first, "delivered", due.row, 2)])
    forget(told, "shop")
    assert told.rows("SELECT id FROM orders") == [(b"D" * 16,)]
    assert told.rows("SELECT * FROM deliveries") == []


def test_an_endpoint_that_is_disabled_keeps_nothing(told: House) -> None:
    first, *others = events(told)
    last = others[-1].place
    record(told, SHOP, [], last)
    refused = Ended(first, "waiting", attempts=1, next_us=1, error="answered 410")
    told.store.commit(deliveries.record, [Told("bank", [refused], None, "it answered 410")])
    forget(told, "shop", "bank")
    assert counts(told)["orders"] == 1
    assert told.rows("SELECT endpoint, state FROM deliveries") == [("bank", "waiting")]


def test_no_event_comes_in_front_of_what_was_told_when_all_else_is_forgotten(house: House) -> None:
    house.store.commit(deliveries.enlist, [SHOP], Place(0, 0))
    for _ in range(2):
        house.put(("HAM", 1))
        house.work()  # nobody knows that sku
    place = events(house)[-1].place
    record(house, SHOP, [], place)
    forget(house, "shop")
    assert len(events(house)) == 1  # the newest stays, so that no number comes again
    assert house.audit().ok
    house.put(("HAM", 1))
    house.work()
    assert [one.place > place for one in events(house)] == [False, True]
    forget(house, "shop")  # it is not told yet
    record(house, SHOP, [], events(house)[-1].place)
    forget(house, "shop")
    assert len(events(house)) == 1


def test_a_newest_event_of_an_old_order_keeps_that_one(house: House) -> None:
    keys = [house.put(("HAM", 1)) for _ in range(3)]
    house.work()
    house.tamper(f"UPDATE outbox SET id = 9 WHERE order_id = x'{keys[0].hex()}'")
    forget(house)
    assert house.rows("SELECT id FROM orders") == [(keys[0],)]


def test_who_waits_behind_another_is_due_when_that_one_has_ended(told: House) -> None:
    first, *_ = events(told)
    behind = Event(first.place, b"x" * 16, first.subject, 1, "order.cancelled", 1)
    other = Event(first.place, b"y" * 16, b"other", 1, "order.cancelled", 1)
    waits = [Ended(first, "waiting", next_us=5), Ended(behind, "waiting"), Ended(other, "waiting")]
    record(told, SHOP, waits, first.place)
    with told.store.reading() as connection:
        (due,) = deliveries.due_of(connection, "shop", 2**60, 10)
        assert due.event.id == first.id
        assert deliveries.next_due_us(connection, "shop") == 5
        subjects = [first.subject, b"other", b"none"]
        found = deliveries.subjects_waiting(connection, "shop", subjects)
        assert found == {first.subject, b"other"}
    record(told, SHOP, [Ended(first, "failed", due.row, 9)])
    with told.store.reading() as connection:
        assert [one.event.id for one in deliveries.due_of(connection, "shop", 2**60, 10)] == [
            behind.id
        ]


@pytest.fixture
def story(told: House) -> list[Event]:
    """Of one order: delivered, failed, waits for its next attempt, waits behind that (rows 1-4)."""
    first, *_ = events(told)
    others = [
        Event(first.place, bytes([n]) * 16, first.subject, n, "order.dead", 1) for n in (1, 2, 3)
    ]
    record(
        told,
        SHOP,
        [
            Ended(first, "delivered", attempts=1),
            Ended(others[0], "failed", attempts=9, error="no"),
            Ended(others[1], "waiting", attempts=1, next_us=2**60),
            Ended(others[2], "waiting"),
        ],
        first.place,
    )
    return [first, *others]


def turns(house: House) -> list[tuple[int, bool]]:
    """The rows that wait, and whether they have a time."""
    rows = house.rows("SELECT id, next_us FROM deliveries WHERE state = 'waiting' ORDER BY id")
    return [(row, next_us is not None) for row, next_us in rows]


def test_what_is_sent_once_more_keeps_the_order_of_its_order(
    told: House, story: list[Event]
) -> None:
    again = told.store.commit(resend, 2)[1]
    assert again is not None
    assert turns(told) == [(2, True), (3, False), (4, False)]
    told.store.commit(resend, 4)  # it goes on waiting
    again = told.store.commit(resend, 1)[1]
    assert again is not None
    assert again.next_attempt_at is not None
    assert turns(told) == [(1, True), (2, False), (3, False), (4, False)]
    for row, event in enumerate(story, 1):
        record(told, SHOP, [Ended(event, "delivered", row, 1)])
        assert turns(told) == [(one, one == row + 1) for one in range(row + 1, 5)]
    again = told.store.commit(resend, 3)[1]
    assert turns(told) == [(3, True)]
    again = told.store.commit(resend, 4)[1]
    assert again is not None
    assert (again.state, again.next_attempt_at) == ("waiting", None)
    assert turns(told) == [(3, True), (4, False)]


def test_what_fails_while_an_earlier_one_is_sent_once_more_waits_behind_that(
    told: House, story: list[Event]
) -> None:
    told.store.commit(resend, 1)
    record(told, SHOP, [Ended(story[2], "waiting", 3, 2, next_us=5)])  # it was under way
    assert turns(told) == [(1, True), (3, False), (4, False)]
    new = Event(9, b"n" * 16, story[0].subject, 9, "order.cancelled", 1)
    record(told, SHOP, [Ended(new, "waiting", attempts=1, next_us=5)])
    assert turns(told) == [(1, True), (3, False), (4, False), (5, False)]


def locked_out(house: House) -> int:
    """How many wait for a lock."""
    return len(house.rows("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@on_postgresql
def test_two_who_make_rows_of_one_order_wait_see_each_other(
    told: House, story: list[Event]
) -> None:
    def fail() -> None:
        record(told, SHOP, [Ended(story[2], "waiting", 3, 2, next_us=5)])

    def again() -> None:
        told.store.commit(resend, 1)

    for both in ((fail, again), (again, fail)):
        threads = [threading.Thread(target=act) for act in both]
        with told.store.writing() as first:
            first.execute(sa.select(endpoints).with_for_update())
            for count, thread in enumerate(threads, 1):
                thread.start()
                until(lambda count=count: locked_out(told) == count, "it waits")  # type: ignore[misc]
        for thread in threads:
            thread.join()
        assert turns(told) == [(1, True), (3, False), (4, False)]


@on_postgresql
def test_what_is_sent_once_more_while_it_is_forgotten_stays(told: House) -> None:
    first, *others = events(told)
    record(told, SHOP, [Ended(first, "delivered", attempts=1)], others[-1].place)
    work = deliveries.forget_deliveries, 0, later(told), 100
    forgetting = threading.Thread(target=told.store.commit, args=work)
    with told.store.writing() as connection:
        resend(connection, 1)
        forgetting.start()
        until(lambda: locked_out(told) == 1, "it waits")
    forgetting.join()
    assert turns(told) == [(1, True)]


def test_an_order_shows_when_the_last_endpoint_was_told(told: House) -> None:
    first, *_ = events(told)
    assert told.view(b"A" * 16).notified_us is None
    record(told, SHOP, [Ended(first, "delivered", attempts=1)], first.place)
    at_us = told.view(b"A" * 16).notified_us
    assert at_us is not None
    record(told, BANK, [Ended(first, "waiting", attempts=1, next_us=1)], first.place)
    assert told.view(b"A" * 16).notified_us is None
    with told.store.reading() as connection:
        (due,) = deliveries.due_of(connection, "bank", 1, 1)
    record(told, BANK, [Ended(first, "delivered", due.row, 2)])
    assert (told.view(b"A" * 16).notified_us or 0) >= at_us


def test_the_backlog_is_what_enabled_endpoints_are_still_to_be_told(told: House) -> None:
    first, *others = events(told)
    assert backlog(told.store, BOTH).events == 2 * (1 + len(others))
    assert backlog(told.store, BOTH).oldest_s > 0
    assert backlog(told.store, ["bank"]).events == 1 + len(others)
    assert backlog(told.store, []) == (0, 0.0)  # as the settings have it now
    waits = [Ended(first, "waiting", attempts=1, next_us=1)]
    record(told, SHOP, waits, others[-1].place)
    assert backlog(told.store, BOTH).events == 1 + 1 + len(others)
    told.store.commit(deliveries.record, [Told("bank", [], None, "it answered 410")])
    assert backlog(told.store, BOTH).events == 1
    with told.store.reading() as connection:
        (due,) = deliveries.due_of(connection, "shop", 1, 1)
    record(told, SHOP, [Ended(first, "delivered", due.row, 2)])
    assert backlog(told.store, BOTH) == (0, 0.0)


def test_an_event_of_stock_is_forgotten_when_it_is_old_and_everybody_was_told(house: House) -> None:
    house.store.commit(deliveries.enlist, [SHOP], Place(0, 0))
    house.stock(*(house.lot(f"L{i}", "HAM", 1000, hours=-1) for i in range(4)))
    Expirer(house.store).step()
    first, second, third, _ = events(house)

    def left() -> list[int]:
        return [row[0] for row in house.rows("SELECT id FROM stock_events ORDER BY id")]

    forget(house, "shop")
    assert left() == [1, 2, 3, 4]
    ended = [Ended(first, "delivered", attempts=1), Ended(second, "waiting", next_us=2**52)]
    house.store.commit(deliveries.record, [Told("shop", ended, Place(0, 2))])
    forget(house, "shop")
    assert left() == [2, 3, 4]  # one waits, two are behind
    assert third.place == 3
    forget(house)  # nobody is to be told any more, and the newest stays
    assert left() == [2, 4]
    assert house.audit().ok


@pytest.mark.parametrize("how", ["enabled", "url"])
def test_what_waits_for_an_endpoint_has_its_time_anew_when_that_is_enabled(
    told: House, story: list[Event], how: str
) -> None:
    told.tamper("UPDATE deliveries SET first_us = 5")
    if how == "enabled":
        assert told.store.commit(enable, "shop")
    else:
        moved = Endpoint("shop", "http://127.0.0.1:3/", SHOP.secrets)
        told.store.commit(deliveries.enlist, [moved, BANK], Place(0, 0))
    rows = told.rows("SELECT first_us FROM deliveries ORDER BY id")
    assert rows == [(5,), (5,), (None,), (None,)]


def test_a_changed_url_enables_and_a_new_endpoint_begins_at_the_end(told: House) -> None:
    told.store.commit(deliveries.record, [Told("shop", [], None, "it answered 410")])
    same = told.store.commit(deliveries.enlist, [SHOP, BANK], Place(0, 0))
    assert same["shop"].why == "it answered 410"
    moved = Endpoint("shop", "http://127.0.0.1:3/", SHOP.secrets)
    new = Endpoint("new", "http://127.0.0.1:4/", SHOP.secrets)
    found = told.store.commit(deliveries.enlist, [moved, new], Place(7, 0))
    assert found["shop"].disabled_us is None
    assert (found["shop"].place, found["new"].place) == (Place(0, 0), Place(7, 0))
    assert "bank" not in found

"""What endpoints were told, as the database has it, and what retention leaves of it."""

from __future__ import annotations

import pytest

from processors import deliveries
from processors.deliveries import Ended, Told
from processors.delivery_list import backlog
from processors.events import Event, Place
from processors.expiring import Expirer
from processors.outbox import events_behind
from processors.retention import Retention
from processors.webhooks import Endpoint
from tests.processors.kit import House
from tests.processors.retaining import DAYS, counts, later, pass_over, settle

SHOP = Endpoint("shop", "http://127.0.0.1:1/", (b"s" * 24,))
BANK = Endpoint("bank", "http://127.0.0.1:2/", (b"s" * 24,))


@pytest.fixture
def told(house: House) -> House:
    """All was settled since both were there."""
    house.store.commit(deliveries.enlist, [SHOP, BANK])
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
    last = events(told)[-1].place
    record(told, SHOP, [], last)
    told.store.commit(deliveries.record, [Told("bank", [], None, "it answered 410")])
    forget(told, "shop", "bank")
    assert counts(told)["orders"] == 1


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
    assert backlog(told.store).events == 2 * (1 + len(others))
    assert backlog(told.store).oldest_s > 0
    waits = [Ended(first, "waiting", attempts=1, next_us=1)]
    record(told, SHOP, waits, others[-1].place)
    assert backlog(told.store).events == 1 + 1 + len(others)
    told.store.commit(deliveries.record, [Told("bank", [], None, "it answered 410")])
    assert backlog(told.store).events == 1
    with told.store.reading() as connection:
        (due,) = deliveries.due_of(connection, "shop", 1, 1)
    record(told, SHOP, [Ended(first, "delivered", due.row, 2)])
    assert backlog(told.store) == (0, 0.0)


def test_an_event_of_stock_is_forgotten_when_it_is_old_and_everybody_was_told(house: House) -> None:
    house.store.commit(deliveries.enlist, [SHOP])
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
    assert left() == [2, 3, 4]  # one waits, the others are behind
    assert third.place == 3
    forget(house)  # nobody is to be told any more
    assert left() == [2, 4]  # and the newest, whose number would be given again
    assert house.audit().ok


def test_a_changed_url_enables_and_a_new_endpoint_begins_at_the_end(told: House) -> None:
    told.store.commit(deliveries.record, [Told("shop", [], None, "it answered 410")])
    same = told.store.commit(deliveries.enlist, [SHOP, BANK])
    assert same["shop"].why == "it answered 410"
    moved = Endpoint("shop", "http://127.0.0.1:3/", SHOP.secrets)
    new = Endpoint("new", "http://127.0.0.1:4/", SHOP.secrets)
    found = told.store.commit(deliveries.enlist, [moved, new])
    assert found["shop"].disabled_us is None
    assert (found["shop"].place, found["new"].place) == (
        Place(0, 0),
        Place(events(told)[-1].place, 0),
    )
    assert "bank" not in found

"""How far may be told while others write events."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.engine import Connection

from processors.events import Place
from processors.outbox import events_behind
from processors.places import End
from tests.processors.kit import House, on_postgresql, on_sqlite, undone

ADD = (
    "INSERT INTO outbox (order_id, round, type, created_us)"
    " VALUES ('\\x00', 0, 'order.rejected', 1)"
)


def add(connection: Connection) -> None:
    connection.exec_driver_sql(ADD)


@contextmanager
def writing(house: House) -> Iterator[None]:
    """Somebody who adds an event and commits later."""
    with house.store.writing() as connection:
        add(connection)
        yield


def settle(house: House) -> None:
    house.put(("HAM", 1))
    house.work()


def test_with_nobody_writing_it_is_the_last_event(house: House) -> None:
    end = End(house.store)
    assert (end.ask(), end.sure) == (Place(0, 0), True)
    settle(house)
    assert (end.ask(), end.sure) == (Place(1, 0), True)


@on_sqlite
def test_on_sqlite_who_writes_comes_later(house: House) -> None:
    end = End(house.store)
    with house.store.writing():
        assert (end.ask(), end.sure) == (Place(0, 0), True)


@on_postgresql
def test_nobody_can_commit_in_front_of_it(house: House) -> None:
    end = End(house.store)
    with writing(house):  # id 1
        settle(house)  # id 2
        assert (end.ask(), end.sure) == (None, False)
    assert (end.ask(), end.sure) == (Place(2, 0), True)


@on_postgresql
def test_nobody_can_commit_in_front_of_events_of_stock(house: House) -> None:
    house.stock(house.lot("a", "HAM", 1000, hours=-1), house.lot("b", "EGGS", 1000, hours=-1))
    late = (
        "INSERT INTO stock_events (sku_id, seq, type, quantity, created_us)"
        " SELECT min(id), 1, 'stock.low', 0, 1 FROM skus"
    )
    end = End(house.store)
    with house.store.writing() as connection:
        connection.exec_driver_sql(late)
        with house.store.writing() as other:
            other.exec_driver_sql(late)
        assert (end.ask(), end.sure) == (None, False)
    assert (end.ask(), end.sure) == (Place(0, 2), True)


@on_postgresql
def test_it_moves_on_though_there_is_always_somebody_writing(house: House) -> None:
    end = End(house.store)
    with writing(house):
        assert end.ask() is None
        second = writing(house)
        second.__enter__()
    assert end.ask() == Place(0, 0)  # as it was when the first was seen
    settle(house)
    with writing(house):
        second.__exit__(None, None, None)
        assert (end.ask(), end.sure) == (Place(1, 0), False)
        settle(house)
        assert end.ask() == Place(1, 0)
    assert (end.ask(), end.sure) == (Place(5, 0), True)


@on_postgresql
def test_who_gives_up_is_waited_for_no_longer(house: House) -> None:
    end = End(house.store)
    with undone(house.store) as connection:
        add(connection)
        settle(house)
        assert end.ask() is None
    assert end.ask() == Place(2, 0)


@on_postgresql
@pytest.mark.parametrize("mode", ["SHARE UPDATE EXCLUSIVE", "ACCESS SHARE", "SHARE"])
def test_who_does_not_write_is_not_waited_for(house: House, mode: str) -> None:
    """VACUUM and ANALYZE have the first of these, a backup the second."""
    with house.store.writing() as other:
        other.exec_driver_sql(f"LOCK TABLE outbox IN {mode} MODE")
        end = End(house.store)
        assert (end.ask(), end.sure) == (Place(0, 0), True)


@on_postgresql
def test_whoever_walks_up_to_it_misses_none(house: House) -> None:
    """Four write, each for a while and sometimes in vain."""
    done: set[int] = set()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            gives_up = rng.random() < 0.2
            with undone(house.store) if gives_up else house.store.writing() as connection:
                place = connection.exec_driver_sql(f"{ADD} RETURNING id").scalar_one()
                time.sleep(rng.random() * 0.005)
            if not gives_up:
                done.add(place)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    end, seen = End(house.store), list[int]()

    def walk() -> None:
        until_there = end.ask() or Place(0, 0)
        with house.store.reading() as connection:
            place = Place(seen[-1] if seen else 0, 0)
            seen.extend(one.place for one in events_behind(connection, place, until_there, 1000))

    while any(thread.is_alive() for thread in threads):
        walk()
    for thread in threads:
        thread.join()
    walk()
    assert set(seen) == done

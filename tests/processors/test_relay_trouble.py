"""The relay in trouble: partners that are out to harm it, and moments that are."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest

from processors import attempts, deliveries, recorder, relay
from processors.attempts import Sender
from processors.dead_letters import discard
from processors.deliveries import Ended, Told
from processors.events import Event, Place
from processors.instants import now_us
from processors.names import Loop
from processors.outbox import events_behind
from processors.relay import Relay
from processors.schema import Line, Order, encode_order, format_uuid
from processors.store import Store, StoreUnavailable
from processors.webhooks import make_endpoint, shown_id
from tests.partners import FAILS, OK, SECRET, Message, partner, until
from tests.processors.kit import House, on_postgresql, on_sqlite
from tests.processors.test_relay import (
    _quick,  # noqa: F401 - a fixture
    anyio_backend,  # noqa: F401 - a fixture
    endpoint,
    reject,
    relaying,
    told,
)

pytestmark = pytest.mark.anyio


def add_events(house: House, key: bytes, *rounds: int) -> None:
    """More outcomes of an order, as replays have them."""
    values = ", ".join(
        f"(x'{key.hex()}', {number}, 'order.dead', {house.now})" for number in rounds
    )
    house.tamper(
        f"UPDATE orders SET round = {max(rounds)} WHERE id = x'{key.hex()}'",
        f"INSERT INTO outbox (order_id, round, type, created_us) VALUES {values}",
    )


def events(house: House) -> list[Event]:
    with house.store.reading() as connection:
        return events_behind(connection, Place(0, 0), Place(1000, 1000), 1000)


def record(house: House, *ended: Ended, place: int) -> None:
    """As a relay that was stopped afterwards."""
    house.store.commit(deliveries.record, [Told("shop", ended, Place(place, 0))])


async def test_what_comes_when_an_earlier_one_is_due_goes_behind_those_that_wait(
    house: House,
) -> None:
    async with partner() as shop:
        house.store.commit(deliveries.enlist, [endpoint(shop)], Place(0, 0))
        (key,) = reject(house)
        add_events(house, key, 1)
        first, second = events(house)
        waits = Ended(first, "waiting", attempts=1, next_us=now_us()), Ended(second, "waiting")
        record(house, *waits, place=second.place)
        add_events(house, key, 2, 3)
        async with relaying(house, endpoint(shop)):
            await until(lambda: len(shop.heard) == 4)
    assert shop.ids == [deliveries_id(one) for one in events(house)]


def deliveries_id(event: Event) -> str:
    return shown_id(event.id)


async def test_what_is_committed_while_the_relay_looks_is_told_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LOOK_S", 3600.0)
    inner = relay._next_due_us
    late: list[bytes] = []

    def one_comes(store: Store, name: str) -> int | None:
        """After it looked for something new, and before it rests."""
        if not late:
            late.extend(reject(house))
        return inner(store, name)

    monkeypatch.setattr(relay, "_next_due_us", one_comes)
    async with partner() as shop, relaying(house, endpoint(shop)):
        await until(lambda: shop.heard, 10)
    assert len(late) == len(shop.heard) == 1


async def test_orders_that_an_endpoint_can_not_take_keep_no_others_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MIN", 0.02)
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MAX", 0.05)

    async def chokes(message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS if message.content["data"]["order_id"] in bad else OK

    async with partner(chokes) as shop, relaying(house, endpoint(shop)):
        bad: set[str] = set()
        bad |= {format_uuid(key) for key in reject(house, 3 * attempts.Breaker.TRIES)}
        await until(lambda: len(shop.heard) > 4 * attempts.Breaker.TRIES)
        reject(house, 3)
        await until(lambda: [row[2] for row in told(house)].count("delivered") == 3)


@on_postgresql
async def test_an_endpoint_begins_where_nothing_is_committed_in_front_of_it(house: House) -> None:
    async with partner() as shop:
        one, ready = Relay(house.store, house.ring, [endpoint(shop)]), asyncio.Event()
        with house.store.writing() as slow:
            slow.exec_driver_sql(
                "INSERT INTO outbox (order_id, round, type, created_us) VALUES (%s, 0, %s, 1)",
                (b"x" * 16, "order.rejected"),
            )
            await asyncio.to_thread(reject, house)
            task = asyncio.create_task(one.run(ready.set))
            await asyncio.sleep(0.3)
            assert not ready.is_set()  # it would begin behind the later one
        await ready.wait()
        assert house.rows("SELECT event FROM endpoints") == [(2,)]
        reject(house)
        await until(lambda: told(house))
        one.stop()
        await task
    assert len(shop.heard) == 1


@on_postgresql
async def test_a_vacuum_of_the_outbox_keeps_nobody_from_being_told(house: House) -> None:
    """It may take hours; an ANALYZE and an index that is made beside the work hold the same."""
    async with partner() as shop, relaying(house, endpoint(shop)):
        with house.store.writing() as vacuum:
            vacuum.exec_driver_sql("LOCK TABLE outbox IN SHARE UPDATE EXCLUSIVE MODE")
            await asyncio.to_thread(reject, house)
            await until(lambda: shop.heard)


@pytest.mark.parametrize("gives_up", [False, True])
@on_sqlite
async def test_what_is_old_is_given_up_only_when_its_endpoint_has_failed_for_as_long(
    house: House, monkeypatch: pytest.MonkeyPatch, gives_up: bool
) -> None:
    """It is old for nobody ran, or the endpoint was disabled."""
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MIN", 0.2)
    monkeypatch.setattr(relay, "GIVE_UP_S", 0.1 if gives_up else attempts.GIVE_UP_S)
    well = False

    async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return OK if well else FAILS

    async with partner(fails) as shop:
        house.store.commit(deliveries.enlist, [endpoint(shop)], Place(0, 0))
        reject(house, 100)  # more than are tried before it is left alone
        house.tamper("UPDATE outbox SET created_us = 5")
        async with relaying(house, endpoint(shop)) as one:
            await until(lambda: len(told(house)) >= relay.ROUND)
            count = len(shop.heard)
            await until(lambda: len(shop.heard) > count)  # the first probe
            if gives_up:
                await until(lambda: ("shop", "order.rejected", "failed", 0) in told(house))
            else:
                well = True
                await until(lambda: [row[2] for row in told(house)] == ["delivered"] * 100)
            one.stop()
    errors = {row[0] for row in house.rows("SELECT error FROM deliveries WHERE attempts = 0")}
    assert errors - {None} == ({relay.NOT_SENT} if gives_up else set())


async def test_for_how_long_an_endpoint_has_failed_is_known_after_a_restart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that is gone for good would be waited for as long as there are restarts."""
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MIN", 0.02)
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MAX", 0.05)
    well = False

    async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return OK if well else FAILS

    def failing_us() -> int:
        ((found,),) = house.rows("SELECT failing_us FROM endpoints")
        return int(found)

    async with partner(fails) as shop:
        house.store.commit(deliveries.enlist, [endpoint(shop)], Place(0, 0))
        reject(house, 5 * relay.ROUND)  # each start takes a round before it leaves it alone
        house.tamper("UPDATE outbox SET created_us = 5")
        async with relaying(house, endpoint(shop)):
            await until(lambda: failing_us() > 0)
        before = failing_us()
        async with relaying(house, endpoint(shop)):
            await until(lambda: failing_us() > before)
        assert relay.NOT_SENT not in {row[0] for row in house.rows("SELECT error FROM deliveries")}
        house.tamper(f"UPDATE endpoints SET failing_us = {attempts.GIVE_UP_S * 1_000_000}")
        async with relaying(house, endpoint(shop)):
            await until(lambda: (relay.NOT_SENT,) in house.rows("SELECT error FROM deliveries"))
            well = True
            await until(lambda: failing_us() == 0)


@on_sqlite
async def test_cookies_are_neither_kept_nor_sent(house: House) -> None:
    async def bakes(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return OK.replace(b"\r\n\r\n", b"\r\nset-cookie: a%d=b\r\n\r\n" % len(shop.heard))

    async with partner(bakes) as shop, relaying(house, endpoint(shop)):
        for count in (1, 2):
            reject(house)
            await until(lambda count=count: len(shop.heard) == count)  # type: ignore[misc]
    assert [one.headers.get("cookie") for one in shop.heard] == [None, None]


@on_sqlite
async def test_an_answer_counts_whose_body_runs_out_of_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "ATTEMPT_S", 0.4)

    async def dribbles(_message: Message, writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        while True:
            await asyncio.sleep(0.05)
            writer.write(b"x")

    async with partner(dribbles) as shop, relaying(house, endpoint(shop)):
        reject(house)
        await until(lambda: [row[2:] for row in told(house)] == [("delivered", 1)])
    assert len(shop.heard) == 1


async def test_a_stop_does_not_wait_for_a_database_that_is_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "AGAIN_S", 3600.0)

    def away(*_: Any, told: Any) -> None:
        raise StoreUnavailable("no")

    async with partner() as shop:
        async with relaying(house, endpoint(shop)) as one:
            monkeypatch.setattr(deliveries, "record", away)
            reject(house, 3)
            await until(lambda: len(shop.heard) == 3)
            one.stop()
            begun = time.monotonic()
        assert time.monotonic() - begun < 10
        assert told(house) == []
        monkeypatch.undo()
        async with relaying(house, endpoint(shop)):
            await until(lambda: len(told(house)) == 3)
    assert len(set(shop.ids)) == 3


@on_sqlite
async def test_what_a_stop_cuts_off_costs_no_attempt_and_is_due_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HURRY_S", 0.1)
    monkeypatch.setattr(attempts, "PAUSES_S", (3600,))
    counted: list[str] = []

    async def hangs(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        await asyncio.sleep(0 if len(shop.heard) > 1 else 3600)
        return OK

    async with partner(hangs) as shop:
        one = Relay(house.store, house.ring, [endpoint(shop)], counted.append)
        ready = asyncio.Event()
        task = asyncio.create_task(one.run(ready.set))
        await ready.wait()
        reject(house)
        await until(lambda: shop.heard)
        asyncio.get_running_loop().call_soon(one.stop)  # as a signal does, in no task
        await task
        assert told(house) == [("shop", "order.rejected", "waiting", 0)]
        assert counted == []
        async with relaying(house, endpoint(shop)):
            await until(lambda: told(house) == [("shop", "order.rejected", "delivered", 1)])
    assert len(set(shop.ids)) == 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, Loop], ids=["asyncio", "uvloop"])
def test_attempts_that_are_cut_off_anywhere_use_no_connection_up(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "ANSWER_S_MAX", 0.01)
    rng = random.Random(1)
    well = False

    async def dawdles(_message: Message, writer: asyncio.StreamWriter) -> bytes:
        if not well:
            await asyncio.sleep(rng.random() * 0.02)
            writer.write(OK[: rng.randrange(len(OK))])
            await asyncio.sleep(rng.random() * 0.02)
            raise ConnectionResetError
        return OK

    async def tell() -> list[str]:
        nonlocal well
        async with partner(dawdles) as shop:
            sender = Sender(endpoint(shop), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

            async def try_some() -> None:
                for _ in range(30):
                    monkeypatch.setattr(attempts, "ATTEMPT_S", rng.random() * 0.05)
                    await sender.send(b"x" * 16, b"{}")

            await asyncio.gather(*(try_some() for _ in range(attempts.AT_ONCE)))
            well = True
            monkeypatch.setattr(attempts, "ATTEMPT_S", 5.0)
            told = [await sender.send(b"x" * 16, b"{}") for _ in range(20)]
            await sender.close()
        return [one.verdict for one in told]

    with asyncio.Runner(loop_factory=loop) as runner:
        verdicts = runner.run(tell())
    assert verdicts[1:] == ["delivered"] * 19  # the first one may meet a connection that is reset


HARMFUL = {
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000,
    "endless status": b"HTTP/1.1 200 " + b"K" * 200_000,
    "endless chunk": b"HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 200_000,
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "zeros": b"\0" * 300,
    "no such status": b"HTTP/1.1 999 \xff\xfe\r\ncontent-length: 0\r\n\r\n",
    "switching": b"HTTP/1.1 101 x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "latin": b"HTTP/1.1 500 x\r\nretry-after: \xe9\xa0\x80\r\ncontent-length: 0\r\n\r\n",
    "answered twice": OK + OK,
}


@pytest.mark.parametrize("kind", HARMFUL)
@on_sqlite
async def test_no_answer_ends_the_relay_or_is_told_without_a_reason(
    house: House, kind: str
) -> None:
    async def harms(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return HARMFUL[kind]

    async with partner(harms) as shop, partner() as good:
        wanted = [endpoint(shop), endpoint(good, "good")]
        async with relaying(house, *wanted):
            reject(house, 10)
            await until(lambda: any(row[3] for row in told(house) if row[0] == "shop"))
            await until(lambda: len(good.heard) == 10)
    rows = house.rows("SELECT state, status, error FROM deliveries WHERE endpoint = 'shop'")
    for state, status, error in rows:
        assert state == "delivered" or status or error is None or len(error) > 10
    assert all(error is None or error.isprintable() for _, _, error in rows)


async def test_whatever_became_of_an_order_it_is_told(house: House) -> None:
    """Of those that can't be read there is little to tell."""
    async with partner() as shop, relaying(house, endpoint(shop)):
        house.put_bytes(b"\xc1", key=b"A" * 16)
        house.put_bytes(encode_order(Order("x" * 200, [Line("S", 1)] * 100, None, {"a": "b"})))
        house.put_bytes(b"", key=b"B" * 16)
        house.work()
        assert discard(house.store, b"B" * 16) == "discarded"
        house.ring.bump_commits()
        await until(lambda: len(told(house)) == 3)
    states = {one.content["data"]["status"] for one in shop.heard}
    assert states == {"dead", "rejected"}


@on_sqlite
async def test_nothing_of_what_may_be_secret_in_an_address_is_told_to_anybody(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rasher.relay")
    monkeypatch.setattr(attempts.Breaker, "TRIES", 2)
    addresses = ("127.0.0.1:1", "no..host", "none.invalid:99", "[::1]:1")
    wanted = [
        make_endpoint(f"e{at}", f"http://user:hidden@{address}/?t=hidden", [SECRET], "test")
        for at, address in enumerate(addresses)
    ]
    async with relaying(house, *wanted):
        reject(house, 3)
        await until(lambda: {row[0] for row in told(house) if row[3]} == {"e0", "e1", "e2", "e3"})
        await until(lambda: caplog.text.count("fails again and again") == len(wanted))
    errors = [str(row) for row in house.rows("SELECT error FROM deliveries")]
    assert "hidden" not in "".join([caplog.text, *errors])
    assert SECRET[6:] not in "".join([caplog.text, *errors])

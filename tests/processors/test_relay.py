"""The relay, with partners that behave well and badly: who is told what, how often, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import pytest
from sqlalchemy.engine import Connection
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from processors import attempts, commits, deliveries, recorder, relay, relay_access
from processors.deliveries import Ended, Told
from processors.events import Event, Place
from processors.outbox import events_behind
from processors.pipeline import Outcome
from processors.recorder import Recorder
from processors.relay import Relay
from processors.relay_access import Access, Urgent
from processors.store import Store, StoreBusy
from processors.webhooks import Endpoint, make_endpoint, shown_id
from tests.partners import (
    FAILS,
    GONE,
    OK,
    SECRET,
    Message,
    Partner,
    partner,
    until,
)
from tests.processors.kit import House, on_postgresql, on_sqlite, settled_by

T = TypeVar("T")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PAUSES_S", (0.05,))
    monkeypatch.setattr(recorder, "RECORD_EVERY_S", 0.001)
    monkeypatch.setattr(commits, "WATCH_S", 0.02)
    monkeypatch.setattr(relay, "LOOK_S", 0.1)
    monkeypatch.setattr(relay, "AGAIN_S", 0.05)
    monkeypatch.setattr(relay_access, "PAUSE_S_MAX", 0.001)


def endpoint(of: Partner, name: str = "shop", **changes: Any) -> Endpoint:
    made = make_endpoint(name, of.url, [SECRET], "test")
    return Endpoint(**{**{f: getattr(made, f) for f in made.__struct_fields__}, **changes})


def access_to(house: House) -> Access:
    """As the relay's process has it."""
    sqlite = house.store.wal_path is not None
    return Urgent(house.store, house.ring) if sqlite else Access(house.store)


@asynccontextmanager
async def relaying(
    house: House, *wanted: Endpoint, access: Access | None = None
) -> AsyncIterator[Relay]:
    """While it runs."""
    access = access or access_to(house)
    one = Relay(house.store, house.ring, wanted, access=access)
    ready = asyncio.Event()
    task = asyncio.create_task(one.run(ready.set))
    await asyncio.wait({task, asyncio.create_task(ready.wait())}, return_when="FIRST_COMPLETED")
    try:
        yield one
    finally:
        one.stop()
        await task
        access.close()


def told(house: House) -> list[tuple[Any, ...]]:
    return house.rows("SELECT endpoint, type, state, attempts FROM deliveries ORDER BY id")


def reject(house: House, count: int = 1) -> list[bytes]:
    keys = [house.put(("BELLY", 1000)) for _ in range(count)]
    house.work(settled_by(lambda _: Outcome.rejected("closed")))
    return keys


async def test_an_outcome_is_told_once_signed_and_with_the_order(house: House) -> None:
    async with partner() as shop, relaying(house, endpoint(shop)):
        (key,) = reject(house)
        await until(lambda: shop.heard)
        (message,) = shop.heard
        content = message.content
        assert content["type"] == "order.rejected"
        shown = house.view(key).to_json_dict()
        shown["timings"]["notified"] = None  # it may be recorded by now
        assert content["data"] == shown
        assert message.headers["content-type"] == "application/json"
        verified = Webhook(SECRET).verify(message.body, message.headers)
        assert verified == content
        altered = message.body.replace(b"rejected", b"rejectee", 1)
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(altered, message.headers)
    assert told(house) == [("shop", "order.rejected", "delivered", 1)]
    assert shop.ids == [shown_id(house.rows("SELECT event_id FROM deliveries")[0][0])]


async def test_both_secrets_sign_while_one_is_replaced(house: House) -> None:
    older, newer = SECRET, "whsec_" + "bmV3" * 10
    async with partner() as shop:
        both = make_endpoint("shop", shop.url, [newer, older], "test")
        async with relaying(house, both):
            reject(house)
            await until(lambda: shop.heard)
        (message,) = shop.heard
        for secret in (older, newer):
            assert Webhook(secret).verify(message.body, message.headers) == message.content
        assert message.headers["webhook-signature"].count("v1,") == 2


async def test_everybody_is_told_of_what_he_wants_from_when_he_came(house: House) -> None:
    reject(house)  # before anybody was there
    async with partner() as shop, partner() as dead:
        wanted = [endpoint(shop), endpoint(dead, "dead", events=("order.dead",))]
        async with relaying(house, *wanted):
            keys = reject(house, 200)
            await until(lambda: len(shop.heard) == 200)
        assert [one.content["data"]["order_id"] for one in shop.heard] != []
        assert len(set(shop.ids)) == 200
        assert dead.heard == []
    assert len(told(house)) == len(keys)
    assert {row[1] for row in house.rows("SELECT name, event FROM endpoints")} == {201}


async def test_what_fails_is_tried_again_under_the_same_id(house: House) -> None:
    async def twice(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS if len(shop.heard) <= 2 else OK

    async with partner(twice) as shop, relaying(house, endpoint(shop)):
        reject(house)
        await until(lambda: told(house) == [("shop", "order.rejected", "delivered", 3)])
    assert len(shop.heard) == 3
    assert len(set(shop.ids)) == 1


async def test_later_events_of_an_order_wait_for_earlier_ones_and_others_do_not(
    house: House,
) -> None:
    """The order dies, its death can't be told; others are, meanwhile; then it is replayed."""
    closed = True

    async def no_deaths(message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS if closed and message.content["type"] == "order.dead" else OK

    def dies(_: object) -> Outcome:
        raise ValueError("no")

    async with partner(no_deaths) as shop, relaying(house, endpoint(shop)):
        key = house.put(("BELLY", 1000))
        house.work(settled_by(dies))
        await until(lambda: shop.heard)
        revive(house, key)
        reject(house)
        await until(lambda: ("shop", "order.rejected", "delivered", 1) in told(house))
        await until(lambda: ("shop", "order.rejected", "waiting", 0) in told(house))
        closed = False
        await until(lambda: all(row[2] == "delivered" for row in told(house)))
    of_the_order = [one for one in shop.heard if one.content["data"]["order_id"].replace("-", "")
                    == key.hex()]  # fmt: skip
    types = [one.content["type"] for one in of_the_order]
    assert types.index("order.rejected") == len(types) - 1
    assert len({one.id for one in of_the_order}) == 2


def revive(house: House, key: bytes) -> None:
    """A replay that is rejected: its second outcome."""
    house.tamper(f"UPDATE orders SET round = 1, status = 'rejected' WHERE id = x'{key.hex()}'")
    at = house.now + 1
    house.tamper(
        "INSERT INTO outbox (order_id, round, type, created_us)"
        f" VALUES (x'{key.hex()}', 1, 'order.rejected', {at})"
    )
    house.ring.bump_commits()


async def test_410_disables_and_nothing_is_lost_until_it_is_enabled(house: House) -> None:
    answer = GONE

    async def gone(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return answer

    async with partner(gone) as shop, relaying(house, endpoint(shop)):
        reject(house)
        await until(lambda: house.rows("SELECT why FROM endpoints") == [("it answered 410",)])
        count = len(shop.heard)
        reject(house, 5)
        answer = OK
        with house.store.writing() as connection:
            connection.exec_driver_sql("UPDATE endpoints SET disabled_us = NULL, why = NULL")
        assert len(shop.heard) == count
        await until(
            lambda: len(told(house)) == 6 and {row[2] for row in told(house)} == {"delivered"}
        )
    assert len(set(shop.ids)) == 6


@pytest.mark.parametrize("kind", ["hangs", "resets", "redirects", "trickles", "nonsense"])
@on_sqlite
async def test_no_partner_holds_up_another(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(attempts, "ATTEMPT_S", 1.0)  # long enough for a good one, however busy
    elsewhere = 0

    async def bad(message: Message, writer: asyncio.StreamWriter) -> bytes:
        nonlocal elsewhere
        if kind == "hangs":
            await asyncio.sleep(3600)
        if kind == "trickles":
            for byte in OK:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.1)
        if kind == "redirects":
            elsewhere += message.headers.get("x") is not None
            return b"HTTP/1.1 307 x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
        if kind == "nonsense":
            return b"\x00\xff" * 100 + b"\r\n\r\n"
        raise ConnectionResetError

    async with partner() as good, partner(bad) as other:
        wanted = [endpoint(other, "other"), endpoint(good, "good")]
        async with relaying(house, *wanted):
            reject(house, 30)
            await until(lambda: len(set(good.ids)) == 30)
            await until(lambda: any(row[0] == "other" and row[3] for row in told(house)))
    assert {row[2] for row in told(house) if row[0] == "other"} == {"waiting"}
    assert elsewhere == 0


@on_sqlite
async def test_a_long_answer_is_not_read_and_counts(house: House) -> None:
    async def endless(_message: Message, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with partner(endless) as shop, relaying(house, endpoint(shop)):
        reject(house, 3)
        await until(lambda: [row[2] for row in told(house)] == ["delivered"] * 3)
    assert len(shop.heard) == 3


async def test_killed_between_sending_and_recording_it_is_told_again_under_the_same_id(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with partner() as shop:
        one = endpoint(shop)
        async with relaying(house, one):
            pass  # it is known from here on
        with monkeypatch.context() as patched:
            patched.setattr(deliveries, "record", lambda *_: pytest.fail("killed before"))
            first = Relay(house.store, house.ring, [one])
            task = asyncio.create_task(first.run())
            reject(house, 3)
            await until(lambda: len(shop.heard) >= 3)
            task.cancel()
            with suppress(BaseExceptionGroup, asyncio.CancelledError):
                await task
        assert told(house) == []
        async with relaying(house, one):
            await until(lambda: len(told(house)) == 3)
        assert len(set(shop.ids)) == 3
        assert len(shop.ids) == 6


async def test_an_endpoint_whose_time_is_over_has_failed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "GIVE_UP_S", 0)

    async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS

    async with partner(fails) as shop, relaying(house, endpoint(shop)):
        reject(house)
        await until(lambda: told(house) == [("shop", "order.rejected", "failed", 1)])
    assert house.rows("SELECT status, error FROM deliveries") == [(500, "answered 500")]


@on_sqlite
async def test_an_endpoint_that_fails_again_and_again_is_left_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts.Breaker, "OPEN_S_MIN", 0.3)
    works = False

    async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return OK if works else FAILS

    async with partner(fails) as shop, relaying(house, endpoint(shop)):
        reject(house, 50)
        tries = attempts.Breaker.TRIES + attempts.AT_ONCE
        await until(lambda: len(shop.heard) >= attempts.Breaker.TRIES)
        assert len(shop.heard) <= tries
        works = True
        await until(lambda: [row[2] for row in told(house)] == ["delivered"] * 50)


@on_postgresql
async def test_an_event_that_is_committed_behind_a_later_one_is_told(house: House) -> None:
    async with partner() as shop, relaying(house, endpoint(shop)):
        key = house.put(("BELLY", 1000))
        house.work(settled_by(lambda _: Outcome.rejected("closed")))
        await until(lambda: shop.heard)
        with house.store.writing() as slow:
            slow.exec_driver_sql(
                "INSERT INTO outbox (order_id, round, type, created_us) VALUES (%s, 1, %s, 1)",
                (key, "order.cancelled"),
            )
            later = await asyncio.to_thread(reject, house)
            # Not told yet: somebody who is writing might come in front of it.
            await asyncio.sleep(0.2)
            assert len(shop.heard) == 1
        house.ring.bump_commits()
        await until(lambda: len(shop.heard) == 3)
        assert [one.content["type"] for one in shop.heard][1:].count("order.cancelled") == 1
        assert later


async def test_what_waits_for_an_endpoint_that_is_gone_has_failed(house: House) -> None:
    async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS

    async with partner(fails) as shop:
        async with relaying(house, endpoint(shop)):
            reject(house)
            await until(lambda: told(house))
        async with relaying(house, endpoint(shop, "other")):
            pass
    assert [row[:3] for row in told(house)] == [("shop", "order.rejected", "failed")]
    assert house.rows("SELECT name FROM endpoints") == [("other",)]


@on_sqlite
async def test_while_others_have_the_database_the_loop_goes_on(house: House) -> None:
    answer = asyncio.Event()

    async def waits(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        await answer.wait()
        return OK

    impatient = Store.open(house.url, busy_timeout_s=0.02)
    access = CountsBusy(impatient, house.ring)
    async with partner(waits) as shop, relaying(house, endpoint(shop), access=access):
        reject(house)
        await until(lambda: shop.heard)
        with house.store.writing():
            answer.set()
            await until(lambda: access.busy >= 3)
        await until(lambda: told(house) == [("shop", "order.rejected", "delivered", 1)])
    impatient.close()


class CountsBusy(Urgent):
    """`busy`: how often the write lock was not to be had."""

    busy = 0

    async def write(self, work: Callable[[Connection], T]) -> T:
        try:
            return await super().write(work)
        except StoreBusy:
            self.busy += 1
            raise


async def test_a_stop_waits_for_no_pause_between_transactions(house: House) -> None:
    class Slow(Access):
        def pause_s(self) -> float:
            return 3600.0

    async with partner() as shop:
        async with relaying(house, endpoint(shop), access=Slow(house.store)):
            reject(house)
            await until(lambda: len(told(house)) == 1)
            reject(house)
            await until(lambda: len(shop.heard) == 2)
            assert len(told(house)) == 1
        assert len(told(house)) == 2


async def test_rounds_grow_while_all_is_taken_and_begin_again_at_a_failure(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def behind(connection: Connection, place: Place, end: Place, count: int) -> list[Event]:
        asked.append(count)
        return events_behind(connection, place, end, count)

    async def fails_once(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
        return FAILS if len(shop.heard) == 300 else OK

    monkeypatch.setattr(relay, "events_behind", behind)
    async with partner(fails_once) as shop:
        one = endpoint(shop)
        async with relaying(house, one):
            pass  # it is known from here on
        reject(house, 350)
        asked.clear()
        async with relaying(house, one):
            await until(lambda: len(told(house)) == 350)
            await until(lambda: {row[2] for row in told(house)} == {"delivered"})
    assert asked[:3] == [64, 128, 256]
    assert asked[3] <= 64


async def test_a_transaction_has_so_many_events_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "RECORDED_MAX", 10)
    sizes: list[list[int]] = []

    def record(connection: Connection, told: list[Told]) -> None:
        sizes.append([len(one.ended) for one in told])

    monkeypatch.setattr(deliveries, "record", record)
    one = Recorder(Access(house.store), asyncio.Event())
    ended = Ended(Event(1, bytes(16), bytes(16), 0, "order.rejected", 1), "delivered")
    rounds = [Told("shop", [ended] * count) for count in (4, 6, 1, 25, 3)]
    tasks = [asyncio.create_task(one.record(told)) for told in rounds]
    running = asyncio.create_task(one.run())
    await asyncio.gather(*tasks)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert sizes == [[4, 6], [1], [25], [3]]

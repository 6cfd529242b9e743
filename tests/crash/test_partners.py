"""Hostile partners beside healthy ones, and a relay that is killed again and again."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from tests.partners import FAILS, OK, SECRET, Behaviour, Message, Partner, partner
from tests.program import Client, Rasher, Start, verb

PROVE_EVENTS, PROVE_KILLS = 5_000, 20
SUITE_EVENTS, SUITE_KILLS = 200, 1
HEALTHY = 2
TOLD_S_MAX = 600
A_GIGABYTE = 2**30


async def healthy(message: Message, _writer: asyncio.StreamWriter) -> bytes:
    Webhook(SECRET).verify(message.body, message.headers)
    return OK


async def hangs(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
    await asyncio.sleep(3600)
    return OK


async def fails(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
    return FAILS


async def resets(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
    raise ConnectionResetError


async def trickles(_message: Message, writer: asyncio.StreamWriter) -> bytes:
    for byte in OK:
        writer.write(bytes([byte]))
        await asyncio.sleep(1)
    return b""


async def never_ends(_message: Message, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % A_GIGABYTE)
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def redirects(_message: Message, _writer: asyncio.StreamWriter) -> bytes:
    return b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"


# A fifth hangs, fails, resets, trickles; a tenth never ends, redirects.
HOSTILE: list[Behaviour] = [
    *(hangs, hangs, fails, fails, resets, resets, trickles, trickles, never_ends, redirects)
]


@contextmanager
def listening(behaviours: list[Behaviour]) -> Iterator[list[Partner]]:
    """In a thread of their own."""
    found: list[Partner] = []
    there, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            found.extend([await stack.enter_async_context(partner(one)) for one in behaviours])
            there.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert there.wait(20)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def write(path: Path, partners: list[Partner]) -> None:
    path.write_text(
        "".join(
            f'[[webhooks]]\nname = "p{at}"\nsecret = "{SECRET}"\nurl = "{one.url}"\n'
            for at, one in enumerate(partners)
        )
    )


def order(run: Rasher, count: int, between: Callable[[int], None]) -> set[str]:
    """So many, one after the other -> their ids."""
    client = Client(run)
    ids = set()
    for number in range(count):
        ids.add(client.order())
        between(number)
    client.connection.close()
    return ids


def until_told(partners: list[Partner], events: int) -> None:
    """However long the relay waits for a core: it yields to everybody."""
    deadline = time.monotonic() + TOLD_S_MAX
    while any(len(set(one.ids)) < events for one in partners):
        assert time.monotonic() < deadline, [len(set(one.ids)) for one in partners]
        threading.Event().wait(0.1)


def audit(run: Rasher) -> str:
    """Whoever lives; its words."""
    done = verb(run, "audit", patience_s=120)
    assert done.returncode == 0, done.stdout
    return done.stdout


def tell(rasher: Start, folder: Path, events: int, kills: int) -> str:
    """-> what was seen."""
    config = folder / "rasher.toml"
    with listening([healthy] * HEALTHY + HOSTILE) as partners:
        write(config, partners)
        run = rasher("--config", str(config), "--workers", "1", "--durability", "memory").ready()

        def kill(number: int) -> None:
            if number % (events // kills) == events // kills - 1:
                relay = run.child("relay")
                relay.kill()
                audit(run)
                run.replaced(relay, "relay")

        orders = order(run, events, kill)
        good = partners[:HEALTHY]
        until_told(good, events)
        for one in good:
            assert {message.content["data"]["order_id"] for message in one.heard} == orders
            assert len(set(one.ids)) == events
        again = [len(one.ids) - events for one in good]
        attempts = Counter({kind.__name__: 0 for kind in HOSTILE})
        for bad in partners[HEALTHY:]:
            attempts[bad.behave.__name__] += len(bad.heard)
        longest = run.rows("SELECT max(attempts) FROM deliveries")[0][0]
        audit(run)
        assert run.end(15) == 0
    told = re.search(r"([\d,]+) deliveries delivered", audit(run))
    assert told is not None
    assert int(told[1].replace(",", "")) >= HEALTHY * events
    return (
        f"{events} events, {HEALTHY} healthy partners had each of them, {again} once more after"
        f" {kills} kills of the relay; attempts at the others: {dict(attempts)};"
        f" most for one event: {longest}"
    )


def test_healthy_partners_are_told_everything_beside_hostile_ones(
    rasher: Start, tmp_path: Path
) -> None:
    tell(rasher, tmp_path, SUITE_EVENTS, SUITE_KILLS)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_thousands_of_events_and_a_relay_killed_in_the_middle(
    rasher: Start, tmp_path: Path
) -> None:
    print(f"\n{tell(rasher, tmp_path, PROVE_EVENTS, PROVE_KILLS)}")

"""The partners of the benchmark are what they are called, and a round that went wrong fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from benchmarks.end_to_end import RATE
from benchmarks.measure import Figures
from benchmarks.partners import (
    COST,
    HEALTHY,
    HOSTILE,
    KINDS,
    NONE,
    RELAY,
    TABLE,
    Partners,
    all_asked,
    all_told,
    check_heard,
    enlisted,
    events_of,
    listening,
)
from benchmarks.receivers import ANSWERS, Heard
from benchmarks.stock import NotDone
from processors import attempts, deliveries
from processors.attempts import ATTEMPT_S, Attempt, Sender
from processors.events import Place
from processors.outbox import events_behind
from processors.settings import load_settings
from processors.webhooks import Endpoint
from tests.benchmarks.conftest import RunSide
from tests.processors.kit import House

ENDS = {
    "healthy": ("delivered", 204),
    "hangs": ("again", None),
    "fails": ("again", 500),
    "resets": ("again", None),
    "trickles": ("again", None),
    "endless": ("delivered", 200),
    "redirects": ("again", 302),
}
GOOD = Heard("healthy", 1, 2, 2, 0.1, 2, "3", 0, 0, 0)


@pytest.fixture
def partners(tmp_path: Path) -> Iterator[Partners]:
    """One of each kind."""
    with listening(tmp_path, list(ANSWERS)) as found:
        yield found


def endpoints_of(partners: Partners) -> tuple[Endpoint, ...]:
    """As the program reads them."""
    return load_settings(["--data-dir", "/", *partners.flags], {})[0].webhooks.endpoints


async def tell(some: list[Endpoint], message: int) -> dict[str, Attempt]:
    """One message to each -> how it ended, by kind."""
    senders = [Sender(one, ssl.create_default_context()) for one in some]
    told = [one.send(message.to_bytes(16), b"{}") for one in senders]
    ended = await asyncio.gather(*told)
    for one in senders:
        await one.close()
    return {one.name.split("-")[0]: end for one, end in zip(some, ended, strict=True)}


def test_every_partner_does_what_it_is_called(
    partners: Partners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "ATTEMPT_S", 0.5)
    ended = asyncio.run(tell(list(endpoints_of(partners)), 1))
    assert {kind: (one.verdict, one.status) for kind, one in ended.items()} == ENDS
    heard = partners.heard()
    assert all_asked(heard)
    for one in heard:
        assert (one.attempts, one.events, one.ids_sum, one.followed) == (1, 1, "1", 0)
        slow = one.kind in ("hangs", "trickles")
        assert (one.longest_s > 0.4) == slow, one


def test_what_a_partner_hears_is_told_apart(partners: Partners) -> None:
    healthy, *_ = endpoints_of(partners)
    liar = Endpoint(healthy.name, healthy.url, (b"another secret",))
    asyncio.run(tell([healthy], 7))
    asyncio.run(tell([healthy], 7))
    asyncio.run(tell([healthy], 9))
    assert asyncio.run(tell([liar], 8))["healthy"].status == 401
    one = partners.heard()[0]
    assert (one.events, one.ids_sum, one.again, one.forged) == (2, "10", 1, 1)


SHOP = Endpoint("shop", "http://h/", (b"s" * 24,))


def test_the_events_are_those_of_the_outbox(tmp_path: Path) -> None:
    house = House(tmp_path)
    file = house.folder / "rasher.db"
    assert events_of(file) == (0, "0")
    house.store.commit(deliveries.enlist, [SHOP], Place(0, 0))
    assert enlisted(file) == 1
    house.put(("BELLY", 1000))
    house.work()
    with house.store.reading() as connection:
        found = events_behind(connection, Place(0, 0), Place(10, 10), 10)
    assert events_of(file) == (1, found[0].id.hex().lstrip("0"))
    house.close()


def test_a_round_is_over_when_all_was_told_and_tried() -> None:
    hangs = replace(GOOD, kind="hangs", events=0, ended=0)
    assert all_told(2, [GOOD, hangs])
    assert not all_told(3, [GOOD, hangs])
    assert not all_asked([GOOD, hangs])
    check_heard([GOOD, hangs], "3")


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"ids_sum": "4"}, "other events"), ({"forged": 1}, "signature"),
     ({"followed": 1}, "redirect"), ({"longest_s": ATTEMPT_S + 60}, "more than")],
)  # fmt: skip
def test_a_round_fails_that_went_wrong(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(NotDone, match=says):
        check_heard([GOOD, replace(GOOD, **changes)], "3")


@pytest.mark.prove  # its sender is installed by hand
@pytest.mark.parametrize("side", KINDS)
def test_every_side_commits(run_side: RunSide, side: str) -> None:
    figures: Figures = run_side("partners", TABLE, side)
    assert figures[RATE] > 0
    assert figures[COST] > 0
    assert (figures[RELAY] > 0) == (side != NONE)
    assert ("longest_attempt_s" in figures) == (side == HOSTILE)
    assert (figures["partners_percent"] > 0) == (side in (HEALTHY, HOSTILE))

"""What a power loss leaves is put back once, in order, and goes when the database knows it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processors.cancelling import Canceller
from processors.datadir import CannotStart
from processors.journal import journal_dir, journal_rules, make_journal_dir
from processors.known import commit_something, database_id
from processors.recovery import Damaged, Recovery
from processors.recycling import Recycler
from processors.settings import Settings
from processors.store import Store, StoreUnavailable
from ringbuf import Item, Journal
from ringbuf.segment import (
    PAGE_BYTES,
    encode_group,
    make_segment,
)
from tests.processors.kit import House
from tests.processors.left import (
    LOST_EPOCH,
    PAYLOAD,
    damaged_segment,
    header_of,
    items,
    records,
    recovered,
    replace_journal,
    waiting,
    write,
)


@pytest.fixture
def settings(house: House) -> Settings:
    found = Settings(data_dir=str(house.folder), database=house.url)
    make_journal_dir(found)
    return found


def test_nothing_left_behind_is_done_at_once(settings: Settings, house: House) -> None:
    write(settings, house, records(3), header_of(house, epoch=house.ring.epoch))
    recovery = Recovery(settings, house.ring, {house.ring.epoch})
    assert recovery.done
    assert not recovery.left()


def test_what_the_database_does_not_know_is_put_back_in_the_order_of_the_lost_ring(
    settings: Settings, house: House
) -> None:
    some = records(6)
    write(settings, house, [some[1], some[4], some[2]])
    write(settings, house, [some[0], some[5], some[3]])
    assert recovered(settings, house).done
    assert [at for _, at in waiting(house)] == [1000, 1001, 1002, 1003, 1004, 1005]


def test_rings_that_are_gone_follow_each_other_by_age(settings: Settings, house: House) -> None:
    newer, older = records(2, first=0), records(2, first=100)
    write(settings, house, newer, header_of(house, epoch=5, writer=1, made_ns=2000))
    write(settings, house, older, header_of(house, epoch=9, writer=1, made_ns=1000))
    recovered(settings, house)
    assert [at for _, at in waiting(house)] == [1100, 1101, 1000, 1001]


def test_what_is_settled_already_is_not_put_back(settings: Settings, house: House) -> None:
    some = records(5)
    path = write(settings, house, some)
    settled = [item.key for item in items([path])][:2]
    for key in settled:
        house.put_bytes(PAYLOAD, key)
    house.work()
    assert recovered(settings, house).done
    assert {key for key, _ in waiting(house)} == {item.key for item in items([path])} - set(settled)


def test_what_was_cancelled_is_not_put_back(settings: Settings, house: House) -> None:
    """Neither while it waited nor after it was allocated; a ring that is lost forgets it."""
    house.stock(house.lot("a", "A", 10**9))
    path = write(settings, house, records(3))
    waits, allocated, left = [item.key for item in items([path])]
    canceller = Canceller(house.ring.epoch)
    for key in (allocated, waits):
        house.put_bytes(PAYLOAD, key)
        if key == allocated:
            house.work()
        found = house.ring.find(key)
        canceller.cancel(house.store, key, found.item if found else None)
    house.work()
    assert house.rows("SELECT DISTINCT status FROM orders") == [("cancelled",)]
    assert recovered(settings, house).done
    assert [key for key, _ in waiting(house)] == [left]
    house.work()
    assert Recycler(journal_dir(settings), house.store).step() == 1


def test_a_later_round_counts_as_another_item(settings: Settings, house: House) -> None:
    path = write(settings, house, records(1, round=1))
    (item,) = items([path])
    house.put_bytes(PAYLOAD, item.key)
    house.work()
    recovered(settings, house)
    assert [(one.key, one.round) for one in house.ring.snapshot().waiting] == [(item.key, 1)]


def test_what_two_segments_hold_is_put_back_once(settings: Settings, house: House) -> None:
    some = records(4)
    write(settings, house, some)
    write(settings, house, some[2:])
    recovered(settings, house)
    assert house.ring.depth == 4


def test_a_recovery_that_was_cut_off_is_begun_anew(settings: Settings, house: House) -> None:
    write(settings, house, records(500))
    first = recovered(settings, house)
    assert (house.ring.depth, first.left()) == (400, 100)
    assert not first.done
    again = recovered(settings, house)  # killed, and the ring lives on
    assert again.left() == 100
    house.work()
    again.step(0)
    assert again.done
    house.work()
    assert house.rows("SELECT COUNT(*) FROM orders") == [(500,)]
    assert house.audit().ok


def test_a_killed_commits_leftovers_are_on_disk_before_the_database_is_believed(
    settings: Settings, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("processors.known.commit_something", lambda _: asked.append("commit"))
    original = Recovery._unknown

    def unknown(*args: Any) -> list[Item]:
        asked.append("ask")
        return original(*args)

    monkeypatch.setattr(Recovery, "_unknown", unknown)
    write(settings, house, records(1))
    recovered(settings, house)
    assert asked == ["commit", "ask"]


def test_a_segment_of_another_database_refuses_the_start(settings: Settings, house: House) -> None:
    path = write(settings, house, records(1), header_of(house, database=b"x" * 16))
    with pytest.raises(CannotStart, match=rf"{path} holds orders of the database {'78' * 16}"):
        recovered(settings, house)
    assert path.exists()


def test_a_segment_made_before_the_database_could_be_asked_fits_any(
    settings: Settings, house: House
) -> None:
    write(settings, house, records(1), header_of(house, database=bytes(16)))
    assert recovered(settings, house).done
    assert house.ring.depth == 1


def test_damage_refuses_the_start_and_says_where(settings: Settings, house: House) -> None:
    path = damaged_segment(settings, house)
    with pytest.raises(
        Damaged, match=rf"{path}: bytes 8192 to 12288.*--damaged-journal"
    ) as refused:
        recovered(settings, house)
    assert refused.value.code == 4
    assert not house.ring.depth


def test_told_to_skip_damage_the_rest_is_put_back_and_the_file_is_kept(
    settings: Settings, house: House
) -> None:
    path = damaged_segment(settings, house)
    skipping = replace_journal(settings, damaged="skip")
    assert recovered(skipping, house).done
    assert [at for _, at in waiting(house)] == [1000, 1001, 1020, 1021]
    house.work()
    assert Recycler(journal_dir(settings), house.store).step() == 0
    assert [one.name for one in journal_dir(settings).iterdir()] == [f"{path.stem}.damaged"]


def test_a_header_that_can_t_be_read_refuses_the_start(settings: Settings, house: House) -> None:
    path = write(settings, house, records(1))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="its header is damaged"):
        Recovery(settings, house.ring, {house.ring.epoch})
    assert Recovery(replace_journal(settings, damaged="skip"), house.ring, set()).done


def test_the_database_is_asked_again_later(
    settings: Settings, house: House, tmp_path: Path
) -> None:
    write(settings, house, records(1))
    recovery = Recovery(settings, house.ring, {house.ring.epoch})
    away = Store.open(f"sqlite:///{tmp_path}/not/there.db")
    with pytest.raises(StoreUnavailable):
        recovery.look(away)
    away.close()
    assert (recovery.looked, recovery.left()) == (False, 1)
    recovery.look(house.store)
    recovery.step(0)
    assert recovery.done


def test_a_new_front_does_not_append_to_what_a_dead_one_left(
    settings: Settings, house: House
) -> None:
    """Behind a torn group nothing is looked for."""
    header = header_of(house, writer=1)
    whole = encode_group(header.serial, PAGE_BYTES, PAGE_BYTES, records(2))
    at = PAGE_BYTES + len(whole)
    torn = encode_group(header.serial, at, at, records(30, first=2))
    torn = torn[:512] + bytes(len(torn) - 512)
    size = 2**16
    parts = [whole, torn, bytes(size - PAGE_BYTES - len(whole) - len(torn))]
    fd, _ = make_segment(journal_dir(settings), header, parts)
    os.close(fd)

    def refused(error: OSError) -> None:
        raise error

    async def begin_and_append() -> None:
        rules = journal_rules(settings, LOST_EPOCH, database_id(house.store))
        journal = await Journal.open(replace(rules, segment_bytes=size), refused)
        for record in records(2, first=100):
            journal.append(record)
        await journal.close()

    asyncio.run(begin_and_append())
    recovered(settings, house)
    assert [at for _, at in waiting(house)] == [1000, 1001, 1100, 1101]


# ---- killed at any of its steps ------------------------------------------------------------------

# `python -c RECOVER STEP NTH DIR URL RING`: recovers, and kills itself after the nth STEP.
RECOVER = """
import os, signal, sys
from processors import known, recovery
from processors.settings import load_settings
from processors.store import Store
from ringbuf import Ring, Writer

step, nth, folder, url, path = sys.argv[1:]
owner, name = {"commit": (known, "commit_something"), "put": (Writer, "put")}[step]
original, passed = getattr(owner, name), 0

def wrapped(*args, **kwargs):
    global passed
    result = original(*args, **kwargs)
    passed += 1
    if passed == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, wrapped)
settings, _ = load_settings(["--data-dir", folder, "--database", url])
ring = Ring.attach(path)
found = recovery.Recovery(settings, ring, {ring.epoch})
found.look(Store.open(settings.database))
found.step(10)
"""


@pytest.mark.parametrize(("step", "nth"), [("commit", 1), ("put", 1), ("put", 7), ("put", 20)])
def test_killed_while_it_puts_back_it_loses_and_doubles_nothing(
    settings: Settings, house: House, step: str, nth: int
) -> None:
    write(settings, house, records(20))
    words = [step, str(nth), settings.data_dir, house.url, str(house.folder / "test.ring")]
    killed = subprocess.run(
        [sys.executable, "-c", RECOVER, *words], cwd=Path(__file__).parents[2], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert house.ring.depth == (nth if step == "put" else 0)
    assert recovered(settings, house).done
    assert [at for _, at in waiting(house)] == list(range(1000, 1020))


def test_a_commit_of_our_own_is_one(house: House) -> None:
    before = house.rows("SELECT value FROM meta WHERE name = 'touched'")
    commit_something(house.store)
    assert house.rows("SELECT value FROM meta WHERE name = 'touched'") != before

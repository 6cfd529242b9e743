"""Moving a ring's orders into another one: order, content, kills at every step."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from processors.datadir import attach_rings, open_rings, read_link
from processors.moving import Mover, everything
from processors.settings import RingSettings, Settings, load_settings
from ringbuf import Item, Ring

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
OLD = RingSettings(capacity=8, slot_bytes=1024)
NEW = RingSettings(capacity=100, slot_bytes=512)

# `python -c MOVE STEP WHEN NTH FLAGS…`: moves, and kills itself before or after the nth STEP.
MOVE = """
import os, signal, sys
from pathlib import Path
from processors import datadir, moving
from processors.settings import load_settings
from ringbuf import Reader, Ring, Writer

step, when, nth, *flags = sys.argv[1:]
owner, name = {
    "create": (Ring, "create"), "put": (Writer, "put"), "release": (Reader, "release"),
    "unlink": (Ring, "unlink"), "link": (Path, "replace"),
}[step]
original, passed = getattr(owner, name), 0

def wrapped(*args, **kwargs):
    global passed
    passed += 1
    if when == "before" and passed == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if when == "after" and passed == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, staticmethod(wrapped) if step == "create" else wrapped)
settings, _ = load_settings(flags)
ring, older = datadir.open_rings(settings)
mover = moving.Mover(settings, ring, older)
mover.step(30)
"""


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    folder = tmp_path / "shm"
    folder.mkdir()
    (tmp_path / "var").mkdir()
    flags = ["--data-dir", str(tmp_path / "var"), "--ring-dir", str(folder), "--batch", "2"]
    settings, _ = load_settings(flags, {})
    ring = replace(OLD, ring_dir=settings.ring.ring_dir)
    return replace(settings, ring=ring)


@pytest.fixture
def new(old: Settings) -> Settings:
    return replace(old, ring=replace(NEW, ring_dir=old.ring.ring_dir))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def fill(settings: Settings) -> list[bytes]:
    """Hands 5 and 0, in this order, then slots -> the keys in the order of their sequences."""
    ring, _ = open_rings(settings)
    with ring, ring.writer() as writer:
        for index in (5, 0):
            with ring.reader(index) as reader:
                for number in (1, 2, 3):
                    writer.put(b"p%d" % number, key(ring.tail), b"h%d" % number, ring.tail % 3)
                reader.take(3)
        while writer.try_put(b"waits", key(ring.tail), b"h", 7) is not None:
            pass
        return [key(number) for number in range(ring.tail)]


def content(item: Item) -> tuple[bytes, bytes, bytes, int, int]:
    return item.key, item.payload, item.header, item.round, item.accepted_ns


def moved(settings: Settings) -> Ring:
    """The ring in use after a whole move."""
    ring, older = open_rings(settings)
    mover = Mover(settings, ring, older)
    mover.step(PATIENCE_S)
    assert mover.done
    mover.close()
    return ring


def keys(ring: Ring) -> list[bytes]:
    return [item.key for item in everything(ring)]


def test_all_is_moved_hands_first_in_the_order_of_the_sequences(
    old: Settings, new: Settings
) -> None:
    wanted = fill(old)
    (before,) = read_link(old)
    with moved(new) as ring:
        assert keys(ring) == wanted
        assert ring.capacity == 100
        assert [Path(str(ring.path))] == read_link(new)
        assert not before.exists()


def test_what_an_order_is_made_of_arrives(old: Settings, new: Settings) -> None:
    fill(old)
    with attach_rings(old)[0] as ring:
        before = [content(item) for item in everything(ring)]
    with moved(new) as ring:
        after = [content(item) for item in everything(ring)]
    assert sorted(after) == sorted(before)


def test_a_damaged_order_is_not_whole_again_in_the_new_ring(old: Settings, new: Settings) -> None:
    ring, _ = open_rings(old)
    with ring, ring.writer() as writer:
        writer.put(b"twelve pounds", key(1), b"\x90")
        writer.put(b"whole", key(2), b"\x90")
        content = Path(str(ring.path)).read_bytes()
        with Path(str(ring.path)).open("r+b") as file:
            file.seek(content.index(b"twelve"))
            file.write(b"eleven")
    with moved(new) as ring:
        headers = {item.key: (item.payload, item.header) for item in everything(ring)}
    # A damaged one is handed out as the raw bytes of its slot.
    assert headers[key(1)] == (b"\x90eleven pounds", b"\xc1")
    assert headers[key(2)] == (b"whole", b"\x90")


def test_a_full_ring_is_waited_for_and_nothing_leaves_the_old_one_before(
    old: Settings, new: Settings
) -> None:
    wanted = fill(old)
    small = replace(new, ring=replace(new.ring, capacity=4))
    ring, older = open_rings(small)
    with ring:
        mover = Mover(small, ring, older)
        begun = time.monotonic()
        mover.step(0.05)
        assert 0.04 < time.monotonic() - begun < 5
        assert (ring.depth, mover.left()) == (4, len(wanted) - 4)
        taken: list[bytes] = []
        with ring.reader(0) as reader:
            while len(taken) < len(wanted):
                items = reader.take(1, 0)
                taken += [item.key for item in items]
                reader.release(items)
                mover.step(0.01)
        assert (taken, mover.done) == (wanted, True)
        mover.close()


def test_onlookers_see_both_rings_while_one_is_moved_into_the_other(
    old: Settings, new: Settings
) -> None:
    wanted = fill(old)
    small = replace(new, ring=replace(new.ring, capacity=4))
    ring, older = open_rings(small)
    with ring, ExitStack() as stack:
        mover = Mover(small, ring, older)
        mover.step(0)
        rings = [stack.enter_context(one) for one in attach_rings(small)]
        assert [one.path for one in rings] == [str(path) for path in reversed(read_link(small))]
        assert set(wanted) == {one for ring in rings for one in keys(ring)}
        mover.close()


def test_a_move_that_was_left_goes_on_into_a_third_ring_in_order(
    old: Settings, new: Settings
) -> None:
    wanted = fill(old)
    small = replace(new, ring=replace(new.ring, capacity=4))
    ring, older = open_rings(small)
    with ring:
        mover = Mover(small, ring, older)
        mover.step(0)
        mover.close()
    with moved(new) as ring:
        assert keys(ring) == wanted
        assert len(read_link(new)) == 1


@pytest.fixture
def flags(new: Settings) -> list[str]:
    words = {
        "data-dir": new.data_dir,
        "ring-dir": new.ring.ring_dir,
        "capacity": new.ring.capacity,
        "slot-bytes": new.ring.slot_bytes,
        "batch": new.work.batch,
    }
    return [text for name, value in words.items() for text in (f"--{name}", str(value))]


def move_and_be_killed(flags: list[str], step: str, when: str, nth: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOVE, step, when, str(nth), *flags],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "passing",
    [("link", 1), ("create", 1), ("put", 1), ("release", 1), ("put", 4), ("release", 6),
     ("put", 7), ("release", 14), ("unlink", 1), ("link", 2)],
)  # fmt: skip
def test_killed_at_any_step_and_started_again_nothing_is_lost_or_doubled(
    old: Settings, new: Settings, flags: list[str], passing: tuple[str, int], when: str
) -> None:
    wanted = fill(old)
    move_and_be_killed(flags, passing[0], when, passing[1])
    with moved(new) as ring:
        assert keys(ring) == wanted
        names = {path.name for path in Path(new.ring.ring_dir).iterdir()}
        assert names == {Path(str(ring.path)).name}


def test_killed_again_and_again_by_ever_other_settings(
    old: Settings, new: Settings, flags: list[str]
) -> None:
    wanted = fill(old)
    for capacity in (50, 60, 70):
        move_and_be_killed([*flags, "--capacity", str(capacity)], "put", "after", 3)
    assert len(read_link(new)) == 4
    with moved(new) as ring:
        assert keys(ring) == wanted
        assert len(read_link(new)) == 1

"""Of an item that ends its readers: counted for it, and for no other."""

from __future__ import annotations

import pytest

from ringbuf import NotHeld, Reader, Ring, RingError
from ringbuf.participants import own_identity
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.kit import message, raw

PAGE = 4096


def fill(ring: Ring, count: int) -> None:
    with ring.writer() as writer:
        for n in range(count):
            writer.put(*message(n))


def die(ring: Ring, reader: Reader) -> None:
    """As a kill would leave it: nothing is told to the ring, and the identity is a dead one's."""
    reader.shut()
    ring.mapping.swap_participant(reader.index, own_identity(), 1)


def marks(ring: Ring, index: int = 0) -> list[tuple[int, int, int, int]]:
    """(sequence, attempts, crashes, slow) of what lies in that hand, for its next owner."""
    with ring.reader(index) as reader:
        items = reader.take()
        found = [(item.sequence, item.attempts, item.crashes, item.slow) for item in reader.held()]
        assert sorted(found) == [(i.sequence, i.attempts, i.crashes, i.slow) for i in items]
        die(ring, reader)
    return sorted(found)


def begun(ring: Ring, which: int, *, trial: bool = False) -> None:
    """A reader that took everything began that one, and died."""
    reader = ring.reader(0)
    reader.begin(reader.take()[which], trial)
    die(ring, reader)


def test_only_the_item_that_was_begun_is_blamed(ring: Ring) -> None:
    fill(ring, 3)
    begun(ring, 1)
    assert ring.blame(0, "was ended by SIGSEGV")
    assert marks(ring) == [(0, 1, 0, 0), (1, 1, 1, 0), (2, 1, 0, 0)]
    assert ring.note(0) == "was ended by SIGSEGV"
    begun(ring, 1)
    assert ring.blame(0, "again")
    assert [crashes for _, _, crashes, _ in marks(ring)] == [0, 2, 0]
    (found,) = [item for _, item in ring.snapshot().held if item.crashes]
    assert (found.sequence, found.crashes) == (1, 2)


def test_a_death_is_counted_once(ring: Ring) -> None:
    fill(ring, 1)
    begun(ring, 0)
    assert ring.blame(0, "")
    assert not ring.blame(0, "told again")
    assert ring.note(0) == ""
    assert marks(ring) == [(0, 1, 1, 0)]


def test_who_is_acquitted_has_begun_nothing(ring: Ring) -> None:
    fill(ring, 1)
    begun(ring, 0)
    ring.acquit(0)
    assert not ring.blame(0, "")


def test_to_be_late_on_trial_is_no_crash(ring: Ring) -> None:
    fill(ring, 2)
    begun(ring, 0, trial=True)
    assert ring.blame(0, "late", late=True)
    assert marks(ring)[0] == (0, 1, 0, 1)
    begun(ring, 0, trial=True)
    assert ring.blame(0, "no trial ends like that", late=False)
    begun(ring, 0)
    assert ring.blame(0, "late with all its time", late=True)
    assert marks(ring)[0][2:] == (2, 1)


def test_nobody_is_blamed_for_what_was_done_or_laid_aside(ring: Ring) -> None:
    fill(ring, 3)
    reader = ring.reader(0)
    first, second, _ = reader.take()
    reader.begin(first)
    reader.release([first])
    die(ring, reader)
    assert not ring.blame(0, "it had let go of it")
    reader = ring.reader(0)
    second, _ = reader.take()
    reader.begin(second)
    reader.begin(None)
    die(ring, reader)
    assert not ring.blame(0, "it had laid it aside")
    assert {crashes for _, _, crashes, _ in marks(ring)} == {0}


def test_whoever_follows_without_blame_begins_anew(ring: Ring) -> None:
    fill(ring, 1)
    begun(ring, 0)
    die(ring, ring.reader(0))
    assert not ring.blame(0, "of the second, which had begun nothing")
    assert marks(ring) == [(0, 2, 0, 0)]


def test_the_next_item_of_a_cell_is_not_blamed_for_the_last(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=4, hand=1)
    fill(ring, 2)
    begun(ring, 0)
    ring.blame(0, "")
    with ring.reader(0) as reader:
        (item,) = reader.take()
        assert item.crashes == 1
        reader.release([item])
        (item,) = reader.take()
        assert (item.sequence, item.crashes, item.slow) == (1, 0, 0)


def test_begin_refuses_what_is_not_held(ring: Ring) -> None:
    fill(ring, 1)
    with ring.reader(0) as reader:
        (item,) = reader.take()
        reader.release([item])
        with pytest.raises(NotHeld):
            reader.begin(item)
        with pytest.raises(TypeError):
            reader.begin("item")  # type: ignore[arg-type]
    with pytest.raises(RingError):
        reader.begin(None)


def test_a_note_is_cut_to_its_page_and_read_whatever_its_length_says(ring: Ring) -> None:
    fill(ring, 1)
    begun(ring, 0)
    assert ring.blame(0, "ä" * PAGE)
    assert ring.note(0).startswith("ä" * (PAGE // 2 - 2))
    at = ring.mapping.stats_at + PAGE * (ring.readers + ring.writers)
    with raw(ring) as memory:
        assert int.from_bytes(memory[at : at + 4], "little") == PAGE - 4
        memory[at : at + 4] = b"\xff" * 4
    assert len(ring.mapping.note(0)) == PAGE - 4
    for wrong in (ring.readers, 1 << 20):
        with pytest.raises(ValueError, match="reader"):
            ring.note(wrong)
        with pytest.raises(ValueError, match="reader"):
            ring.blame(wrong, "")
        with pytest.raises(ValueError, match="reader"):
            ring.acquit(wrong)

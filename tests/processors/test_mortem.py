"""Who is blamed for the end of a worker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from processors import mortem as mortem_module
from processors.mortem import PostMortem, count_oom_kills
from ringbuf import Ring
from ringbuf.participants import own_identity

OUTSIDE = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP]


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with Ring.create(tmp_path / "test.ring", capacity=4, slot_bytes=256) as ring:
        with ring.writer() as writer:
            writer.put(b"", bytes(16))
        yield ring


def ends(ring: Ring, post_mortem: PostMortem, returncode: int, *, trial: bool = False) -> str:
    """A worker ends like that over an order that it began alone -> the note that was left."""
    reader = ring.reader(0)
    reader.begin(reader.take()[0], trial)
    reader.shut()
    ring.mapping.swap_participant(0, own_identity(), 1)
    before = ring.note(0)
    post_mortem.examine(0, returncode, "was ended", "its words")
    after = ring.note(0)
    return "" if after == before else after


def crashes(ring: Ring) -> int:
    ((_, item),) = ring.snapshot().held
    return item.crashes


@pytest.mark.parametrize("number", OUTSIDE)
def test_whoever_is_killed_from_outside_is_a_victim(ring: Ring, number: int) -> None:
    assert not ends(ring, PostMortem(ring), -number)
    assert crashes(ring) == 0


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [
        (-signal.SIGSEGV, "worker_crashed"),
        (-signal.SIGABRT, "worker_crashed"),
        (-signal.SIGALRM, "timed_out"),
        (7, "worker_crashed"),
        (0, "worker_crashed"),
    ],
)
def test_whoever_ends_by_itself_is_put_down_to_its_order(
    ring: Ring, returncode: int, reason: str
) -> None:
    note = ends(ring, PostMortem(ring), returncode)
    assert note.splitlines()[0] == reason
    assert "was ended" in note
    assert note.endswith("its words")
    assert crashes(ring) == 1


def test_what_a_victim_had_begun_is_not_put_down_to_whoever_follows_and_can_not_start(
    ring: Ring,
) -> None:
    post_mortem = PostMortem(ring)
    ends(ring, post_mortem, -signal.SIGKILL)
    assert not post_mortem.examine(0, 3, "ended with exit code 3", "")
    assert crashes(ring) == 0


def test_what_was_begun_before_this_supervisor_is_nobody_s_fault(ring: Ring) -> None:
    reader = ring.reader(0)
    reader.begin(reader.take()[0])
    reader.shut()
    ring.mapping.swap_participant(0, own_identity(), 1)
    assert not PostMortem(ring).examine(0, 7, "ended with exit code 7", "")
    assert crashes(ring) == 0


def test_an_order_that_is_late_on_trial_has_crashed_nobody(ring: Ring) -> None:
    ends(ring, PostMortem(ring), -signal.SIGALRM, trial=True)
    ((_, item),) = ring.snapshot().held
    assert (item.crashes, item.slow) == (0, 1)


def test_a_kill_for_want_of_memory_is_no_kill_from_outside(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([5, 5, 6, 6])
    monkeypatch.setattr(mortem_module, "count_oom_kills", lambda: next(counts))
    post_mortem = PostMortem(ring)
    assert not ends(ring, post_mortem, -signal.SIGKILL)
    assert ends(ring, post_mortem, -signal.SIGKILL).startswith("out_of_memory\n")
    assert not ends(ring, post_mortem, -signal.SIGKILL)
    assert crashes(ring) == 1


def test_kills_for_want_of_memory_are_read_where_the_kernel_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "memory.events"
    monkeypatch.setattr(mortem_module, "group_file", tmp_path.joinpath)
    of_machine = count_oom_kills()
    events.write_text("low 0\nhigh 2\nmax 3\noom 4\noom_kill 41\noom_group_kill 0\n")
    assert count_oom_kills() == 41
    events.write_text("no pairs at all here\n")
    assert count_oom_kills() == of_machine

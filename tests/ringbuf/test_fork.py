from __future__ import annotations

from ringbuf import Ring
from tests.ringbuf.kit import message, number
from tests.ringbuf.nursery import Nursery


def test_in_a_forked_child_every_call_raises_and_closing_takes_nothing_away(
    ring: Ring, nursery: Nursery
) -> None:
    assert ring.path is not None
    with ring.writer() as writer:
        writer.put(*message(0))
    told = nursery.start("refusals_of_a_forked_child", ring.path).result()
    assert set(told[:-1]) == {"this ring was attached before a fork: attach it anew here"}
    assert len(told) == 14
    assert told[-1] == "still recorded: True"
    with ring.reader(0) as reader:
        assert [number(item) for item in reader.take()] == [2]
    assert ring.participants() == []


def test_a_forked_child_can_attach_anew_and_is_another_participant(
    ring: Ring, nursery: Nursery
) -> None:
    assert ring.path is not None
    assert nursery.start("join_anew_after_fork", ring.path).result()
    with ring.reader(0) as reader:
        assert [number(item) for item in reader.take()] == [3]

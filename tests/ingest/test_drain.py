"""The measured drain rate and what Retry-After says."""

from __future__ import annotations

from ingest.drain import RETRY_AFTER_MAX_S, SAMPLES_MAX, WINDOW_S, DrainMeter


class World:
    """A clock and a ring's head, both set by the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.head = 0
        self.meter = DrainMeter(lambda: self.head, lambda: self.now_s)

    def pass_time(self, seconds: float, taken: int) -> None:
        self.now_s += seconds
        self.head += taken


def test_nothing_is_said_before_time_has_passed() -> None:
    world = World()
    assert world.meter.rate() is None
    world.meter.note()
    assert world.meter.rate() is None
    assert world.meter.retry_after_s(5) == RETRY_AFTER_MAX_S


def test_the_rate_is_what_was_taken_since_the_oldest_sample() -> None:
    world = World()
    world.meter.note()
    world.pass_time(4.0, taken=20)
    assert world.meter.rate() == 5.0
    assert world.meter.retry_after_s(11) == 3


def test_retry_after_is_from_1_to_60_whole_seconds() -> None:
    world = World()
    world.meter.note()
    world.pass_time(1.0, taken=1000)
    assert world.meter.retry_after_s(1) == 1
    assert world.meter.retry_after_s(10**9) == RETRY_AFTER_MAX_S


def test_a_ring_that_stands_still_asks_for_the_longest_wait() -> None:
    world = World()
    world.meter.note()
    world.pass_time(5.0, taken=0)
    assert world.meter.rate() == 0.0
    assert world.meter.retry_after_s(1) == RETRY_AFTER_MAX_S


def test_old_samples_are_forgotten() -> None:
    world = World()
    world.meter.note()
    world.pass_time(WINDOW_S, taken=1000)
    world.meter.note()
    world.pass_time(1.0, taken=2)
    assert world.meter.rate() == 2.0


def test_samples_are_spaced_and_bounded() -> None:
    world = World()
    for _ in range(1000):
        world.meter.note()
        world.pass_time(0.1, taken=1)
    assert len(world.meter._samples) <= SAMPLES_MAX

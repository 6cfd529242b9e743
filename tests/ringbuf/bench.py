"""What a kill leaves behind, looked at by another process: each scenario arranges a ring, has a
victim killed in one call, and proves that nothing is lost, doubled, torn or stuck."""

from __future__ import annotations

from dataclasses import dataclass, field

from ringbuf import Closed, Item, Ring
from tests.ringbuf.kit import (
    MESSAGE_SIZES,
    READERS_EVENT,
    WRITERS_EVENT,
    is_whole,
    key,
    message,
    number,
    raw,
)
from tests.ringbuf.stepping import BATCH, BEFORE, RETURNED, Outcome, Stepper, Walk

STUCK_S = 10.0  # what others do after a kill takes microseconds, or a busy core's while
WAITING = 9  # so many that the share of each of three readers is a whole batch
SMALL_NUMBERS = 257
SEARCH_STRIDE = 16  # less than the instructions of copying one item
GEOMETRY = {"capacity": 16, "readers": 3, "hand": 8, "writers": 4}


def numbers(items: list[Item]) -> list[int]:
    return [number(item) for item in items]


class Bench:
    """One ring and the process that stays: one writer, and reader 0. Victims are the others."""

    def __init__(self, ring: Ring, stepper: Stepper) -> None:
        self.ring = ring
        self.stepper = stepper
        self.writer = ring.writer()
        self.reader = ring.reader(0)
        # Python keeps the numbers up to 256 at hand: they would take another way than later ones.
        self.numbered = SMALL_NUMBERS
        for _ in range(SMALL_NUMBERS):
            self.writer.put(b"", key(0))
            self.reader.release(self.reader.take(1))

    def tidy(self) -> None:
        """From here on the messages are as long as those of the last arrangement: same way."""
        self.numbered += -self.numbered % MESSAGE_SIZES

    def number(self, count: int = 1) -> list[int]:
        self.numbered += count
        return list(range(self.numbered - count, self.numbered))

    def fill(self, count: int) -> list[int]:
        put = self.number(count)
        for n in put:
            self.writer.put(*message(n), timeout=STUCK_S)
        return put

    def somebody_sleeps(self, event: int) -> None:
        """As if: the next signal there has to wake."""
        with raw(self.ring) as memory:
            memory[event] |= 1

    def find_all(self, wanted: list[int]) -> None:
        """A looker needs no lock, so it asks before any repair."""
        assert all(self.ring.find(key(n)) is not None for n in wanted)

    def settle(self, heirs_first: bool) -> tuple[list[Item], list[Item]]:
        """Empties the ring into what the dead held and what waited: each whole, and none twice."""
        held = self._heirs() if heirs_first else []
        waited = self._others()
        held += [] if heirs_first else self._heirs()
        assert all(map(is_whole, held + waited))
        tail = self.ring.tail
        sequences = [item.sequence for item in held + waited]
        assert sequences == list(range(tail - len(sequences), tail))
        assert (self.ring.depth, self.ring.held_count(0)) == (0, 0)
        return held, waited[:-1]

    def _heirs(self) -> list[Item]:
        held: list[Item] = []
        for index in range(1, self.ring.readers):
            with self.ring.reader(index) as heir:
                left = sorted(heir.held(), key=lambda item: item.sequence)
                for item in left:
                    assert heir.take(1) == [item]
                    heir.release([item])
                held += left
        return held

    def _others(self) -> list[Item]:
        """Somebody puts a message, somebody takes until it comes out."""
        (last,) = self.fill(1)
        items: list[Item] = []
        while not items or number(items[-1]) != last:
            taken = self.reader.take(timeout=STUCK_S)
            self.reader.release(taken)
            items += taken
        return items


class Scenario:
    """``arrange`` returns the victim's argument, ``effect`` how much of the call is there."""

    call: str
    whole = 1  # effect of the whole call
    over_corpse = False

    def arrange(self, bench: Bench) -> int:
        raise NotImplementedError

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        raise NotImplementedError

    def check(self, bench: Bench, outcome: Outcome, heirs_first: bool) -> int:
        effect = self.effect(bench, heirs_first)
        assert 0 <= effect <= self.whole
        assert outcome.phase != BEFORE or effect == 0
        assert outcome.phase != RETURNED or effect == self.whole, "what was answered is not there"
        return effect


class Put(Scenario):
    call, count = "put", 1

    def arrange(self, bench: Bench) -> int:
        bench.tidy()
        self.there = bench.fill(2)
        self.mine = bench.number(self.count)
        return self.mine[0]

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        bench.find_all(self.there)
        held, waited = bench.settle(heirs_first)
        assert not held
        assert numbers(waited) in (self.there, self.there + self.mine)
        return int(len(waited) > len(self.there))


class PutMany(Put):
    call, count = "put_many", BATCH


class PutWaking(Put):
    def arrange(self, bench: Bench) -> int:
        bench.somebody_sleeps(READERS_EVENT)
        return super().arrange(bench)


class Take(Scenario):
    call, index, whole = "take", 1, BATCH

    def arrange(self, bench: Bench) -> int:
        bench.tidy()
        self.there = bench.fill(WAITING)
        return self.index

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        bench.find_all(self.there)
        held, waited = bench.settle(heirs_first)
        assert numbers(held + waited) == self.there
        assert len(held) in (0, BATCH)
        assert {item.attempts for item in held} <= {1}
        assert {item.attempts for item in waited} == {0}
        return len(held)


class TakeWaking(Take):
    def arrange(self, bench: Bench) -> int:
        bench.somebody_sleeps(WRITERS_EVENT)
        return super().arrange(bench)


class Release(Take):
    """The victim takes its batch before the window begins."""

    call = "release"

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        bench.find_all(self.there[BATCH:])
        held, waited = bench.settle(heirs_first)
        released = BATCH - len(held)
        assert numbers(held + waited) == self.there[released:]
        assert {item.attempts for item in held} <= {1}
        return released


class Adopt(Take):
    """A hand with a batch in it passes from its dead owner to the victim and on to another."""

    call = "adopt"

    def arrange(self, bench: Bench) -> int:
        index = super().arrange(bench)
        with bench.ring.reader(index) as owner:
            assert len(owner.take(BATCH)) == BATCH
        return index

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        bench.find_all(self.there)
        held, waited = bench.settle(heirs_first)
        assert numbers(held + waited) == self.there
        assert len(held) == BATCH
        return sum(item.attempts for item in held)


class Close(Scenario):
    call = "close"

    def arrange(self, bench: Bench) -> int:
        self.there = bench.fill(2)
        return 0

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        closed = bench.ring.closed
        if closed:
            try:
                raise AssertionError(bench.writer.try_put(b"", key(0)))
            except Closed:
                bench.ring.reopen()
        held, waited = bench.settle(heirs_first)
        assert (held, numbers(waited)) == ([], self.there)
        return int(closed)


@dataclass(frozen=True)
class Corpse:
    """Where a call is to be killed so that it leaves its lock to be repaired."""

    walk: Walk
    k: int

    def lay(self, bench: Bench, argument: int) -> None:
        outcome = bench.stepper.kill(self.walk, bench.ring, argument, self.k)
        assert outcome.died_at == self.walk.address(self.k)


class PutAfterDeath(Put):
    """The victim meets the lock of a writer that was killed in the middle of its put."""

    over_corpse = True

    def __init__(self, corpse: Corpse) -> None:
        self.corpse = corpse

    def arrange(self, bench: Bench) -> int:
        argument = super().arrange(bench)
        bench.tidy()
        self.corpse.lay(bench, bench.number(3)[2])
        return argument


class AdoptAfterDeath(Scenario):
    """The victim meets the lock, and the half-filled hand, of a reader that was killed in take."""

    call, over_corpse = "adopt", True

    def __init__(self, corpse: Corpse) -> None:
        self.corpse = corpse

    def arrange(self, bench: Bench) -> int:
        bench.tidy()
        self.there = bench.fill(WAITING)
        self.corpse.lay(bench, 1)
        self.repairs = bench.ring.repairs
        return 1

    def effect(self, bench: Bench, heirs_first: bool) -> int:
        repaired = bench.ring.repairs - self.repairs
        bench.find_all(self.there)
        held, waited = bench.settle(heirs_first)
        assert (held, numbers(waited)) == ([], self.there)
        return repaired


@dataclass
class Tally:
    """What the kills of one scenario came to."""

    name: str
    steps: int = 0
    kills: int = 0
    exact: set[int] = field(default_factory=set)  # the walk's own instructions that were last ones
    locked: list[int] = field(default_factory=list)  # k of each that left its lock to a repair
    cleared: int = 0  # cells of half-filled hands that repairs cleared
    partial: int = 0  # effects between none and whole
    whole: int = 0


class Storm:
    """Kills one scenario's call again and again, each time after another number of steps."""

    def __init__(self, bench: Bench, scenario: Scenario) -> None:
        self.bench, self.scenario = bench, scenario
        argument = scenario.arrange(bench)
        self.walk = bench.stepper.walk(scenario.call, bench.ring, argument)
        scenario.check(bench, self.walk.outcome, False)
        self.tally = Tally(type(scenario).__name__, self.walk.outcome.steps)

    def kill(self, k: int, slowly: bool = False) -> tuple[Outcome, int]:
        bench, tally = self.bench, self.tally
        argument = self.scenario.arrange(bench)
        outcome = bench.stepper.kill(self.walk, bench.ring, argument, k, slowly)
        repairs, cleared = bench.ring.repairs, bench.ring.mapping.cleared
        try:
            effect = self.scenario.check(bench, outcome, heirs_first=bool(k % 2))
        except Exception as error:
            error.add_note(f"{tally.name} killed after {k} instructions: {outcome}")
            raise
        tally.kills += 1
        tally.locked += [k] if bench.ring.repairs > repairs else []
        tally.cleared += bench.ring.mapping.cleared - cleared
        tally.whole += effect == self.scenario.whole
        tally.partial += 0 < effect < self.scenario.whole
        if outcome.died_at == self.walk.address(k):
            tally.exact.add(k)
        return outcome, effect

    def kill_exactly(self, k: int) -> None:
        """A victim that took another way died elsewhere: then once more, all steps counted."""
        self.kill(k)
        if k not in self.tally.exact:
            self.kill(k, slowly=True)

    def corpse(self, cleared: int) -> Corpse:
        """The first kill that leaves the lock, no effect and so many cells to clear."""
        seen = self.walk.outcome
        for k in range(seen.entered_at, seen.returned_at, SEARCH_STRIDE):
            before = len(self.tally.locked), self.tally.cleared
            _, effect = self.kill(k)
            locked = len(self.tally.locked) > before[0]
            if locked and not effect and self.tally.cleared - before[1] == cleared:
                return Corpse(self.walk, k)
        raise AssertionError("no kill left the lock behind")

"""SIGKILL after each single instruction of the calls that change a ring, as they are shipped.

A fork of a prepared process makes one real call under ptrace and dies after k instructions; this
process then proves that what was answered is there, that nothing is there twice or torn, and that
nobody is stuck: a put and a take go through.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ringbuf.bench import (
    GEOMETRY,
    Adopt,
    AdoptAfterDeath,
    Bench,
    Close,
    Put,
    PutAfterDeath,
    PutMany,
    PutWaking,
    Release,
    Scenario,
    Storm,
    Take,
    TakeWaking,
    Tally,
)
from tests.ringbuf.conftest import MakeRing
from tests.ringbuf.stepping import Stepper

SOURCE = Path(__file__).with_name("stepper.c")
STRIDE, STRIDE_IN_LOCK = 80, 12
SHORT: list[type[Scenario]] = [
    Put,
    PutMany,
    PutAfterDeath,
    Take,
    Release,
    Adopt,
    AdoptAfterDeath,
    Close,
]
LONG = [*SHORT, PutWaking, TakeWaking]


@pytest.fixture(scope="module")
def stepper_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() != "x86_64":
        pytest.skip(f"the stepper knows x86_64, not {platform.machine()}")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: apt-get install gcc")
    library = tmp_path_factory.mktemp("stepper") / "stepper.so"
    words = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *words, str(SOURCE), "-o", str(library)], check=True, timeout=60)
    return library


@pytest.fixture
def bench(stepper_library: Path, make_ring: MakeRing) -> Iterator[Bench]:
    with Stepper(stepper_library) as stepper:
        if stepper.refused:
            pytest.skip(stepper.refused)
        yield Bench(make_ring(**GEOMETRY), stepper)


Arrange = Callable[[type[Scenario]], Storm]


def storm_of(bench: Bench, kind: type[Scenario]) -> Storm:
    if kind is PutAfterDeath:
        return Storm(bench, PutAfterDeath(Storm(bench, Put()).corpse(cleared=0)))
    if kind is AdoptAfterDeath:
        return Storm(bench, AdoptAfterDeath(Storm(bench, Take()).corpse(cleared=2)))
    return Storm(bench, kind())


@pytest.mark.parametrize("kind", SHORT, ids=lambda kind: kind.__name__)
def test_a_call_killed_at_any_instruction_harms_nobody(bench: Bench, kind: type[Scenario]) -> None:
    storm = storm_of(bench, kind)
    seen, tally = storm.walk.outcome, storm.tally
    for k in range(seen.entered_at, seen.returned_at, STRIDE):
        storm.kill(k)
    if tally.locked and not kind.over_corpse:  # else its lock is left by every early kill
        for k in range(tally.locked[0] - STRIDE, tally.locked[-1] + STRIDE, STRIDE_IN_LOCK):
            storm.kill(k)
    storm.kill(seen.steps)
    assert tally.whole
    assert tally.whole < tally.kills
    assert bool(tally.locked) == (kind is not Release)


def row(tally: Tally) -> str:
    columns = [tally.steps, tally.kills, len(tally.locked), tally.cleared, tally.partial]
    return f"{tally.name:16}" + "".join(f"{value:10,}" for value in [*columns, tally.whole, 0])


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_each_instruction_of_each_call_can_be_the_last(
    stepper_library: Path, make_ring: MakeRing
) -> None:
    names = ("steps", "kills", "locked", "cleared", "partial", "whole", "bad")
    print(f"\n{'call':16}" + "".join(f"{name:>10}" for name in names))
    for kind in LONG:
        with Stepper(stepper_library) as stepper:
            if stepper.refused:
                pytest.skip(stepper.refused)
            storm = storm_of(Bench(make_ring(**GEOMETRY), stepper), kind)
            for k in range(storm.tally.steps + 1):
                storm.kill_exactly(k)
            print(row(storm.tally), flush=True)
            assert len(storm.tally.exact) > 0.9 * storm.tally.steps

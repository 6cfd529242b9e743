from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ringbuf import Journal, Ring
from ringbuf import journal as journal_module
from tests.ringbuf.desk import Desk
from tests.ringbuf.nursery import Nursery
from tests.ringbuf.stage import CAPACITY, Stage
from tests.ringbuf.stand_ins import Disk, HeldSyncer

MakeRing = Callable[..., Ring]
MakeStage = Callable[[], Stage]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def ring_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory of this test's own, in shared memory where there is some."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    own = Path(tempfile.mkdtemp(prefix="ringbuf-test-", dir=shared))
    yield own
    half_made = [entry.name for entry in own.iterdir() if entry.suffix == ".tmp"]
    shutil.rmtree(own)
    assert not half_made


@pytest.fixture
def make_ring(ring_dir: Path) -> Iterator[MakeRing]:
    """Small rings by default; detached in the end. Where nobody is killed nothing is rescued."""
    made: list[Ring] = []

    def make(capacity: int = 4, slot_bytes: int = 128, **sizes: Any) -> Ring:
        sizes = {"readers": 2, "hand": 8, "writers": 4} | sizes
        path = ring_dir / f"{len(made)}.ring"
        made.append(Ring.create(path, capacity, slot_bytes, **sizes))
        return made[-1]

    yield make
    for ring in made:
        ring.detach()


@pytest.fixture
def ring(make_ring: MakeRing) -> Ring:
    return make_ring()


@pytest.fixture(scope="module")
def _nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def nursery(_nursery: Nursery) -> Iterator[Nursery]:
    """Starts actors (see actors.py) as processes; those still alive in the end are killed."""
    yield _nursery
    _nursery.end_all()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on a new event loop of either make."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_on_it(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(main, 60))

    return run_on_it


@pytest.fixture(scope="module")
def _stepping(stepping_kernel: Path) -> Iterator[Nursery]:
    with Nursery("tests.ringbuf.steps", str(stepping_kernel)) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def steps_hit() -> set[tuple[str, int]]:
    """The steps that some test of this run was ended or stopped at, and by which signal."""
    return set()


@pytest.fixture
def make_stage(
    make_ring: MakeRing, _stepping: Nursery, steps_hit: set[tuple[str, int]]
) -> Iterator[MakeStage]:
    """A ring for CAPACITY items and actors whose steps can be chosen; see stage.py."""
    yield lambda: Stage(make_ring(CAPACITY, readers=3, writers=2, hand=16), _stepping, steps_hit)
    _stepping.end_all()


@pytest.fixture
def stage(make_stage: MakeStage) -> Stage:
    return make_stage()


@pytest.fixture
def desk(ring_dir: Path) -> Desk:
    return Desk(ring_dir)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[Journal], HeldSyncer]:
    """Journals that are opened from now on sync when they are told; -> how one is told."""
    monkeypatch.setattr(journal_module, "Syncer", HeldSyncer)

    def syncer_of(journal: Journal) -> HeldSyncer:
        assert isinstance(journal._syncer, HeldSyncer)
        return journal._syncer

    return syncer_of


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(journal_module, "make_segment", disk.make_segment)
    monkeypatch.setattr(journal_module, "RETRY_S", 0.001)
    return disk

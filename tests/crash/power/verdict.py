"""One image of a disk: what the next start makes of it, in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from processors.audit import run_audit
from processors.datadir import CannotStart
from processors.journal import journal_dir
from processors.pipeline import fefo
from processors.recovery import Recovery
from processors.schema import format_uuid
from processors.settings import Settings
from processors.stop import Stop
from processors.store import Store, migrate
from processors.tables import orders
from processors.worker import BaconWorker, Rules
from ringbuf import Ring
from ringbuf.segment import remove_half_made
from tests.crash.power.disk import lay_out

MEMORY = Path("/dev/shm")
CAPACITY = 1024


@dataclass
class Verdict:
    """Of some images. `lost`, `wrong`: what they were and what was wrong with them."""

    images: int = 0
    answered: int = 0
    put_back: int = 0
    fresh: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Verdict) -> None:
        self.images += other.images
        self.answered += other.answered
        self.put_back += other.put_back
        self.fresh += other.fresh
        self.lost += other.lost
        self.wrong += other.wrong


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rasher-power-", dir=MEMORY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def judge(image: dict[str, bytes], answered: Collection[bytes], what: str) -> Verdict:
    """What the production code recovers of it, and whether that is all that was promised."""
    verdict = Verdict(images=1, answered=len(answered))
    with scratch() as folder:
        lay_out(image, folder)
        settings = Settings(data_dir=str(folder), database=f"sqlite:///{folder}/rasher.db")
        try:
            verdict.put_back = _start(settings, answered, verdict, what)
        except CannotStart as error:
            verdict.wrong.append(f"{what}: it does not start: {error}")
    return verdict


def _start(settings: Settings, answered: Collection[bytes], verdict: Verdict, what: str) -> int:
    remove_half_made(journal_dir(settings))
    migrate(settings.database)
    store = Store.open(settings.database, connections_max=1)
    path = Path(settings.data_dir, "judge.ring")
    try:
        with Ring.create(path, capacity=CAPACITY, slot_bytes=1024, readers=1) as ring:
            put_back = _recover(settings, ring, store)
            _compare(ring, store, answered, verdict, what)
    finally:
        store.close()
    return put_back


def _recover(settings: Settings, ring: Ring, store: Store) -> int:
    recovery = Recovery(settings, ring, {ring.epoch})
    if not recovery.done:
        recovery.look(store)
        recovery.step(0)
    put_back = ring.depth
    ring.close()
    with Stop() as stop, ring.reader(0) as reader:
        BaconWorker(ring, store, fefo(), Rules(), stop).run(reader)
    return put_back


def _compare(
    ring: Ring, store: Store, answered: Collection[bytes], verdict: Verdict, what: str
) -> None:
    with store.reading() as connection:
        there = set(connection.execute(sa.select(orders.c.id)).scalars())
    lost = sorted(set(answered) - there)
    if lost:
        named = ", ".join(format_uuid(one) for one in lost[:3])
        verdict.lost.append(f"{what}: {len(lost)} of {len(answered)} answered orders, {named}")
    report = run_audit([ring], store)
    verdict.wrong += [f"{what}: {one.rule}: {one.detail}" for one in report.violations]

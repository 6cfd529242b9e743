"""Upkeep when the disk, the descriptors or the clock are not as one would like."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from processors import upkeep as upkeep_module
from processors.recycling import Recycler
from processors.store import Store, StoreBroken
from processors.upkeep import Upkeep
from tests.processors.kit import House, on_sqlite


class Failing(Recycler):
    def __init__(self, directory: Path, store: Store, number: int) -> None:
        super().__init__(directory, store)
        self.number = number
        self.steps = 0

    def step(self, items_max: int = 0) -> int:
        self.steps += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "LOOK_EVERY_S", 0.0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EROFS])
def test_what_passes_keeps_no_worker_from_working(
    house: House, tmp_path: Path, number: int
) -> None:
    recycler = Failing(tmp_path, house.store, number)
    upkeep = Upkeep(house.store, recycler)
    upkeep.look()
    upkeep.look()
    assert recycler.steps == 2


def test_an_error_of_the_disk_in_the_journal_is_final(house: House, tmp_path: Path) -> None:
    upkeep = Upkeep(house.store, Failing(tmp_path, house.store, errno.EIO))
    with pytest.raises(StoreBroken, match="Input/output error"):
        upkeep.look()


@on_sqlite
def test_a_clock_that_is_set_back_delays_no_checkpoint(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    wal = Path(str(house.store.wal_path))
    checkpoints: list[None] = []
    monkeypatch.setattr(Store, "checkpoint", lambda _: checkpoints.append(None))
    upkeep = Upkeep(house.store)
    with house.store.reading() as connection:
        connection.exec_driver_sql("SELECT 1 FROM orders")
        for before_s in (0, 3600, 7200):  # another front commits, each time by an earlier clock
            os.utime(wal, ns=(0, wal.stat().st_mtime_ns - before_s * 10**9))
            upkeep.look()
        upkeep.look()
    assert len(checkpoints) == 3

"""The disk fails once, at some sync or write: nothing is promised after it, nothing answered is
lost.

The failed sync takes back what it should have put on disk (faults.c). What was answered is then
looked for twice: as if the power had failed at that moment, and with what a stop leaves behind.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from processors.datadir import CannotStart
from processors.doubt import EXIT_DOUBT
from tests.crash.disk import Ledger, counts_of, post_orders, recover, without_power
from tests.crash.faults import Faults, Kind
from tests.program import Client, Start, verb

ORDERS, CONNECTIONS = 40, 8
FLAGS = ("--workers", "1", "--segment-bytes", "65536")
# No order is settled: what was answered can only be in the journal.
LAZY = (*FLAGS, "--processor", "tests.crash.disk:held_up", "--graceful-timeout", "1")
MANY = ("--workers", "2", "--fronts", "2", "--segment-bytes", "65536")
WRITTEN = (Kind.JOURNAL, Kind.HALF, Kind.WAL, Kind.DATABASE)
END_S_MAX = 5.0
# A checkpoint and a look at the journal are due once a second.
UPKEEP_S = 2.5
BEGUN = r"ready on http://(\S+):(\d+):|^rasher: |not sure what is on disk"


class Trial:
    """One run in which one call fails, and what is there afterwards."""

    def __init__(self, start: Start, plain: Start, faults: Faults, ledger: Ledger) -> None:
        self.start, self.plain, self.faults, self.ledger = start, plain, faults, ledger

    def run(
        self,
        *flags: str,
        arm: Callable[[], object] = lambda: None,
        connections: int = CONNECTIONS,
    ) -> str:
        """-> how it ended. `arm`: called when it is ready and has stock."""
        self.rasher = self.start(*flags)
        if not self.rasher.log.match(BEGUN)[1]:
            return self.end_by_itself()
        self.rasher.ready()
        client = Client(self.rasher)
        with closing(client.connection), suppress(OSError, AssertionError):  # it met the fault
            client.stock("1000")
        arm()
        post_orders(self.rasher.port, self.ledger, ORDERS // connections, connections)
        self.wait_for_upkeep()
        return self.end_by_itself() if self.is_final() else self.stop()

    def stop(self) -> str:
        before = self.faults.failed
        code = self.rasher.end(signal.SIGTERM)
        if self.faults.failed is None:
            how = "nothing failed"
        else:
            how = "SQLite did not tell" if before is not None else "it failed during the stop"
        assert code == 0 or (code == EXIT_DOUBT and before is None), self.rasher.log.said
        return f"{how}, exit {code}"

    def is_final(self) -> bool:
        """Whether it has to end for it. SQLite does not tell whether the sync of a directory
        failed, or the checkpoint of whoever closes last, which it repeats, from its whole WAL."""
        if self.rasher.popen.poll() is not None:
            return True
        told, kind = self.faults.told, self.faults.failed
        return kind not in (None, Kind.DATA_DIR) and told.failed_pid != self.rasher.popen.pid

    def end_by_itself(self) -> str:
        failed_ns = self.faults.told.failed_ns
        code = self.rasher.end()
        seconds = (time.monotonic_ns() - failed_ns) / 1e9
        assert failed_ns, self.rasher.log.said
        assert seconds < END_S_MAX, self.rasher.log.said
        if self.faults.told.failed_pid == self.rasher.popen.pid:
            assert code == CannotStart.code, self.rasher.log.said
            assert not self.ledger.statuses[202]
            return f"refused to start, exit {code}"
        assert code == EXIT_DOUBT, self.rasher.log.said
        return f"ended by itself, exit {code}"

    def wait_for_upkeep(self) -> None:
        """Until a checkpoint and a removed segment, if they come, or the end."""
        told = self.faults.told
        checkpoints, removals = told.syncs_of[Kind.DATABASE], told.syncs_of[Kind.JOURNAL_DIR]
        deadline = time.monotonic() + UPKEEP_S
        while time.monotonic() < deadline and self.rasher.popen.poll() is None:
            done = told.syncs_of[Kind.DATABASE] > checkpoints
            if done and told.syncs_of[Kind.JOURNAL_DIR] > removals:
                return
            with suppress(Exception):
                self.rasher.popen.wait(0.02)

    def check(self, ring_dir: Path, folder: Path) -> None:
        """What was answered is there without what was in memory, and it is there with it."""
        self.check_image(ring_dir, folder)
        self.check_restart()

    def check_image(self, ring_dir: Path, folder: Path) -> None:
        data_dir, pid = self.rasher.data_dir, self.rasher.popen.pid
        if (data_dir / "rasher.db").exists():
            image = without_power(data_dir, folder, spilled_by=pid)
            report = recover(image, ring_dir, self.ledger.path)
            assert report.ok, report.violations

    def check_restart(self) -> None:
        again = self.plain(*FLAGS).ready()
        again.until(lambda: again.left() == 0, "all worked off")
        audit = verb(again, "audit", "--ledger", str(self.ledger.path))
        assert audit.returncode == 0, audit.stdout
        assert again.end(signal.SIGTERM) == 0


@pytest.fixture
def trial(faulty: Start, rasher: Start, faults: Faults, ledger: Ledger) -> Trial:
    return Trial(faulty, rasher, faults, ledger)


def wipe(data_dir: Path, ledger: Ledger) -> None:
    shutil.rmtree(data_dir, ignore_errors=True)
    ledger.path.write_text("")
    ledger.statuses.clear()


Fault = tuple[Callable[[Faults, int, tuple[Kind, ...]], None], int, Kind]
SYNC, WRITE = Faults.fail_sync, Faults.fail_write
FEW = [
    (SYNC, 8, Kind.JOURNAL),
    (SYNC, 1, Kind.HALF),  # of the next segment
    (SYNC, 3, Kind.WAL),
    (SYNC, 1, Kind.DATABASE),
    pytest.param((WRITE, 8, Kind.JOURNAL), marks=pytest.mark.prove),
    pytest.param((WRITE, 5, Kind.WAL), marks=pytest.mark.prove),
]


@pytest.mark.parametrize("fault", FEW)
def test_an_error_of_the_disk_ends_all_and_nothing_answered_is_lost(
    trial: Trial, faults: Faults, ring_dir: Path, tmp_path: Path, fault: Fault
) -> None:
    fail, which, kind = fault
    flags = LAZY if kind in (Kind.JOURNAL, Kind.HALF) else FLAGS
    # Two at a time: twenty groups at least, however many orders share one.
    how = trial.run(*flags, arm=lambda: fail(faults, which, (kind,)), connections=2)
    assert (how, faults.failed) == ("ended by itself, exit 4", kind)
    trial.check_image(ring_dir, tmp_path)


def each(
    trial: Trial,
    fail: Callable[[int], object],
    paths: tuple[Path, Path],
    flags: tuple[str, ...],
    step: int = 1,
) -> None:
    """One run after the other, in which the first, second... call fails, until none does."""
    found: Counter[str] = Counter()
    answers: Counter[int] = Counter()
    which, faults, ledger = 1, trial.faults, trial.ledger
    while faults.failed is not None or which == 1:
        faults.reset()
        fail(which)
        how = trial.run(*flags)
        kind = faults.failed
        trial.check(*paths)
        found[f"{'-' if kind is None else kind.name.lower():12} {how}"] += 1
        answers += ledger.statuses
        wipe(trial.rasher.data_dir, ledger)
        which += step
    lines = [f"{count:5}  {text}" for text, count in sorted(found.items())]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    sys.stdout.write(f"answers: {counts_of(answers)}; lost 0, twice 0\n")
    assert sum(found.values()) > 10


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("flags", [FLAGS, LAZY, MANY])
def test_every_sync_of_a_run_may_fail_once(
    trial: Trial, faults: Faults, ring_dir: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    each(trial, faults.fail_sync, (ring_dir, tmp_path), flags)


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_every_third_write_of_a_run_may_fail_once(
    trial: Trial, faults: Faults, ring_dir: Path, tmp_path: Path
) -> None:
    each(trial, lambda which: faults.fail_write(which, WRITTEN), (ring_dir, tmp_path), FLAGS, 3)

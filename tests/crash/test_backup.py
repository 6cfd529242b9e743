"""`rasher backup` of the whole program under load, and of a disk that fails meanwhile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.disk import Ledger, new_connection, order
from tests.crash.faults import Faults, Kind
from tests.program import PATIENCE_S, ROOT, Client, Rasher, Start, clean_environ, outlasting, verb
from tests.supervisor.test_relay import listening, write

FLAGS = ("--workers", "2", "--capacity", "64", "--segment-bytes", "65536")
CLIENTS = 4


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "monday"


@pytest.fixture
def restored(target: Path, ring_dir: Path) -> Iterator[Callable[..., Rasher]]:
    """Starts the program on the copy."""
    started: list[Rasher] = []

    def start(*argv: str) -> Rasher:
        words = ["--ring-dir", str(ring_dir), *FLAGS, *argv]
        started.append(Rasher("supervisor.py", words, target, {}))
        return started[-1].ready()

    yield start
    for run in started:
        if run.popen.poll() is None:
            descendants = run.process.children(recursive=True)
            run.end(signal.SIGKILL)
            assert not outlasting(descendants)


class Load:
    """Clients that order one after the other, each answer noted before the next."""

    def __init__(self, run: Rasher, ledger: Ledger) -> None:
        self.run, self.ledger = run, ledger
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._order) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _order(self) -> None:
        with closing(new_connection(self.run.port)) as connection:
            while not self.ended.is_set() and order(connection, self.ledger).status == 202:
                pass

    def answered(self, count: int) -> None:
        Rasher.until(lambda: self.ledger.statuses[202] >= count, f"{count} answered")

    def end(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)


@pytest.fixture
def load(rasher: Start, ledger: Ledger) -> Iterator[Load]:
    """The program at work."""
    run = rasher(*FLAGS).ready()
    client = Client(run)
    with closing(client.connection):
        client.stock("1000000")
    load = Load(run, ledger)
    yield load
    if run.popen.poll() is None:
        kill(run)
    load.end()


def call(*argv: str, data_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A verb, on a data dir on which nothing may run."""
    return subprocess.run(
        [sys.executable, "supervisor.py", *argv, "--data-dir", str(data_dir)],
        cwd=ROOT,
        env={**clean_environ(), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def kill(run: Rasher) -> None:
    """All of it, as a machine that is gone."""
    descendants = run.process.children(recursive=True)
    run.end(signal.SIGKILL)
    assert not outlasting(descendants)


def check(run: Rasher, ledger: Path) -> int:
    """The copy has all that the ledger says was answered, once -> how many."""
    Rasher.until(lambda: run.left() == 0, "all worked off")
    audit = verb(run, "audit", "--ledger", str(ledger))
    assert audit.returncode == 0, audit.stdout
    (line,) = [line for line in audit.stdout.splitlines() if "ledger: answered" in line]
    assert run.column("SELECT count(*) FROM orders WHERE status <> 'allocated'") == [0]
    return int(line.split()[0].replace(",", ""))


def before_it(ledger: Ledger, folder: Path) -> Path:
    """What had been answered by now."""
    path = folder / "before.txt"
    path.write_bytes(ledger.path.read_bytes())
    return path


@pytest.mark.parametrize(
    "frozen",
    [pytest.param(False, marks=pytest.mark.prove), True],
    ids=["worked off", "waiting"],
)
def test_what_was_answered_before_a_backup_under_load_is_in_it_once(
    load: Load, restored: Callable[[], Rasher], target: Path, tmp_path: Path, frozen: bool
) -> None:
    run = load.run
    load.answered(300)
    if frozen:  # the ring fills up; what was taken stays in hands
        for worker in run.children("worker").values():
            worker.send_signal(signal.SIGSTOP)
    before = before_it(load.ledger, tmp_path)
    made = verb(run, "backup", str(target))
    kill(run)
    assert made.returncode == 0, made.stderr
    assert "is whole" in made.stdout
    audit = call("audit", "--ledger", str(before), data_dir=target)
    assert audit.returncode == 0, audit.stdout
    copy = restored()
    assert check(copy, before) >= 300
    client = Client(copy)
    with closing(client.connection):
        assert client.final(client.order())["status"] == "allocated"
    assert copy.end(signal.SIGTERM) == 0


@pytest.mark.prove
def test_after_a_power_loss_the_journal_alone_makes_a_backup(
    rasher: Start, restored: Callable[[], Rasher], target: Path, tmp_path: Path, ledger: Ledger
) -> None:
    run = rasher(*FLAGS).ready()
    client = Client(run)
    with closing(client.connection), closing(new_connection(run.port)) as connection:
        client.stock("1000000")
        for worker in run.children("worker").values():
            worker.send_signal(signal.SIGSTOP)
        assert [order(connection, ledger).status for _ in range(20)] == [202] * 20
    kill(run)
    run.ring_path().unlink()
    made = verb(run, "backup", str(target))
    assert made.returncode == 0, made.stderr
    assert "20 orders that had no outcome" in made.stdout
    assert check(restored(), before_it(ledger, tmp_path)) == 20


def test_a_start_from_the_copy_goes_on_telling_under_the_same_ids(
    rasher: Start, restored: Callable[..., Rasher], target: Path, tmp_path: Path
) -> None:
    config = tmp_path / "rasher.toml"
    with listening() as shop:
        write(config, shop=shop)
        run = rasher(*FLAGS, "--config", str(config)).ready()
        client = Client(run)
        with closing(client.connection):
            told = {client.order() for _ in range(5)}
            run.until(lambda: rows_of(run, "delivered") == 5, "five are told")
            shop.status = 500
            refused = {client.order() for _ in range(3)}
            run.until(lambda: rows_of(run, "waiting") == 3, "three are refused")
            run.child("relay").send_signal(signal.SIGSTOP)
            behind = {client.order() for _ in range(4)}
            run.until(lambda: rows_of_orders(run) == 12, "four are not told")
        before = list(shop.heard)
        made = verb(run, "backup", str(target))
        kill(run)
        assert made.returncode == 0, made.stderr
        audit = call("audit", data_dir=target)
        assert audit.returncode == 0, audit.stdout
        assert re.search(r"3 deliveries waiting", audit.stdout)
        shop.status = 200
        copy = restored("--config", str(config))
        copy.until(lambda: rows_of(copy, "delivered") == 12, "all are told")
        client = Client(copy)
        with closing(client.connection):
            new = client.order()
        copy.until(lambda: new in shop.orders, "and what comes next")
        assert copy.end(signal.SIGTERM) == 0
    after = shop.heard[len(before) :]
    assert {order for _, _, order in after} == refused | behind | {new}
    assert {one for one in before if one[2] in refused} < set(after)  # ids and all
    assert {order for _, _, order in before} == told | refused


def rows_of(run: Rasher, state: str) -> int:
    return int(run.rows("SELECT count(*) FROM deliveries WHERE state = ?", state)[0][0])


def rows_of_orders(run: Rasher) -> int:
    return int(run.column("SELECT count(*) FROM orders")[0])


# ---- the disk of the copy --------------------------------------------------------------------


@pytest.fixture
def failing(faults_library: Path, tmp_path: Path, target: Path) -> Iterator[Faults]:
    """The disk on which the copies lie."""
    with Faults(faults_library, tmp_path / "faults", target.parent) as faults:
        yield faults


@pytest.fixture
def waiting(rasher: Start, ledger: Ledger) -> Rasher:
    """Ten orders wait; their worker is stopped."""
    run = rasher("--workers", "1").ready()
    run.child("worker").send_signal(signal.SIGSTOP)
    with closing(new_connection(run.port)) as connection:
        for _ in range(10):
            assert order(connection, ledger).status == 202
    return run


def backup(run: Rasher, target: Path, faults: Faults) -> subprocess.CompletedProcess[str]:
    return call("backup", str(target), data_dir=run.data_dir, **faults.environ)


def test_a_full_or_failing_disk_leaves_nothing_of_a_backup(
    waiting: Rasher, target: Path, failing: Faults
) -> None:
    for kind in (Kind.HALF, Kind.DATABASE):
        failing.fill(kinds=[kind])
        made = backup(waiting, target, failing)
        assert (made.returncode, made.stdout) == (1, "")
        assert "full" in made.stderr or "No space left on device" in made.stderr
        assert not list(target.parent.iterdir())
    failing.empty()
    failing.fail_sync(1, [Kind.DATABASE])
    made = backup(waiting, target, failing)
    assert (made.returncode, made.stdout) == (1, "")
    assert "Input/output error" in made.stderr
    assert not list(target.parent.iterdir())
    assert backup(waiting, target, failing).returncode == 0


@pytest.mark.prove
def test_whichever_sync_fails_there_is_no_backup(
    waiting: Rasher, target: Path, failing: Faults
) -> None:
    failed = 0
    while True:
        failing.reset()
        failing.fail_sync(failed + 1)
        if backup(waiting, target, failing).returncode == 0:
            break
        failed += 1
        assert not list(target.parent.iterdir())
    assert failed > 4
    print(f"\neach of the {failed} syncs of a backup failed once: none was left")


def test_a_killed_backup_leaves_nothing_that_looks_like_one(
    waiting: Rasher, target: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = (
        "import sys, supervisor, processors.backup as b\n"
        f"b.copy_database = lambda *_: open({str(gate)!r}).read()\n"
        "sys.exit(supervisor.main(sys.argv[1:]))"
    )
    words = ["backup", str(target), "--data-dir", str(waiting.data_dir)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=clean_environ()
    ) as made:
        with gate.open("w"):  # it is half way
            made.kill()
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".monday.")
    assert verb(waiting, "backup", str(target)).returncode == 0

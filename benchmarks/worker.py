"""What CPU does an order cost from the ring to its committed row, and what would it cost alone?

BaconWorker takes one-line orders out of a full ring and settles them, 64 in a transaction or one;
against it a synchronous service's part: the same functions with the same writes, called directly,
one transaction for each order. Each run has a process and a database of its own, with 2,000 lots of
10 skus. CPU is that process's while it settles; afterwards the audit must find every order
allocated. SQLite syncs every commit (FULL); NORMAL, which may lose the newest commits with the
power, stands beside it.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import stock
from benchmarks.measure import Figures, Options, Side, machine, parse_options
from benchmarks.report import Bench
from processors.instants import now_us
from processors.jobs import read_job
from processors.pipeline import fefo
from processors.recording import Recorder
from processors.stop import Stop
from processors.store import Store
from processors.worker import BaconWorker, Rules
from ringbuf import Item, Reader, Ring

BATCH = 64
ORDERS, ORDERS_ALONE = 20_000, 6_000
QUICK_ORDERS, QUICK_ORDERS_ALONE = 1_280, 300
HISTORIES, QUICK_HISTORIES = (0, 2_000, 20_000, 200_000), (0, 2_000)
# With stock; a tenth of them of each sku.
IN_STOCK, QUICK_IN_STOCK = (500, 5_000, 50_000), (100, 1_000)
WARM_UP = 2 * BATCH
ANSWER_S_MAX = 600.0
ORIGINALS = "databases"
MAIN, STORED = "ring to committed row", "orders and lots stored before"
STOCKED = "lots in stock"
COST = "cpu_per_order_us"

Settle = Callable[[Ring, Store, list[Item]], None]


def settle_in_batches(ring: Ring, store: Store, _items: list[Item], batch: int) -> None:
    """Everything that lies in the ring, by a BaconWorker."""
    with Stop() as stop, ring.reader(0) as reader:
        BaconWorker(ring, store, fefo(), Rules(batch=batch), stop).run(reader)


class Alone:
    """One transaction for each order, as a synchronous endpoint would do it: it decides and records
    with the worker's own functions. No look-up of the id first: the primary key refuses a repeat.
    """

    def __init__(self, epoch: int, store: Store) -> None:
        self._store = store
        self._processor = fefo()
        self._recorder = Recorder(epoch)

    def settle(self, reader: Reader, item: Item) -> str:
        """Commits one order; returns its status."""
        job = read_job(reader, item, now_us())
        assert job.work is not None
        with self._store.writing() as transaction:
            (outcome,) = self._processor(transaction, [job.work], now_us())
            self._recorder.record(transaction, [(job, outcome)])
        return outcome.status


def settle_alone(ring: Ring, store: Store, items: list[Item]) -> None:
    """The orders one by one; they don't come through the ring."""
    alone = Alone(ring.epoch, store)
    with ring.reader(0) as reader:
        for item in items:
            alone.settle(reader, item)


def work(folder: Path, synchronous: str, orders: int, settle: Settle, pipe: Connection) -> None:
    """The measured process. Statements are compiled and pages read by a first few orders."""
    store = stock.open_store(folder / "rasher.db", synchronous)
    for seed, count in ((2, WARM_UP), (1, orders)):
        items = stock.make_items(count, seed)
        path = stock.make_ring(folder, items)
        with Ring.attach(path) as ring:
            cpu_s, start_s = time.process_time(), time.monotonic()
            settle(ring, store, items)
            elapsed_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
        path.unlink()
    store.close()
    pipe.send((elapsed_s, cpu_s))


def run_side(
    options: Options,
    settle: Settle,
    synchronous: str,
    orders: int,
    *,
    history: int = 0,
    lots: int = stock.LOTS,
) -> Figures:
    """One round of one side."""
    folder = Path(tempfile.mkdtemp(prefix="worker-", dir=options.folder))
    try:
        file = prepared(options, folder, history, lots)
        elapsed_s, cpu_s = in_a_process(work, folder, synchronous, orders, settle)
        stock.check_settled(file, history + WARM_UP + orders)
    finally:
        shutil.rmtree(folder)
    return {COST: cpu_s / orders * 1e6, "orders_per_s": orders / elapsed_s}


def prepared(options: Options, folder: Path, history: int, lots: int) -> Path:
    """A copy of the database with that history and stock, which is made once."""
    original = options.folder / ORIGINALS / f"{history}-{lots}"
    if not original.exists():
        original.mkdir(parents=True)
        stock.make_database(original, history, lots)
    return Path(shutil.copy(original / "rasher.db", folder))


def in_a_process(target: Callable[..., None], *args: object) -> tuple[float, float]:
    """What the process sends; it is ended, whatever happens. Raises NotDone."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not mine.poll(ANSWER_S_MAX):
            raise stock.NotDone(f"not done within {ANSWER_S_MAX:g} s")
        answer: tuple[float, float] = mine.recv()
    except EOFError:
        raise stock.NotDone("the measured process died") from None
    finally:
        process.kill()
        process.join()
        process.close()
        mine.close()
    return answer


def main_sides(options: Options) -> list[Side]:
    """Worker and synchronous, FULL and NORMAL."""
    batched = QUICK_ORDERS if options.quick else ORDERS
    alone = QUICK_ORDERS_ALONE if options.quick else ORDERS_ALONE
    sides = []
    for mode in ("FULL", "NORMAL"):
        for name, settle, orders in (
            (f"BaconWorker, batch {BATCH}", partial(settle_in_batches, batch=BATCH), batched),
            ("BaconWorker, batch 1", partial(settle_in_batches, batch=1), alone),
            ("synchronous", settle_alone, alone),
        ):
            run = partial(run_side, options, settle, mode, orders)
            sides.append(Side(f"{name}, {mode}", run))
    return sides


def stored_sides(options: Options) -> list[Side]:
    """The worker with ever more orders and lots of earlier days in the database."""
    run = partial(run_batches, options)
    histories = QUICK_HISTORIES if options.quick else HISTORIES
    return [Side(f"{history:,}", partial(run, history=history)) for history in histories]


def stocked_sides(options: Options) -> list[Side]:
    """The worker with ever more lots to choose from."""
    run = partial(run_batches, options)
    counts = QUICK_IN_STOCK if options.quick else IN_STOCK
    return [Side(f"{lots:,}", partial(run, lots=lots)) for lots in counts]


def run_batches(options: Options, **stored: int) -> Figures:
    """One round of the worker, with what is stored before as `run_side` has it."""
    settle = partial(settle_in_batches, batch=BATCH)
    orders = QUICK_ORDERS if options.quick else ORDERS
    return run_side(options, settle, "FULL", orders, **stored)


def sweep(bench: Bench, table: str, sides: list[Side], over: int) -> None:
    """The same work with ever more in the database; the last is judged over that side."""
    if not bench.wants(table):
        return
    bench.run(table, sides)
    first, last = sides[0].name, sides[-1].name
    if over:
        bench.compare(table, COST, last, first)
    if sides[over].name != last:
        bench.compare(table, COST, last, sides[over].name, at_most=1.2)
    points = {float(s.name.replace(",", "")): bench.spread(table, COST, s.name) for s in sides}
    bench.lines(table, table, COST.replace("_", " "), {f"batch {BATCH}, FULL": points}, log_x=False)


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    # Of a run that was broken off, perhaps with another schema.
    shutil.rmtree(options.folder / ORIGINALS, ignore_errors=True)
    bench = Bench("worker", __doc__, options, machine(["sqlalchemy"]))
    bench.note(f"databases lay in {file_system(options.folder)}")
    if bench.wants(MAIN):
        bench.run(MAIN, main_sides(options))
        ours = f"BaconWorker, batch {BATCH}"
        bench.compare(MAIN, COST, f"{ours}, FULL", "synchronous, FULL", at_most=1 / 5)
        bench.compare(MAIN, COST, f"{ours}, NORMAL", "synchronous, NORMAL")
        bench.compare(MAIN, COST, "BaconWorker, batch 1, FULL", "synchronous, FULL")
        bench.compare(MAIN, "orders_per_s", f"{ours}, FULL", "synchronous, FULL")
        bench.bars(MAIN, COST)
    # 100 times as many as in the row behind `over`; a quick run has not so many rows.
    sweep(bench, STORED, stored_sides(options), over=1)
    sweep(bench, STOCKED, stocked_sides(options), over=0)
    shutil.rmtree(options.folder / ORIGINALS, ignore_errors=True)
    return bench.finish()


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on."""
    here = folder.resolve()
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    fitting = [(len(m[1]), m[2]) for m in mounts if here.is_relative_to(m[1])]
    return max(fitting)[1] if fitting else "an unknown file system"


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__)))

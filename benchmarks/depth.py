"""Does the cost of an order depend on how many lots its sku has, or ever had?

A BaconWorker takes one-line orders out of a full ring, 64 in a transaction, and settles them; the
instructions that its process executes from batch to batch are counted by callgrind. The sku has 10
lots to choose from, or up to 100,000; or there were many more that are spent or expired. The orders
are given out of one lot, or out of three, or ask for more than there is. Each run has a process and
a database of its own; afterwards the audit must find that every order has the outcome it should.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from msgspec import Struct

from benchmarks import piles, stock
from benchmarks.counted import STEPS, WARM_UP, Counts, count_worker
from benchmarks.measure import Figures, Options, Side, machine, missing_program, parse_options
from benchmarks.piles import Pile
from benchmarks.report import Bench
from processors.fefo import INSUFFICIENT_STOCK
from processors.instants import now_us
from processors.inventory import add_lots
from processors.schema import Lot, load_order
from processors.store import Store
from ringbuf import Item

COST, STEPS_COST = "instructions_per_order", "sqlite_steps_per_order"
IN_SQLITE = "instructions_in_sqlite_per_order"
# As many as commits between two checkpoints, so one of those is in it.
COUNTED, QUICK_COUNTED = 512, 128
FLAT = 1.2
LOT = 5_000_000
HOT = 10
# Four in five orders.
HOT_TIMES = 4
LOTS_EACH = 10
ORIGINALS = "depth-databases"


class Kind(Struct, frozen=True):
    """Orders of one quantity: how many lots each is given from (0: it is refused)."""

    name: str
    thousandths: int
    lots: int

    @property
    def outcome(self) -> str:
        """As stock.check_settled has it."""
        return "allocated" if self.lots else INSUFFICIENT_STOCK


KINDS = [
    Kind("from one lot", 1000, 1),
    Kind("from three lots", LOT * 5 // 2, 3),
    Kind("more than there is", 10**12, 0),
]


class Case(Struct, frozen=True):
    """What is in the database: piles of lots, one for each sku. `over`: the case that it must be as
    cheap as; empty for one that others are judged by."""

    name: str
    piles: list[Pile]
    over: str = ""

    def choices(self) -> list[str]:
        """Skus to draw orders from: of many, the first HOT get most of them."""
        names = [pile.sku for pile in self.piles]
        hot, others = names[:HOT], names[HOT:]
        return others + hot * max(1, HOT_TIMES * len(others) // HOT)


def cases(options: Options) -> list[Case]:
    """A quick run has fewer lots."""
    some, many, ever, few_skus, many_skus = 1_000, 100_000, 1_000_000, 100, 10_000
    if options.quick:
        some, many, ever, few_skus, many_skus = 100, 1_000, 2_000, 20, 200
    base = f"{LOTS_EACH} lots"
    few, spread = (f"{LOTS_EACH} lots of each of {n:,} skus" for n in (few_skus, many_skus))
    return [
        Case(base, [Pile("SKU-0", LOTS_EACH)]),
        Case(f"{some:,} lots", [Pile("SKU-0", some)], base),
        Case(f"{many:,} lots", [Pile("SKU-0", many)], base),
        Case(f"{base} after {ever:,} spent", [Pile("SKU-0", LOTS_EACH, spent=ever)], base),
        Case(f"{some:,} behind {many:,} expired", [Pile("SKU-0", some, expired=many)], base),
        Case(few, [Pile(f"SKU-{n}", LOTS_EACH) for n in range(few_skus)]),
        Case(spread, [Pile(f"SKU-{n}", LOTS_EACH) for n in range(many_skus)], few),
    ]


def run_side(options: Options, kind: Kind, case: Case) -> Figures:
    """One round of one case."""
    counted = QUICK_COUNTED if options.quick else COUNTED
    orders = WARM_UP + counted + STEPS
    items = stock.make_items(orders, skus=case.choices(), quantities=[kind.thousandths])
    with copied(options, case) as file:
        if kind.lots:
            add_used_up(file, items)
        stock.make_ring(file.parent, items)
        counts = count_worker(file.parent)
        check(file, orders, kind)
    return figures(counts, counted)


def figures(counts: Counts, counted: int) -> Figures:
    """For the table."""
    return {
        COST: counts.instructions / counted,
        IN_SQLITE: counts.in_sqlite / counted,
        STEPS_COST: counts.steps / STEPS,
    }


@contextmanager
def copied(options: Options, case: Case) -> Iterator[Path]:
    """A copy of the case's database, which is made once, in a folder that goes afterwards."""
    original = options.folder / ORIGINALS / case.name.replace(" ", "-")
    if not original.exists():
        original.mkdir(parents=True)
        piles.make_database(original, case.piles, LOT)
    folder = Path(tempfile.mkdtemp(prefix="depth-", dir=options.folder))
    try:
        yield Path(shutil.copy(original / "rasher.db", folder))
    finally:
        shutil.rmtree(folder)


def add_used_up(file: Path, items: list[Item]) -> None:
    """One lot more for each that the orders will empty, so that the case's own number is left."""
    asked: Counter[str] = Counter()
    for item in items:
        for line in load_order(item.payload).lines:
            asked[line.sku] += line.thousandths
    expires_us = now_us() + 200 * stock.DAY_US
    more = [
        Lot(f"{sku}-more-{number}", sku, LOT, expires_us + number, None, None)
        for sku, thousandths in asked.items()
        for number in range(thousandths // LOT)
    ]
    store = Store.open(stock.url_of(file))
    for start in range(0, len(more), stock.LOTS):
        add_lots(store, more[start : start + stock.LOTS])
    store.close()


def check(file: Path, orders: int, kind: Kind) -> None:
    """Every order has its outcome, and its lots. Raises NotDone."""
    stock.check_settled(file, orders, kind.outcome)
    with closing(sqlite3.connect(file)) as database:
        query = "SELECT count(*) FROM movements WHERE kind = 'allocate'"
        (given,) = database.execute(query).fetchone()
    if given != orders * kind.lots:
        raise stock.NotDone(f"{orders} orders were given {given} parts, not {kind.lots} each")


def run(options: Options) -> int:
    """All of it; the exit code of the benchmark."""
    options.folder.mkdir(parents=True, exist_ok=True)
    # Of a run that was broken off, perhaps with another schema.
    shutil.rmtree(options.folder / ORIGINALS, ignore_errors=True)
    bench = Bench("depth", __doc__, options, machine(["sqlalchemy"], [["valgrind", "--version"]]))
    install = missing_program("valgrind", "valgrind") or missing_program("cc", "gcc")
    found = cases(options)
    for kind in KINDS:
        if bench.wants(kind.name):
            sides = [
                Side(one.name, partial(run_side, options, kind, one), install) for one in found
            ]
            bench.run(kind.name, sides)
            for one in found:
                if one.over:
                    bench.compare(kind.name, COST, one.name, one.over, at_most=FLAT)
            bench.bars(kind.name, COST)
    shutil.rmtree(options.folder / ORIGINALS, ignore_errors=True)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(run(parse_options(__doc__, rounds=1)))

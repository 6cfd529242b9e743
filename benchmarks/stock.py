"""The database and the orders that benchmarks about the worker start from."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import event

from benchmarks.measure import SideFailed
from processors.audit import run_audit
from processors.instants import now_us
from processors.inventory import add_lots
from processors.schema import Line, Lot, Order, RecordHeader, body_hash, encode_header, encode_order
from processors.store import Store, migrate
from ringbuf import Item, Ring

SKUS = [f"SKU-{number}" for number in range(10)]
LOTS = 2000
LOT_THOUSANDTHS = 100_000_000
DAY_US = 86_400_000_000
ORDER_THOUSANDTHS = (1000, 1500, 2000)

# What an earlier life of the database left, for each number n in :count: a lot that came in, and
# one order that it was given to whole. Sku and sequence follow from n, so everything adds up.
HISTORY = """
INSERT INTO skus (id, sku, seq)
  SELECT value + 1, 'SKU-' || value, 2 * (:count / :skus) FROM json_each(:numbers);
INSERT INTO lots
    (id, lot_id, sku_id, received, available, expires_us, received_us, supplier, body_hash)
  SELECT n + 1, 'old-' || n, n % :skus + 1, 1000, 0, :now + :day, :now, NULL, zeroblob(16) FROM n;
INSERT INTO movements (sku_id, seq, lot, delta, kind, order_id, at_us, reason)
  SELECT n % :skus + 1, 2 * (n / :skus) + 1, n + 1, 1000, 'receive', NULL, :now, NULL FROM n
  UNION ALL
  SELECT n % :skus + 1, 2 * (n / :skus) + 2, n + 1, -1000, 'allocate', id, :now, NULL FROM n;
INSERT INTO orders (id, round, status, customer, lines, body_hash, ring_epoch, ring_sequence,
    accepted_us, taken_us, committed_us, attempts)
  SELECT id, 0, 'allocated', 'Funky Foods', '[["SKU-' || (n % :skus) || '",1000]]', zeroblob(16),
    zeroblob(8), n, :now, :now, :now, 1 FROM n;
INSERT INTO outbox (order_id, round, type, created_us)
  SELECT id, 0, 'order.allocated', :now FROM n;
"""


class NotDone(SideFailed):
    """The work that was measured was not done, or not as it should be."""


def make_database(folder: Path, history: int = 0, lots: int = LOTS) -> Path:
    """A database with so many lots of SKUS; `history` earlier orders and lots are in it already."""
    file = folder / "rasher.db"
    migrate(url_of(file))
    if history:
        _write_history(file, history)
    store = Store.open(url_of(file))
    expires_us = now_us() + 100 * DAY_US
    for start in range(0, lots, LOTS):
        numbers = range(start, min(start + LOTS, lots))
        add_lots(
            store,
            [
                Lot(f"lot-{n}", SKUS[n % len(SKUS)], LOT_THOUSANDTHS, expires_us + n, None, None)
                for n in numbers
            ],
        )
    store.close()
    return file


def open_store(file: Path, synchronous: str) -> Store:
    """synchronous: FULL as always, or NORMAL."""
    store = Store.open(url_of(file), connections_max=1)

    def weaken(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA synchronous={synchronous}").close()

    event.listen(store.engine, "connect", weaken)
    return store


def url_of(file: Path) -> str:
    """For Store."""
    return f"sqlite:///{file}"


def make_items(
    count: int,
    seed: int = 1,
    skus: Sequence[str] = SKUS,
    quantities: Sequence[int] = ORDER_THOUSANDTHS,
) -> list[Item]:
    """One-line orders as a take would give them."""
    chance = random.Random(seed)
    items = []
    for number in range(count):
        line = Line(chance.choice(skus), chance.choice(quantities))
        payload = encode_order(Order("Funky Foods", [line]))
        header = encode_header(RecordHeader(body_hash(payload)))
        key, now_ns = chance.randbytes(16), now_us() * 1000
        items.append(Item(payload, key, number, accepted_ns=now_ns, header=header))
    return items


def make_ring(folder: Path, items: list[Item], slot_bytes: int = 512) -> Path:
    """A closed ring with those items: whoever takes them all is told that it was all."""
    path = folder / "bench.ring"
    with Ring.create(path, len(items), slot_bytes, hand=128) as ring:
        with ring.writer() as writer:
            for item in items:
                if writer.try_put(item.payload, item.key, item.header) is None:
                    raise NotDone("the ring has no room for the orders")
        ring.close()
    return path


def check_settled(file: Path, count: int, outcome: str = "allocated") -> None:
    """Every order allocated, or rejected for the reason `outcome`, and the audit content with all
    of it. Raises NotDone."""
    with closing(sqlite3.connect(file)) as database:
        found = dict(
            database.execute("SELECT coalesce(reason, status), count(*) FROM orders GROUP BY 1")
        )
    if found != {outcome: count}:
        raise NotDone(f"{count} orders, but in the database are {found}")
    check_audit(file)


def check_audit(file: Path) -> None:
    """The audit is content. Raises NotDone."""
    store = Store.open(url_of(file))
    try:
        report = run_audit([], store, None)
    finally:
        store.close()
    if not report.ok:
        raise NotDone("\n".join(report.lines()))


def _write_history(file: Path, count: int) -> None:
    numbers = f"[{','.join(map(str, range(len(SKUS))))}]"
    values = {
        "count": count, "skus": len(SKUS), "numbers": numbers, "now": now_us(), "day": DAY_US
    }  # fmt: skip
    with closing(sqlite3.connect(file)) as database, database:
        # The ids of earlier orders rise with time, as those that the server makes do.
        database.execute("CREATE TEMP TABLE n AS SELECT 0 AS n, zeroblob(16) AS id WHERE false")
        database.execute(
            "INSERT INTO temp.n WITH RECURSIVE c(n) AS"
            " (VALUES(0) UNION ALL SELECT n + 1 FROM c WHERE n + 1 < :count)"
            " SELECT n, CAST(printf('%08d', n) || randomblob(4) || 'life' AS BLOB) FROM c",
            values,
        )
        for statement in HISTORY.split(";\n"):
            if statement.strip():
                database.execute(statement, values)

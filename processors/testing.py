"""For the tests of a processor of one's own: it runs in the test's process, against a database in
memory, as a worker would run it. No service, no ring, no port, nothing to clean up.

    from processors.testing import Workbench, posted

    with Workbench(my_processor()) as bench:
        bench.lot("PORK-BELLY", "10")
        assert bench.order(("PORK-BELLY", "4")).status == "allocated"
        assert bench.order(("PORK-BELLY", "7")).reason == "insufficient_stock"
        bench.audit()

What holds for a worker holds here: a batch is one transaction; when the processor raises, it is
rolled back and its orders are run one by one; one that raises Retry is left as if it had not come;
one that raises anything else, or is answered with what is no outcome, is dead; an order that has
its outcome is not given to the processor again. Nothing waits: a test of Retry is a fast one.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import randbits
from typing import Any, Literal, Self
from uuid import UUID, uuid4

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.audit import run_audit
from processors.instants import now_us
from processors.inventory import add_lots
from processors.jobs import PROCESSOR_ERROR, Death, Reading, describe
from processors.migrate import upgrade
from processors.orders import Allocation, view_orders
from processors.pipeline import Outcome, Processor, Retry, Work, check_outcomes
from processors.quantity import above_zero, thousandths_of_text
from processors.recording import Recorder
from processors.schema import Line, Lot, Order, body_hash, encode_order, format_uuid
from processors.sqlite import Sqlite, pragma
from processors.store import Store, migrate
from ringbuf import Item

__all__ = ["Posted", "Result", "Workbench", "posted"]

DAY_S = 86_400.0
ORDERS_MAX = 256


class Posted(Struct, frozen=True):
    """An order as it comes out of the ring."""

    order_id: bytes
    order: Order


class Result(Struct, frozen=True):
    """What became of an order. `allocations`: what it was given, quantities as text. Of `retry`:
    after how many seconds it asks for. `error`: what the processor raised over it alone."""

    order_id: str
    status: Literal["allocated", "rejected", "retry", "dead"]
    reason: str | None = None
    allocations: list[Allocation] = []
    after_s: float | None = None
    error: Exception | None = None


def posted(
    *lines: tuple[str, str],
    order_id: str | None = None,
    customer: str = "Funky Foods",
    reference: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Posted:
    """An order of lines (sku, quantity as in a request); without an id it gets a new one. Raises
    ValueError for what is no UUID, QuantityError for what is no quantity."""
    key = (UUID(order_id) if order_id else uuid4()).bytes
    own = [Line(sku, above_zero(thousandths_of_text(quantity))) for sku, quantity in lines]
    return Posted(key, Order(customer, own, reference, metadata))


class Workbench:
    """One processor and its database: in memory, or at `database`, the SQLAlchemy URL of a new one
    (for what differs on PostgreSQL). Not for several threads."""

    def __init__(self, processor: Processor, *, database: str | None = None) -> None:
        self._processor = processor
        if database is None:
            self._store = _in_memory()
        else:
            migrate(database)
            self._store = Store.open(database)
        self._recorder = Recorder(randbits(63))  # as a ring of its own
        self._sequence = 0
        self._tries: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The database in memory is gone."""
        self._store.close()

    def lot(
        self, sku: str, quantity: str, *, expires_in_s: float = DAY_S, lot_id: str | None = None
    ) -> str:
        """Enters a lot -> its id. Below 0 seconds: it has expired already."""
        lot = Lot(
            lot_id or f"LOT-{uuid4()}", sku, above_zero(thousandths_of_text(quantity)),
            now_us() + int(expires_in_s * 1e6), None, None,
        )  # fmt: skip
        (result,) = add_lots(self._store, [lot])
        if result.outcome == "conflict":
            raise ValueError(f"lot {result.lot_id} is there already, with another body")
        return result.lot_id

    def order(self, *lines: tuple[str, str], **fields: Any) -> Result:
        """Settles one order alone; fields as for `posted`."""
        return self.settle(posted(*lines, **fields))[0]

    def settle(self, *orders: Posted) -> list[Result]:
        """Settles a batch, as a worker does. The same order once more is the next try of one that
        asked for it, and for one with an outcome that outcome."""
        if len(orders) > ORDERS_MAX:
            raise ValueError(f"{len(orders)} orders in a batch: at most {ORDERS_MAX}")
        readings = [self._read(one) for one in orders]
        raised: dict[bytes, Exception] = {}
        try:
            self._store.commit(self._decide, readings)
        except Exception as error:
            for reading in readings:
                alone = error if len(readings) == 1 else self._try_alone(reading)
                if alone is not None:
                    raised[reading.item.key] = alone
                    self._blame(reading, alone)
        return self._results(orders, raised)

    def settle_killed(self, *orders: Posted) -> None:
        """The same, by a worker that is killed right before its commit: the processor was called,
        and nothing of what it wrote is there. What it raises goes through."""
        with self._store.rehearsing() as transaction:
            self._decide(transaction, [self._read(one) for one in orders])

    def rows(self, query: sa.Executable) -> list[tuple[Any, ...]]:
        """What a query gives, also on tables of the processor's own."""
        with self._store.reading() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def audit(self) -> None:
        """What `rasher audit` asks of every processor; AssertionError with each violation."""
        report = run_audit([], self._store)
        if not report.ok:
            raise AssertionError("\n".join(report.lines()))

    def _read(self, one: Posted) -> Reading:
        self._sequence += 1
        payload, now, tries = encode_order(one.order), now_us(), self._tries.get(one.order_id, 0)
        item = Item(payload, one.order_id, self._sequence, tries, now * 1000)
        work = Work(one.order_id, self._sequence, one.order, now, tries)
        return Reading(item, now, work, body_hash(payload))

    def _try_alone(self, reading: Reading) -> Exception | None:
        try:
            self._store.commit(self._decide, [reading])
        except Exception as error:
            return error
        return None

    def _decide(self, transaction: Connection, readings: Sequence[Reading]) -> None:
        """Everything that a worker's transaction does."""
        known = self._recorder.known(transaction, [reading.item.key for reading in readings])
        fresh = {one.item.key: one for one in readings if one.item.key not in known}
        works = [one.work for one in fresh.values() if one.work is not None]
        outcomes = self._processor(transaction, works, now_us()) if works else []
        check_outcomes(outcomes, works)
        settled: list[tuple[Reading, Outcome | None]] = list(
            zip(fresh.values(), outcomes, strict=True)
        )
        self._recorder.record(transaction, settled)

    def _blame(self, reading: Reading, error: Exception) -> None:
        key = reading.item.key
        self._tries[key] = self._tries.get(key, 0) + 1
        if isinstance(error, Retry):
            return
        reading.death = Death(PROCESSOR_ERROR, describe(error))
        self._store.commit(self._recorder.record, [(reading, None)])

    def _results(self, orders: Sequence[Posted], raised: dict[bytes, Exception]) -> list[Result]:
        with self._store.reading() as connection:
            views = view_orders(connection, [one.order_id for one in orders])
        results = []
        for one in orders:
            order_id, error = format_uuid(one.order_id), raised.get(one.order_id)
            if isinstance(error, Retry):
                results.append(Result(order_id, "retry", after_s=error.after_s, error=error))
                continue
            view = views[one.order_id]
            status: Any = view.status
            results.append(Result(order_id, status, view.reason, view.allocations, error=error))
        return results


class _Memory(Sqlite):
    """One connection is the database."""

    def on_connect(self, connection: Any, _record: object) -> None:
        pragma(connection, "foreign_keys=ON")


def _in_memory() -> Store:
    kind = _Memory(busy_timeout_s=0.0)
    engine = sa.create_engine(
        "sqlite://", poolclass=sa.StaticPool, connect_args=kind.arguments(sa.make_url("sqlite://"))
    )
    kind.listen(engine)
    store = Store(engine, kind)
    with store.writing() as connection:
        upgrade(connection)
    return store

"""`rasher audit [--ledger FILE]`: proves from the outside that nothing was lost or done twice.

Live or stopped. It goes with the flow: first how long the ledger is, then the journal, the ring and
the hands, then the database, in one snapshot. So an order that moves on meanwhile is met at its
next place, never missed. One that is both committed and still in a hand is fine: it is not released
yet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.audit_deliveries import audit_deliveries
from processors.audit_journal import Journaled, read_journal
from processors.audit_orders import audit_flow, audit_journaled, audit_ledger, audit_orders
from processors.audit_report import Report
from processors.audit_stock import audit_stock
from processors.datadir import attach_rings
from processors.journal import journal_dir
from processors.schema import format_uuid
from processors.settings import Settings
from processors.store import Store, StoreError, StoreUnavailable
from ringbuf import Identity, Ring, RingError, Snapshot

EXIT_USAGE = 2
USAGE = "usage: rasher audit [--ledger FILE]"
INTEGRITY_ERRORS_MAX = 20


def run_audit(
    rings: Sequence[Ring], store: Store, ledger: Path | None = None, journal: Path | None = None
) -> Report:
    """The whole audit; `rings` with the flow, the one in use last; `journal`: its directory. Raises
    OSError for the ledger only."""
    report = Report()
    ledger_bytes = ledger.stat().st_size if ledger else 0
    journaled = Journaled(set(), set())
    if journal is not None:
        journaled = read_journal(journal, {ring.epoch for ring in rings}, report)
    items = set[Identity]().union(*(_audit_ring(ring.snapshot(), report) for ring in rings))
    try:
        with store.reading() as connection:
            _audit_integrity(connection, report)
            audit_orders(connection, report)
            audit_stock(connection, report)
            audit_deliveries(connection, report)
            audit_flow(connection, items, report)
            audit_journaled(connection, journaled, items, report)
            if ledger is not None:
                there = {one.key for one in items | journaled.left}
                audit_ledger(connection, ledger, ledger_bytes, there, report)
    except (StoreUnavailable, sa.exc.DBAPIError, store.engine.dialect.loaded_dbapi.Error) as error:
        report.violate("database", f"it can't be read to the end: {error}")
    return report


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0 when all rules hold, 1 when one does not, 2 for wrong usage."""
    try:
        ledger = _read_args(args)
        report = _audit(settings, ledger)
    except (ValueError, OSError, StoreError) as error:
        sys.stderr.write(f"audit: {error}\n")
        return EXIT_USAGE
    sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
    return 0 if report.ok else 1


def _read_args(args: Sequence[str]) -> Path | None:
    words = [word for arg in args for word in arg.split("=", 1)]
    if not words:
        return None
    if len(words) != 2 or words[0] != "--ledger":
        raise ValueError(f"{' '.join(args)}: {USAGE}")
    return Path(words[1])


def _audit(settings: Settings, ledger: Path | None) -> Report:
    url = sa.make_url(settings.database)
    path = url.database if url.get_backend_name() == "sqlite" else None
    if path and not Path(path).exists():
        # To open it would make it, empty.
        report = Report()
        report.violate("database", f"there is none: {path} (--data-dir, --database)")
        return report
    with ExitStack() as stack:
        store = Store.open(settings.database, long=True)
        stack.callback(store.close)
        try:
            rings = attach_rings(settings)
        except (RingError, OSError) as error:
            report = run_audit([], store, ledger, journal_dir(settings))
            report.violate("ring", f"it can't be read: {error}")
            return report
        for ring in rings:
            stack.enter_context(ring)
        return run_audit(rings, store, ledger, journal_dir(settings))


def _audit_ring(snapshot: Snapshot, report: Report) -> set[Identity]:
    """All that is in the ring and in hands."""
    hands: dict[int, int] = {}
    for hand, item in snapshot.held:
        other = hands.setdefault(item.sequence, hand)
        if other != hand:
            report.violate(
                "ring", f"order {format_uuid(item.key)} lies in the hands {other} and {hand}"
            )
    report.counts["in the ring"] += len(snapshot.waiting)
    report.counts["in hands"] += len(snapshot.held)
    found = [*snapshot.waiting, *(item for _, item in snapshot.held)]
    return {Identity(item.key, item.round) for item in found}


def _audit_integrity(connection: Connection, report: Report) -> None:
    """What the database itself can tell: pages, indexes against tables, constraints, types."""
    if connection.dialect.name != "sqlite":
        return
    check = connection.exec_driver_sql(f"PRAGMA integrity_check({INTEGRITY_ERRORS_MAX})")
    for (verdict,) in check:
        if verdict != "ok":
            report.violate("database", verdict)
    for table, _, parent, _ in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        report.violate("database", f"a row of {table} names a row of {parent} that is not there")

"""Audits orders: their outcomes, what they hold, their events, and the ledger's answers.

Streams orders, allocations and events side by side in the order of the order ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.audit_journal import Journaled
from processors.audit_report import Groups, Report
from processors.audit_stock import stream
from processors.jobs import DISCARDED
from processors.known import Known, forgotten_before
from processors.orders import decode_lines
from processors.quantity import format_quantity
from processors.schema import format_uuid, parse_uuid
from processors.statements import KEYS_MAX, HotKeys
from processors.tables import NAMESAKE_US, movements, orders, outbox, skus
from ringbuf import Identity

LEDGER_LINE_BYTES_MAX = 256
ANSWERED = ("200", "202")

T = TypeVar("T")


def audit_orders(connection: Connection, report: Report) -> None:
    """Rules once, covered, nothing-held, outcome and outbox."""
    forgotten_us = forgotten_before(connection)

    def without_order(row: Any) -> None:
        if row.at_us < forgotten_us:
            report.counts["movements of forgotten orders"] += 1
            return
        report.violate(
            "once", f"order {format_uuid(row.order_id)} holds {row.sku} and does not exist"
        )

    held = Groups(
        stream(
            connection,
            sa.select(
                movements.c.order_id,
                skus.c.sku,
                movements.c.delta,
                movements.c.at_us,
                movements.c.kind,
                movements.c.lot,
            )
            .join(skus, skus.c.id == movements.c.sku_id)
            .where(sa.text("order_id IS NOT NULL"))
            .order_by(movements.c.order_id),
        ),
        without_order,
    )
    events = Groups(
        stream(
            connection,
            sa.select(outbox.c.order_id, outbox.c.round, outbox.c.type).order_by(outbox.c.order_id),
        ),
        lambda row: report.violate(
            "outbox",
            f"event {row.type} is of order {format_uuid(row.order_id)}, which is not there",
        ),
    )
    columns = (
        *(orders.c.id, orders.c.round, orders.c.status, orders.c.reason, orders.c.lines),
        orders.c.accepted_us,
    )
    for row in stream(connection, sa.select(*columns).order_by(orders.c.id)):
        report.counts["orders"] += 1
        report.counts[f"orders {row.status}"] += 1
        _check_outcome(row, report)
        own, others = _apart(row, held.of(row.id), forgotten_us)
        report.counts["movements of forgotten orders"] += others
        _check_held(row, own, report)
        _check_events(row, bool(own), list(events.of(row.id)), report)
    held.rest()
    events.rest()
    _check_slots(connection, report)


def audit_flow(connection: Connection, items: Collection[Identity], report: Report) -> None:
    """Counts what of the ring and the hands is committed and only not released yet."""
    known = Known()
    for some in _chunks(iter(items), KEYS_MAX):
        count = len(known.of(connection, some))
        report.counts["in ring or hands, already committed"] += count


def audit_journaled(
    connection: Connection, journaled: Journaled, items: Collection[Identity], report: Report
) -> None:
    """Rule journal; `items` are in the ring or in hands."""
    known, there = Known(), set(items)
    for some in _chunks(iter(journaled.living - there), KEYS_MAX):
        for one in set(some) - known.of(connection, some):
            report.violate(
                "journal",
                f"{_name(one)} is in the journal of this ring, and neither in the ring "
                "nor in a hand nor in the database",
            )
    for some in _chunks(iter(journaled.left - there), KEYS_MAX):
        count = len(some) - len(known.of(connection, some))
        report.counts["in the journal, to be put back"] += count


def audit_ledger(
    connection: Connection, ledger: Path, size: int, keys: Collection[bytes], report: Report
) -> None:
    """Rule ledger, for the first `size` bytes of the file; `keys` are in the ring, in hands, or
    left in the journal."""
    known = _KnownIds(connection)
    for answers in _chunks(_read_ledger(ledger, size, report), KEYS_MAX):
        there = known.of([key for key, _ in answers])
        for key, status in answers:
            _check_answer(key, status, key in there or key in keys, report)


def _check_outcome(row: Any, report: Report) -> None:
    if row.status not in ("allocated", "rejected", "dead", "cancelled"):
        _violate(report, "outcome", row, f"has the status {row.status}")
    elif (row.status in ("allocated", "cancelled")) != (row.reason is None):
        _violate(report, "outcome", row, f"is {row.status} with the reason {row.reason}")


def _apart(row: Any, held: Iterator[Any], forgotten_us: int) -> tuple[list[Any], int]:
    """-> what the order holds, and how much is of one that had its id before and is forgotten."""
    rows = list(held)
    last_us = min(forgotten_us, row.accepted_us - NAMESAKE_US)
    own = [one for one in rows if one.at_us >= last_us]
    return own, len(rows) - len(own)


def _check_held(row: Any, held: list[Any], report: Report) -> None:
    given, left = Counter[str](), Counter[tuple[str, int]]()
    returns = 0
    for one in held:
        if one.kind == "allocate":
            given[one.sku] -= one.delta
        else:
            returns += 1
        left[one.sku, one.lot] -= one.delta
    if row.status == "cancelled":
        report.counts["returns"] += returns
        holds = {key: count for key, count in left.items() if count}
        if holds or 2 * returns != len(held):
            text = _amounts(Counter({sku: count for (sku, _), count in holds.items()}))
            _violate(report, "nothing-held", row, f"is cancelled and holds {text}")
        if not held:
            return
    elif returns:
        _violate(report, "nothing-held", row, f"is {row.status} and gave {returns} times back")
    elif row.status != "allocated":
        if held:
            _violate(report, "nothing-held", row, f"is {row.status} and holds {_amounts(given)}")
        return
    _check_covered(row, given, report)


def _check_covered(row: Any, given: Counter[str], report: Report) -> None:
    wanted: Counter[str] = Counter()
    try:
        for sku, thousandths in decode_lines(row.lines):
            wanted[sku] += thousandths
    except msgspec.MsgspecError as error:
        _violate(report, "covered", row, f"has lines that can't be read: {error}")
        return
    if given != wanted or not wanted:
        holds = "holds" if row.status == "allocated" else "held"
        _violate(report, "covered", row, f"wants {_amounts(wanted)} and {holds} {_amounts(given)}")


def _check_events(row: Any, held: bool, events: list[Any], report: Report) -> None:
    """`held`: it was allocated once."""
    report.counts["outbox events"] += len(events)
    # Each round before the last one ended dead; being let go takes a round without an event, a
    # cancel of what was allocated one of its own.
    wanted = [(number, "order.dead") for number in range(row.round)]
    if row.status == "cancelled" and held:
        wanted[-1:] = [(row.round - 1, "order.allocated")]
    if row.reason != DISCARDED:
        wanted.append((row.round, f"order.{row.status}"))
    if sorted((number, kind) for _, number, kind in events) != wanted:
        found = ", ".join(kind for *_, kind in events) or "none"
        _violate(report, "outbox", row, f"is {row.status}, its events: {found}")


def _check_slots(connection: Connection, report: Report) -> None:
    """No two orders came through the same place of the same ring."""
    place = (orders.c.ring_epoch, orders.c.ring_sequence)
    doubled = sa.select(*place, sa.func.count()).group_by(*place).having(sa.func.count() > 1)
    for epoch, sequence, count in stream(connection, doubled):
        report.violate("once", f"{count} orders came out of slot {sequence} of ring {epoch.hex()}")


def _check_answer(key: bytes, status: str, there: bool, report: Report) -> None:
    if status in ANSWERED:
        report.counts["ledger: answered"] += 1
        if not there:
            report.violate("ledger", f"order {format_uuid(key)} was answered {status} and is gone")
    elif status == "0":
        report.counts[f"ledger: without an answer, {'there' if there else 'not there'}"] += 1
    else:
        report.counts[f"ledger: refused with {status}"] += 1


def _read_ledger(ledger: Path, size: int, report: Report) -> Iterator[tuple[bytes, str]]:
    with ledger.open("rb") as file:
        number = 0
        while size > 0 and (line := file.readline(LEDGER_LINE_BYTES_MAX)):
            number += 1
            size -= len(line)
            if size < 0 or (size == 0 and not line.endswith(b"\n") and file.read(1)):
                return  # it was being written when the audit began
            words = line.decode("ascii", "replace").split()
            key = parse_uuid(words[0]) if len(words) == 2 else None
            if key is not None and words[1].isascii() and words[1].isdigit():
                yield key, words[1]
            elif words:
                shown = line[:80].decode("ascii", "replace").rstrip()
                report.violate("ledger", f"line {number} is no `order_id status_code`: {shown}")


class _KnownIds:
    """Which ids have an outcome, a bounded number at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._select = HotKeys(sa.select(orders.c.id), orders.c.id)

    def of(self, keys: list[bytes]) -> set[bytes]:
        return {row[0] for row in self._select.all(self._connection, keys)}


def _chunks(values: Iterator[T], size: int) -> Iterator[list[T]]:
    while some := list(islice(values, size)):
        yield some


def _name(one: Identity) -> str:
    order = f"order {format_uuid(one.key)}"
    return f"replay {one.round} of {order}" if one.round else order


def _amounts(amounts: Counter[str]) -> str:
    return ", ".join(f"{format_quantity(n)} {sku}" for sku, n in amounts.items()) or "nothing"


def _violate(report: Report, rule: str, row: Any, detail: str) -> None:
    report.violate(rule, f"order {format_uuid(row.id)} {detail}")

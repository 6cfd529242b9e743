"""Audits what endpoints were told: each delivery against its event and its endpoint's place, and
those of one order, or of one sku, against each other.

Streams deliveries and events side by side in the order of their subjects. Memory grows with the
events of one subject, and with the endpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.audit_report import Groups, Report
from processors.audit_stock import stream
from processors.events import Place
from processors.known import forgotten_before
from processors.places import last_place
from processors.stock_events import stock_event_id
from processors.tables import deliveries, endpoints, outbox, skus, stock_events
from processors.webhooks import EVENTS, ORDER_EVENTS, STOCK_EVENTS, event_id

SUCCESS = range(200, 300)


class Standing(Struct, frozen=True):
    """Up to which events an endpoint was told; None: it is gone from the settings. `forgotten_us`:
    before which instant orders and events may be gone."""

    place: Place | None
    forgotten_us: int


class Told(NamedTuple):
    """An event that is there."""

    subject: bytes
    number: int
    type: str
    place: int
    created_us: int


def audit_deliveries(connection: Connection, report: Report) -> None:
    """Rules told, place, turn and delivery."""
    places = _audit_endpoints(connection, report)
    forgotten_us = forgotten_before(connection)
    # What nobody asks for was not wanted, or is not told yet.
    of_orders = Groups(_of_orders(connection), lambda _: None)
    of_stock = Groups(_of_stock(connection), lambda _: None)
    rows = stream(
        connection,
        sa.select(deliveries).order_by(
            deliveries.c.subject, deliveries.c.endpoint, deliveries.c.id
        ),
    )
    for subject, of_subject in groupby(rows, key=lambda row: row.subject):
        found = [*of_orders.of(subject), *of_stock.of(subject)]
        there = {(event.number, event.type, event.created_us): event for event in found}
        for name, of_endpoint in groupby(of_subject, key=lambda row: row.endpoint):
            standing, queue = Standing(places.get(name), forgotten_us), Queue(report)
            for row in of_endpoint:
                report.counts["deliveries"] += 1
                report.counts[f"deliveries {row.state}"] += 1
                _check_state(row, report)
                if row.type in EVENTS:
                    event = there.get((row.number, row.type, row.created_us))
                    _check_event(row, event, standing, report)
                queue.next(row, standing)
    of_orders.rest()
    of_stock.rest()


def _of_orders(connection: Connection) -> Iterator[Told]:
    columns = outbox.c
    events = sa.select(
        columns.order_id, columns.round, columns.type, columns.id, columns.created_us
    ).order_by(columns.order_id)
    return map(Told._make, stream(connection, events))


def _of_stock(connection: Connection) -> Iterator[Told]:
    columns = stock_events.c
    events = (
        sa.select(skus.c.sku, columns.seq, columns.type, columns.id, columns.created_us)
        .join(skus, skus.c.id == columns.sku_id)
        .order_by(skus.c.sku)
    )
    return (Told(sku.encode(), *rest) for sku, *rest in stream(connection, events))


def _audit_endpoints(connection: Connection, report: Report) -> dict[str, Place]:
    """-> the place of each."""
    last = last_place(connection)
    rows = connection.execute(sa.select(endpoints))
    places = {row.name: Place(row.event, row.stock_event) for row in rows}
    for name, place in places.items():
        report.counts["endpoints"] += 1
        for word, here, there in zip(("event", "event of stock"), place, last, strict=True):
            if here > there:
                text = f"endpoint {name} was told up to {word} {here}, the last one is {there}"
                report.violate("place", text)
    return places


def _check_state(row: Any, report: Report) -> None:
    found = []
    if (row.state == "waiting") != (row.ended_us is None):
        found.append(f"is {row.state} and {'has not' if row.ended_us is None else 'has'} ended")
    if row.state != "waiting" and row.next_us is not None:
        found.append(f"is {row.state} and to be tried again")
    if row.attempts < 0 or (not row.attempts and (row.first_us or row.status) is not None):
        found.append(f"has {row.attempts} attempts, a first one and a status")
    if row.state == "delivered" and not (
        row.attempts and row.first_us is not None and row.status in SUCCESS and row.error is None
    ):
        how = f"{row.attempts} attempts, status {row.status}, error {row.error}"
        found.append(f"is delivered after {how}")
    if row.state == "failed" and row.error is None:
        found.append("has failed without a reason")
    if row.type not in EVENTS:
        found.append(f"is of the unknown type {row.type}")
    if row.type in EVENTS and row.event_id != _id_of(row):
        found.append("has an id that is not its event's")
    for text in found:
        _violate(report, "delivery", row, text)


def _id_of(row: Any) -> bytes:
    if row.type in STOCK_EVENTS:
        return stock_event_id(row.subject, row.number, row.type, row.created_us)
    return event_id(row.subject, row.number)


def _check_event(row: Any, event: Told | None, standing: Standing, report: Report) -> None:
    if event is None:
        if row.created_us < standing.forgotten_us:
            report.counts["deliveries of forgotten orders"] += 1
        else:
            _violate(report, "told", row, f"is of an event {row.type} that is not there")
    elif standing.place is not None:
        end = standing.place[row.type in STOCK_EVENTS]
        if event.place > end:
            text = f"is of event {event.place}, its endpoint was told up to {end}"
            _violate(report, "place", row, text)


class Queue:
    """Rule turn, for the deliveries of one subject to one endpoint, in their order."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._number = -1
        self._first = True

    def next(self, row: Any, standing: Standing) -> None:
        """The next of them."""
        # Of an order that had the id before and is forgotten there may be some left.
        if row.created_us >= standing.forgotten_us:
            # A movement may be the reason of two events of stock.
            if row.number < self._number + (row.type in ORDER_EVENTS):
                text = f"is of outcome {row.number} and follows one of {self._number}"
                _violate(self._report, "turn", row, text)
            self._number = row.number
        if row.state != "waiting":
            return
        if standing.place is None:
            _violate(self._report, "turn", row, "waits for an endpoint that is gone")
        if (row.next_us is not None) != self._first:
            text = "the first that waits, without a time" if self._first else "tried out of turn"
            _violate(self._report, "turn", row, f"is {text}")
        self._first = False


def _violate(report: Report, rule: str, row: Any, detail: str) -> None:
    report.violate(rule, f"delivery {row.id} to {row.endpoint} {detail}")

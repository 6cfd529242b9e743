"""Audits what endpoints were told: each delivery against its event and its endpoint's place, and
those of one order against each other.

Streams deliveries and events side by side in the order of their subjects. Memory grows with the
outcomes of one order, and with the endpoints.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.audit_report import Groups, Report
from processors.audit_stock import stream
from processors.known import forgotten_before
from processors.tables import deliveries, endpoints, outbox
from processors.webhooks import EVENTS, ORDER_EVENTS, event_id

SUCCESS = range(200, 300)


class Place(Struct, frozen=True):
    """Up to which event an endpoint was told; None: it is gone from
    the settings. `forgotten_us`: before which instant orders may be gone."""

    event: int | None
    forgotten_us: int


def audit_deliveries(connection: Connection, report: Report) -> None:
    """Rules told, place, turn and delivery."""
    places = _audit_endpoints(connection, report)
    forgotten_us = forgotten_before(connection)
    columns = outbox.c
    events = Groups(
        stream(
            connection,
            sa.select(
                columns.order_id, columns.round, columns.id, columns.type, columns.created_us
            ).order_by(columns.order_id),
        ),
        lambda _: None,  # nobody wanted it, or it is not told yet
    )
    rows = stream(
        connection,
        sa.select(deliveries).order_by(
            deliveries.c.subject, deliveries.c.endpoint, deliveries.c.id
        ),
    )
    for subject, of_subject in groupby(rows, key=lambda row: row.subject):
        there = {event.round: event for event in events.of(subject)}
        for name, of_endpoint in groupby(of_subject, key=lambda row: row.endpoint):
            place, queue = Place(places.get(name), forgotten_us), Queue(report)
            for row in of_endpoint:
                report.counts["deliveries"] += 1
                report.counts[f"deliveries {row.state}"] += 1
                _check_state(row, report)
                if row.type in ORDER_EVENTS:
                    _check_event(row, there.get(row.number), place, report)
                queue.next(row, place)
    events.rest()


def _audit_endpoints(connection: Connection, report: Report) -> dict[str, int]:
    """-> the place of each."""
    last = connection.scalar(sa.select(sa.func.max(outbox.c.id))) or 0
    places = {row.name: row.event for row in connection.execute(sa.select(endpoints))}
    for name, place in places.items():
        report.counts["endpoints"] += 1
        if place > last:
            text = f"endpoint {name} was told up to event {place}, the last one is {last}"
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
    if row.type in ORDER_EVENTS and row.event_id != event_id(row.subject, row.number):
        found.append("has an id that is not its event's")
    for text in found:
        _violate(report, "delivery", row, text)


def _check_event(row: Any, event: Any, place: Place, report: Report) -> None:
    if event is None or (event.type, event.created_us) != (row.type, row.created_us):
        if row.created_us < place.forgotten_us:
            report.counts["deliveries of forgotten orders"] += 1
        else:
            _violate(report, "told", row, f"is of an event {row.type} that is not there")
    elif place.event is not None and event.id > place.event:
        text = f"is of event {event.id}, its endpoint was told up to {place.event}"
        _violate(report, "place", row, text)


class Queue:
    """Rule turn, for the deliveries of one subject to one endpoint, in their order."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._number = -1
        self._first = True

    def next(self, row: Any, place: Place) -> None:
        """The next of them."""
        # Of an order that had the id before and is forgotten there may be some left.
        if row.created_us >= place.forgotten_us:
            if row.number <= self._number:
                text = f"is of outcome {row.number} and follows one of {self._number}"
                _violate(self._report, "turn", row, text)
            self._number = row.number
        if row.state != "waiting":
            return
        if place.event is None:
            _violate(self._report, "turn", row, "waits for an endpoint that is gone")
        if (row.next_us is not None) != self._first:
            text = "the first that waits, without a time" if self._first else "tried out of turn"
            _violate(self._report, "turn", row, f"is {text}")
        self._first = False


def _violate(report: Report, rule: str, row: Any, detail: str) -> None:
    report.violate(rule, f"delivery {row.id} to {row.endpoint} {detail}")

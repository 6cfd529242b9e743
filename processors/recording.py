"""Writes outcomes: one row per order and one event in the outbox, in the worker's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.jobs import Reading
from processors.pipeline import Outcome
from processors.statements import Hot, HotKeys, Row
from processors.store import StoreContended
from processors.tables import orders, outbox

CONTENT = ("customer", "reference", "metadata", "lines", "body_hash")
COLUMNS = (
    *("id", "round", "status", "reason", *CONTENT),
    *("ring_epoch", "ring_sequence", "accepted_us", "taken_us", "committed_us"),
    *("attempts", "cause", "payload"),
    *("owner", "request_id", "traceparent"),
)
NO_CONTENT: Row = (None,) * len(CONTENT)

Settled = tuple[Reading, Outcome | None]


class Known(NamedTuple):
    """What the database has of an id: the hash of the body, the last round that has an outcome."""

    body_hash: bytes | None
    round: int
    status: str


class Overtaken(StoreContended):
    """Somebody else has settled the same replay meanwhile: looked at again, it is known."""


class Recorder:
    """The statements that every batch runs, whatever its processor. `epoch`: of the ring."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch.to_bytes(8, "big")
        columns = orders.c.id, orders.c.body_hash, orders.c.round, orders.c.status
        self._known = HotKeys(sa.select(*columns), orders.c.id)
        self._insert_orders = Hot(
            sa.insert(orders),
            *COLUMNS,
        )
        self._insert_events = Hot(sa.insert(outbox), "order_id", "round", "type", "created_us")
        self._encode = msgspec.json.Encoder().encode

    def known(self, transaction: Connection, order_ids: Sequence[bytes]) -> dict[bytes, Known]:
        """Which of the ids have an outcome already."""
        return {row[0]: Known(*row[1:]) for row in self._known.all(transaction, order_ids)}

    def record(self, transaction: Connection, settled: Sequence[Settled]) -> None:
        """Stores what became of each job; None stands for the job's death. Raises Overtaken."""
        now = now_us()
        first = [self._order_row(*one, now) for one in settled if not one[0].item.round]
        self._insert_orders.many(transaction, first)
        if len(first) < len(settled):
            for one in settled:
                self._replay(transaction, *one, now)
        self._insert_events.many(
            transaction,
            [
                (job.item.key, job.item.round, f"order.{_status(outcome)}", now)
                for job, outcome in settled
            ],
        )

    def _replay(
        self, transaction: Connection, job: Reading, outcome: Outcome | None, now: int
    ) -> None:
        """Over the row that is dead with the round before, and over no other."""
        item = job.item
        if not item.round:
            return
        values = dict(zip(COLUMNS, self._order_row(job, outcome, now), strict=True))
        del values["id"], values["accepted_us"]  # it was accepted when it was posted
        settled = transaction.execute(
            sa.update(orders)
            .where(
                orders.c.id == item.key,
                orders.c.round == item.round - 1,
                orders.c.status == "dead",
            )
            .values(values)
        ).rowcount
        if not settled:
            raise Overtaken("a replay was settled by somebody else")

    def _order_row(self, job: Reading, outcome: Outcome | None, now: int) -> Row:
        item, death = job.item, job.death
        bare = death is not None and death.bare
        return (
            item.key,
            item.round,
            _status(outcome),
            outcome.reason if outcome else death and death.reason,
            *(NO_CONTENT if bare else self._content(job)),
            self._epoch,
            item.sequence,
            item.accepted_ns // 1000,
            job.taken_us,
            now,
            job.tries + 1,
            outcome.detail if outcome else death and death.cause,
            item.payload if bare else None,
            job.header.owner,
            job.header.request_id,
            job.header.traceparent,
        )

    def _content(self, job: Reading) -> Row:
        assert job.work is not None
        order = job.work.order
        return (
            order.customer,
            order.reference,
            self._encode(order.metadata).decode() if order.metadata else None,
            self._encode(order.lines).decode(),
            job.body_hash,
        )


def _status(outcome: Outcome | None) -> str:
    return "dead" if outcome is None else outcome.status

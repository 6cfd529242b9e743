"""What a worker does with orders: the `Processor` protocol, and `fefo`, the one that is built in.

Another one is put in with `--processor package.module:factory`, where `factory()` returns a
`Processor`. A worker calls its processor once per batch:

    def factory() -> Processor:
        def process(transaction, orders, moment_us):
            return [Outcome.rejected("closed_today") for _ in orders]
        return process

What the worker keeps to itself: the transaction, the check for redelivered orders, the rows of
orders and of the outbox, the commit and the retries. What the processor is given:

- `transaction`: a SQLAlchemy Connection inside a transaction, which on SQLite holds the database's
  write lock; on PostgreSQL lock the rows that you go by (`with_for_update`), in a fixed order.
  Whatever is written through it is committed together with the outcomes, or not at all. It must not
  be committed, rolled back or kept.
- `orders`: in the order of the ring. None of them has an outcome yet.
- `moment_us`: now; on SQLite read after the lock was held. Movements are stamped with it.

It returns one Outcome for each order, in their order. It raises Retry when an order can't be
decided yet, and anything else when it can't be decided at all: then the transaction is rolled back
and the orders are run one by one, so that each is blamed only for itself. So a processor may be
called several times for one order, and effects beyond the transaction must bear that.

The audit holds for every processor: an order that is `allocated` has movements of kind `allocate`
that cover each of its lines, first expired first out, and a rejected one has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, Protocol, Self

from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.schema import Order

REASON_CHARACTERS_MAX = 200
DETAIL_CHARACTERS_MAX = 1000


class Work(Struct, frozen=True):
    """An order to decide. `sequence` is its place in the ring, `tries` how often it was tried
    before this time, by this worker or one that died."""

    order_id: bytes
    sequence: int
    order: Order
    accepted_us: int
    tries: int


class Outcome(Struct, frozen=True):
    """What became of an order; `reason` (1 to 200 characters) and `detail` (at most 1000) only when
    it was rejected. No processor cancels."""

    status: Literal["allocated", "rejected", "cancelled"]
    reason: str | None = None
    detail: str | None = None

    @classmethod
    def rejected(cls, reason: str, detail: str | None = None) -> Self:
        """Nothing was given; the reason is for the client's program, the detail for people, who see
        it with `GET /orders/{id}?explain=true`."""
        return cls("rejected", reason, detail)


class Retry(Exception):
    """Raised by a processor: not now. The order is tried again after `after_s` seconds, longer
    each time, until it has been tried `--attempts` times; then it is dead."""

    def __init__(self, after_s: float, detail: str = "") -> None:
        if not (math.isfinite(after_s) and after_s >= 0):
            raise ValueError(f"Retry after {after_s} s: must be 0 or more seconds")
        super().__init__(detail or f"again after {after_s} s")
        self.after_s = after_s


class Processor(Protocol):
    """What a worker calls; see the head of this module."""

    def __call__(
        self, transaction: Connection, orders: Sequence[Work], moment_us: int, /
    ) -> Sequence[Outcome]: ...


class ProcessorError(Exception):
    """The processor can't be loaded, or answered with something that is no outcome."""


def load_processor(place: str) -> Processor:
    """Imports `package.module:factory` and calls the factory. Raises ProcessorError."""
    module, _, name = place.partition(":")
    try:
        factory: Callable[[], Processor] = getattr(import_module(module), name)
        processor = factory()
    except Exception as error:
        raise ProcessorError(f"{place} can't be loaded: {error!r} (--processor)") from error
    if not callable(processor):
        raise ProcessorError(f"{place} made {processor!r}, which can't be called (--processor)")
    return processor


def check_outcomes(outcomes: Sequence[Outcome], orders: Sequence[Work]) -> None:
    """Refuses answers that can't be stored; what is accepted here, the audit can judge."""
    if len(outcomes) != len(orders):
        raise ProcessorError(f"{len(outcomes)} outcomes for {len(orders)} orders")
    for outcome in outcomes:
        reason, detail = outcome.reason or "", outcome.detail or ""
        if outcome.status == "allocated" and outcome.reason is outcome.detail is None:
            continue
        fits = 1 <= len(reason) <= REASON_CHARACTERS_MAX and len(detail) <= DETAIL_CHARACTERS_MAX
        if outcome.status != "rejected" or not fits:
            raise ProcessorError(f"{outcome!r} is no outcome")


def fefo() -> Processor:
    """The default: allocation first expired, first out."""
    # The protocol above is what others import; what FEFO needs stays out of their way.
    from processors.allocation import Allocator  # noqa: PLC0415

    return Allocator()

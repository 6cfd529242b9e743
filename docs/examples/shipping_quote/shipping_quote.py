"""A processor of one's own: what is allocated gets a flat-rate shipping quote.

    rasher --processor shipping_quote:processor

Built around the allocation that Rasher comes with. Orders that no parcel can take are rejected
before they touch stock, the others go on to the allocation, and whatever it allocates gets a row in
`shipping_quotes`, in the same transaction: no order without its quote, no quote without its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from processors.pipeline import Outcome, Processor, Work, fefo

# Up to so many thousandths of a kilogram: so many cents.
RATES = ((5_000, 590), (20_000, 990), (100_000, 2_490))
TOO_HEAVY = Outcome.rejected("too_heavy_to_ship")
# "shipping" in ASCII: what two workers that make the table at once wait for on PostgreSQL.
TABLE_LOCK = 0x7368697070696E67

metadata = sa.MetaData()

# Quoted when? An order id may come anew once Rasher has forgotten the order (--retain-days), so the
# instant at which it was accepted belongs to the key.
quotes = sa.Table(
    "shipping_quotes",
    metadata,
    sa.Column("order_id", sa.LargeBinary(16), primary_key=True),
    sa.Column("accepted_us", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("grams", sa.BigInteger, nullable=False),
    sa.Column("cents", sa.BigInteger, nullable=False),
)


def grams_of(work: Work) -> int:
    """What an order weighs: quantities are kilograms, which Rasher counts in thousandths."""
    return sum(line.thousandths for line in work.order.lines)


def cents_for(grams: int) -> int | None:
    """The rate; None: no parcel takes that much."""
    return next((cents for limit, cents in RATES if grams <= limit), None)


class Quoting:
    """A `Processor`. Keeps nothing between batches but whether its table is there."""

    def __init__(self, allocate: Processor) -> None:
        self._allocate = allocate
        self._has_table = False

    def __call__(
        self, transaction: Connection, orders: Sequence[Work], moment_us: int
    ) -> list[Outcome]:
        self._make_table(transaction)
        fitting = [work for work in orders if cents_for(grams_of(work)) is not None]
        allocated = self._allocate(transaction, fitting, moment_us) if fitting else []
        outcomes = {
            work.order_id: outcome for work, outcome in zip(fitting, allocated, strict=True)
        }
        rows = [
            quote_row(work) for work in fitting if outcomes[work.order_id].status == "allocated"
        ]
        if rows:
            transaction.execute(sa.insert(quotes), rows)
        return [outcomes.get(work.order_id, TOO_HEAVY) for work in orders]

    def _make_table(self, transaction: Connection) -> None:
        """In the first batch's transaction. That may be rolled back, and the table with it, so only
        a table that was found is remembered."""
        if self._has_table:
            return
        self._has_table = sa.inspect(transaction).has_table(quotes.name)
        if self._has_table:
            return
        if transaction.dialect.name == "postgresql":
            transaction.execute(sa.select(sa.func.pg_advisory_xact_lock(TABLE_LOCK)))
        metadata.create_all(transaction)


def quote_row(work: Work) -> dict[str, object]:
    """The columns of `shipping_quotes`."""
    grams = grams_of(work)
    return {
        "order_id": work.order_id,
        "accepted_us": work.accepted_us,
        "grams": grams,
        "cents": cents_for(grams),
    }


def processor() -> Processor:
    """What `--processor` names; each worker calls it once."""
    return Quoting(fefo())

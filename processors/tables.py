"""The tables, in SQLAlchemy Core. `migrations/` makes them; a test proves that both agree.

Quantities are whole thousandths and instants are microseconds since 1970 UTC, both 64-bit integers.
Text that decides an order of use (`sku`, `lot_id`) compares byte by byte on every database.

On SQLite every table is STRICT: a float or a text can't creep into a quantity.

There is no table of allocations. An allocation *is* a movement of kind `allocate`: a second row
with the same numbers would cost one more write per order, and could disagree with the first.
"""

from __future__ import annotations

import sqlalchemy as sa

# SQLite knows one integer, of 64 bits, and only INTEGER PRIMARY KEY is its row number.
BigInt = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ByteText = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

metadata = sa.MetaData()


def one_of(column: str, *values: str) -> str:
    """The rule of a constraint. Not `IN (…)`: from three values on SQLite builds a table of them
    for each row that is written."""
    return " OR ".join(f"{column} = '{value}'" for value in values)


# One row per order with a final outcome. `ring_epoch` and `ring_sequence` say which slot it came
# through: within one epoch the sequence is the order of arrival. `payload` keeps the bytes of an
# order that can't be read as one (of a damaged one all of its slot's, record header first).
# `cause` explains a dead or rejected order to people, `reason` to programs. `owner`: the name of
# the API key that posted it; `request_id`, `traceparent`: of the request that did.
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.LargeBinary(16), primary_key=True),
    sa.Column("round", BigInt, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("customer", sa.Text),
    sa.Column("reference", sa.Text),
    sa.Column("metadata", sa.Text),
    sa.Column("lines", sa.Text),
    sa.Column("body_hash", sa.LargeBinary(16)),
    sa.Column("ring_epoch", sa.LargeBinary(8), nullable=False),
    sa.Column("ring_sequence", BigInt, nullable=False),
    sa.Column("accepted_us", BigInt, nullable=False),
    sa.Column("taken_us", BigInt, nullable=False),
    sa.Column("committed_us", BigInt, nullable=False),
    sa.Column("attempts", BigInt, nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("owner", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("traceparent", sa.Text),
    sa.CheckConstraint(
        one_of("status", "allocated", "rejected", "dead", "cancelled"), name="orders_status"
    ),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# In words that a query repeats to be served by the index. A dead letter that was let go stays as a
# tombstone with the next round.
IS_DEAD_LETTER = sa.text("status = 'dead' AND reason <> 'discarded'")
dead_letters_in_order = sa.Index(
    "dead_letters",
    orders.c.committed_us,
    orders.c.id,
    sqlite_where=IS_DEAD_LETTER,
    postgresql_where=IS_DEAD_LETTER,
)

# The row that is locked before a sku's stock is read or changed (processors/posting.py). `seq` =
# its last movement; those up to `folded` are gone, into its lots' opening balances
# (processors/retention.py). `available`: what its lots in use have, `expired`: what those have that
# expired and were not recalled. `low_below`: who takes `available` below it leaves an event; 0: no
# such event.
skus = sa.Table(
    "skus",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("sku", ByteText, nullable=False, unique=True),
    sa.Column("seq", BigInt, nullable=False),
    sa.Column("folded", BigInt, nullable=False, server_default=sa.text("0")),
    sa.Column("available", BigInt, nullable=False, server_default=sa.text("0")),
    sa.Column("expired", BigInt, nullable=False, server_default=sa.text("0")),
    sa.Column("low_below", BigInt, nullable=False, server_default=sa.text("0")),
    sqlite_strict=True,
)

# `available` is the lot's opening balance and the sum of its movements, kept so that nobody has to
# add them up. `opening` is null until the lot's receipt, its first movement, is folded into it.
# Recalled, a lot may not be touched by an allocation after its sku's movement `recalled_seq`, and
# expired not after its movement `expired_seq` of kind `expire`, whatever a clock says later.
# `received_seq`: of its receipt; null for one that was folded before there was this column.
lots = sa.Table(
    "lots",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("lot_id", ByteText, nullable=False, unique=True),
    sa.Column("sku_id", BigInt, sa.ForeignKey("skus.id"), nullable=False),
    sa.Column("received", BigInt, nullable=False),
    sa.Column("available", BigInt, nullable=False),
    sa.Column("expires_us", BigInt, nullable=False),
    sa.Column("received_us", BigInt, nullable=False),
    sa.Column("supplier", sa.Text),
    sa.Column("body_hash", sa.LargeBinary(16), nullable=False),
    sa.Column("opening", BigInt),
    sa.Column("recalled_us", BigInt),
    sa.Column("recalled_seq", BigInt),
    sa.Column("received_seq", BigInt),
    sa.Column("expired_seq", BigInt),
    sa.CheckConstraint("available >= 0", name="lots_available"),
    sqlite_strict=True,
)

# Every lot in the order of use, for pages and for the audit; written only when a lot is entered.
lots_in_order = sa.Index(
    "lots_in_order", lots.c.sku_id, lots.c.expires_us, lots.c.received_us, lots.c.lot_id
)

# What an order may be given from, in the order of use. Spent, recalled and expired lots leave the
# index, so an order costs the same on the first day and after a million lots.
IN_STOCK = sa.text("available > 0 AND recalled_us IS NULL AND expired_seq IS NULL")
lots_in_stock = sa.Index(
    "lots_in_stock",
    lots.c.sku_id,
    lots.c.expires_us,
    lots.c.received_us,
    lots.c.lot_id,
    sqlite_where=IN_STOCK,
    postgresql_where=IN_STOCK,
)
# Whose expiry is to be noted next, spent or not; with SQLite no order writes it.
NOT_EXPIRED = sa.text("expired_seq IS NULL")
lots_expiring = sa.Index(
    "lots_expiring", lots.c.expires_us, sqlite_where=NOT_EXPIRED, postgresql_where=NOT_EXPIRED
)

# A movement that is that much older than its order is of another one, which had the id before and
# was forgotten (at least a day later), after which the id was posted anew.
NAMESAKE_US = 43_200_000_000

# Append-only; only retention folds the oldest into opening balances. `at_us` is the moment used: an
# allocation may not touch a lot expired by then. `expire` changes no balance: what expired is still
# there, until somebody counts it away. `order_id` has no foreign key: the pipeline writes
# movements before the worker writes the order, a deferred check would cost a look-up per row, and
# the audit proves the same in both directions.
movements = sa.Table(
    "movements",
    metadata,
    sa.Column("sku_id", BigInt, primary_key=True, autoincrement=False),
    sa.Column("seq", BigInt, primary_key=True, autoincrement=False),
    sa.Column("lot", BigInt, sa.ForeignKey("lots.id"), nullable=False),
    sa.Column("delta", BigInt, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("order_id", sa.LargeBinary(16)),
    sa.Column("at_us", BigInt, nullable=False),
    sa.Column("reason", sa.Text),
    sa.CheckConstraint(
        one_of("kind", "receive", "adjust", "allocate", "return", "expire"), name="movements_kind"
    ),
    sa.CheckConstraint(
        "(kind IN ('allocate', 'return')) = (order_id IS NOT NULL)", name="movements_order_id"
    ),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)
OF_AN_ORDER = sa.text("order_id IS NOT NULL")
movements_of_order = sa.Index(
    "movements_of_order",
    movements.c.order_id,
    sqlite_where=OF_AN_ORDER,
    postgresql_where=OF_AN_ORDER,
)

# One event per outcome, in the transaction of the outcome; a cancel of an allocated order is one
# more outcome, of the next round. `id` is its place in the queue, and in lists of orders;
# what identifies an event to a receiver is (order_id, round, type), which survives a restore.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("order_id", sa.LargeBinary(16), nullable=False),
    sa.Column("round", BigInt, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("created_us", BigInt, nullable=False),
    sqlite_strict=True,
)
# Retention finds an order by its first event, and by this its others, if it was replayed. An index
# of all events would cost every order.
OF_A_REPLAY = sa.text("round > 0")
outbox_of_replayed = sa.Index(
    "outbox_of_replayed",
    outbox.c.order_id,
    sqlite_where=OF_A_REPLAY,
    postgresql_where=OF_A_REPLAY,
)

# What happened to stock, in the transaction in which it did. `low`: `quantity` is what is available
# after the sku's movement `seq`, less than `below`, which it was not before. `expired`: `quantity`
# is what `lot` held at its movement `seq` of kind `expire`. What identifies an event to a receiver
# is (sku, seq, type, created_us): with other thresholds a sku may be low twice at one movement.
stock_events = sa.Table(
    "stock_events",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("sku_id", BigInt, sa.ForeignKey("skus.id"), nullable=False),
    sa.Column("seq", BigInt, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("lot", BigInt, sa.ForeignKey("lots.id")),
    sa.Column("quantity", BigInt, nullable=False),
    sa.Column("below", BigInt),
    sa.Column("created_us", BigInt, nullable=False),
    sa.CheckConstraint("type IN ('stock.low', 'stock.expired')", name="stock_events_type"),
    sqlite_strict=True,
)

stock_events_of_sku = sa.Index("stock_events_of_sku", stock_events.c.sku_id, stock_events.c.seq)

# Below what a sku is low, in thousandths; the sku '' stands for all that have no row of their own.
low_stock = sa.Table(
    "low_stock",
    metadata,
    sa.Column("sku", ByteText, primary_key=True),
    sa.Column("below", BigInt, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# What an endpoint was told of is all up to `event` (outbox) and `stock_event`, and whatever of
# those has no row in `deliveries` was not wanted. Disabled: by its own answer; the settings may do
# the same. `failing_us`: for how long it has failed without taking anything, as far as a relay ran
# that tried it.
endpoints = sa.Table(
    "endpoints",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("event", BigInt, nullable=False),
    sa.Column("stock_event", BigInt, nullable=False),
    sa.Column("failing_us", BigInt, nullable=False, server_default=sa.text("0")),
    sa.Column("disabled_us", BigInt),
    sa.Column("why", sa.Text),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# One row per event and endpoint, written when an attempt has ended, or when the event has to wait
# behind an earlier one of its `subject` (the order's id, or the sku). `first_us`: of its first
# attempt; `next_us`: when it is tried again; `status`, `error`: of the last attempt.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", BigInt, primary_key=True),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("event_id", sa.LargeBinary(16), nullable=False),
    sa.Column("subject", sa.LargeBinary, nullable=False),
    sa.Column("number", BigInt, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("created_us", BigInt, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", BigInt, nullable=False),
    sa.Column("first_us", BigInt),
    sa.Column("next_us", BigInt),
    sa.Column("ended_us", BigInt),
    sa.Column("status", BigInt),
    sa.Column("error", sa.Text),
    sa.CheckConstraint(one_of("state", "waiting", "delivered", "failed"), name="deliveries_state"),
    sa.UniqueConstraint("event_id", "endpoint", name="deliveries_once"),
    sqlite_strict=True,
)
WAITING = sa.text("state = 'waiting'")
deliveries_waiting = sa.Index(
    "deliveries_waiting",
    deliveries.c.endpoint,
    deliveries.c.next_us,
    deliveries.c.id,
    sqlite_where=WAITING,
    postgresql_where=WAITING,
)
deliveries_behind = sa.Index(
    "deliveries_behind",
    deliveries.c.endpoint,
    deliveries.c.subject,
    deliveries.c.id,
    sqlite_where=WAITING,
    postgresql_where=WAITING,
)

# What a request with an Idempotency-Key was answered (JSON), where no row of its own tells.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.LargeBinary(16), primary_key=True),
    sa.Column("body_hash", sa.LargeBinary(16), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_us", BigInt, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)
requests_in_order = sa.Index("requests_in_order", requests.c.created_us)

# Facts of the database itself. `database_id`: 16 random bytes, made with it, that a journal bears;
# `touched`: changed only to have something to commit; `forgotten_before`: an instant (8 bytes, most
# significant first) before which orders and events of stock, and nothing else, may be gone.
meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# Patterns for errors that name one of these, which a database of before its migration has not.
ANY_TABLE = "|".join(metadata.tables)
ANY_COLUMN = "|".join(
    rf"{table.name}\.{column.name}" for table in metadata.tables.values() for column in table.c
)

"""What goes over the wire, as types: the OpenAPI document's schemas are made of them.

They decode nothing. Bodies are read by `processors.schema`, faster and with every error at once;
tests hold the two, and what is answered, to each other.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from processors.explaining import Why
from processors.inventory import State
from processors.paging import CURSOR_CHARACTERS_MAX, LIMIT_MAX
from processors.quantity import QUANTITY_MAX
from processors.refusal import CODE, UUID_TEXT, FieldError
from processors.schema import LINES_MAX, METADATA_BYTES_MAX, METADATA_PAIRS_MAX

UNITS_MAX = QUANTITY_MAX // 1000
ORDER_ID = "018f3a5e-5b1c-7cc0-8000-0123456789ab"

# ---- values --------------------------------------------------------------------------------------

# Of ten digits whatever is not above 1,000,000,000; a second pattern asks for one that counts.
_WHOLE = rf"(0?[0-9]{{1,9}}(\.[0-9]{{1,3}})?|{UNITS_MAX}(\.0{{1,3}})?)"
_COUNTS = {"allOf": [{"pattern": "[1-9]"}]}
QuantityText = Annotated[
    str, Meta(pattern=f"^{_WHOLE}$", examples=["12.5"], extra_json_schema=_COUNTS)
]
QuantityNumber = Annotated[float, Meta(ge=0.001, le=UNITS_MAX, examples=[12.5])]
DeltaText = Annotated[
    str, Meta(pattern=f"^-?{_WHOLE}$", examples=["-30"], extra_json_schema=_COUNTS)
]
DeltaNumber = Annotated[
    float,
    Meta(
        ge=-UNITS_MAX,
        le=UNITS_MAX,
        examples=[-30],
        extra_json_schema={"anyOf": [{"maximum": -0.001}, {"minimum": 0.001}]},
    ),
]
# A sum of many lots may be longer than one quantity.
QuantityOut = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]+(\.[0-9]{1,3})?$",
        description="without trailing zeros",
        examples=["12.5"],
    ),
]

_NO_CONTROL = r"^[^\u0000-\u001f\u007f]*$"
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=_NO_CONTROL)]
Reference = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\u0000]*$")]
Code = Annotated[str, Meta(pattern=f"^{CODE.pattern}$", examples=["PORK-BELLY"])]
OrderId = Annotated[
    str, Meta(pattern=f"^{UUID_TEXT.pattern}$", extra_json_schema={"format": "uuid"})
]
Instant = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
        r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
        description="RFC 3339 with an offset; decimals beyond the sixth are cut",
        examples=["2030-03-01T12:00:00Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
InstantOut = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
        examples=["2030-03-01T12:00:00.000000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Metadata = Annotated[
    dict[str, Annotated[str, Meta(max_length=METADATA_BYTES_MAX)]],
    Meta(
        max_length=METADATA_PAIRS_MAX,
        description=f"names and texts together at most {METADATA_BYTES_MAX} bytes of UTF-8",
    ),
]
Count = Annotated[int, Meta(ge=0)]
Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
Cursor = Annotated[str, Meta(max_length=CURSOR_CHARACTERS_MAX)]
DeliveryId = Annotated[str, Meta(pattern="^[1-9][0-9]{0,17}$", examples=["17"])]
DeliveryState: TypeAlias = Literal["waiting", "delivered", "failed"]
Status: TypeAlias = Literal["queued", "processing", "allocated", "rejected", "dead", "cancelled"]


# ---- requests ------------------------------------------------------------------------------------


class LineIn(Struct, forbid_unknown_fields=True):
    """One sku and how much of it: text, or a JSON number with at most three decimals."""

    sku: Code
    quantity: QuantityText | QuantityNumber


class OrderIn(Struct, forbid_unknown_fields=True):
    """An order. Each sku in one line only; null counts as absent."""

    customer: Annotated[Name, Meta(examples=["Funky Foods"])]
    lines: Annotated[list[LineIn], Meta(min_length=1, max_length=LINES_MAX)]
    order_id: OrderId | None = None
    reference: Reference | None = None
    metadata: Metadata | None = None


class LotIn(Struct, forbid_unknown_fields=True):
    """A lot that came in. Without `lot_id` it gets one, without `received_at` it is now."""

    sku: Code
    quantity: QuantityText | QuantityNumber
    expires_at: Instant
    lot_id: Code | None = None
    received_at: Instant | None = None
    supplier: Name | None = None


class AdjustmentIn(Struct, forbid_unknown_fields=True):
    """A correction of one lot's stock, up or down, never 0."""

    delta: DeltaText | DeltaNumber
    reason: Annotated[Name, Meta(examples=["spoilage"])]


# ---- answers -------------------------------------------------------------------------------------


class Accepted(Struct):
    """An order that was taken in. `position`: how many orders are ahead of it."""

    order_id: OrderId
    status: Status
    position: Count


class LineOut(Struct):
    """One line of an order."""

    sku: Code
    quantity: QuantityOut


class Allocation(Struct):
    """What was taken of a lot for the order."""

    sku: Code
    lot_id: Code
    quantity: QuantityOut
    expires_at: InstantOut


class Timings(Struct):
    """When the order was taken in, taken by a worker, committed, and told to the webhook."""

    accepted: InstantOut
    taken: InstantOut | UnsetType = UNSET
    committed: InstantOut | UnsetType = UNSET
    notified: InstantOut | UnsetType | None = UNSET


class Candidate(Struct):
    """A lot that was used for a line, or passed over, and why; `used`: what the order was given."""

    lot_id: Code
    expires_at: InstantOut
    received_at: InstantOut
    used: QuantityOut
    why: Why


class LineExplained(Struct):
    """The lots of a line, in the order of use. `moment`: what was not later than that had expired.
    `more_lots`: others were passed over, further away."""

    sku: Code
    quantity: QuantityOut
    moment: InstantOut
    lots: list[Candidate]
    more_lots: bool


class Explained(Struct):
    """Why these lots; `detail`: why it was rejected, null when it was not."""

    detail: str | None
    lines: list[LineExplained]


class OrderOut(Struct):
    """An order and how it fares. `position` only while it is queued; of an order that was damaged
    in memory, or let go as a dead letter, the content is missing or null. `explanation` only when
    it is asked for, and there is an outcome."""

    order_id: OrderId
    status: Status
    reason: str | None
    allocations: list[Allocation]
    timings: Timings
    position: Count | UnsetType = UNSET
    customer: str | UnsetType | None = UNSET
    reference: str | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET
    lines: list[LineOut] | UnsetType = UNSET
    explanation: Explained | UnsetType = UNSET


class LotOut(Struct):
    """A lot: what came in, and what is left."""

    lot_id: Code
    sku: Code
    quantity: QuantityOut
    available: QuantityOut
    expires_at: InstantOut
    received_at: InstantOut
    supplier: str | None
    state: State


class StockLot(Struct):
    """A lot within the stock of its sku."""

    lot_id: Code
    available: QuantityOut
    expires_at: InstantOut
    received_at: InstantOut
    state: State


class SkuOut(Struct):
    """The stock of a sku, lots in the order of use. `expired`: what lots have that expired, left
    out when that is nothing; `more_lots`: not all lots are shown."""

    sku: Code
    available: QuantityOut
    lots: list[StockLot]
    expired: QuantityOut | UnsetType = UNSET
    more_lots: bool | UnsetType = UNSET


class Adjusted(Struct):
    """The lot's balance after the adjustment."""

    lot_id: Code
    available: QuantityOut


class DeadLetterOut(Struct):
    """An order that could not be worked on. `round` counts its replays."""

    order_id: OrderId
    round: Count
    reason: str
    cause: str | None
    customer: str | None
    reference: str | None
    lines: list[LineOut]
    attempts: Count
    accepted_at: InstantOut
    died_at: InstantOut
    replayable: bool


class DeliveryOut(Struct):
    """An event, of an order or of a sku, and an endpoint that is told of it."""

    delivery_id: DeliveryId
    endpoint: str
    event_id: OrderId
    type: str
    order_id: OrderId | None
    sku: Code | None
    state: DeliveryState
    attempts: Count
    created_at: InstantOut
    next_attempt_at: InstantOut | None
    ended_at: InstantOut | None
    status: int | None
    error: str | None


class Deliveries(Struct):
    """A page of deliveries."""

    items: list[DeliveryOut]
    next_cursor: Cursor | None


class Lots(Struct):
    """A page of lots."""

    items: list[LotOut]
    next_cursor: Cursor | None


class Inventory(Struct):
    """A page of the stock."""

    items: list[SkuOut]
    next_cursor: Cursor | None


class DeadLetters(Struct):
    """A page of dead letters."""

    items: list[DeadLetterOut]
    next_cursor: Cursor | None


class ListedOrder(Struct):
    """An order as lists show it, without what it was given."""

    order_id: OrderId
    status: Status
    reason: str | None
    timings: Timings
    position: Count | UnsetType = UNSET
    customer: str | UnsetType | None = UNSET
    reference: str | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET
    lines: list[LineOut] | UnsetType = UNSET


class Orders(Struct):
    """A page of orders."""

    items: list[ListedOrder]
    next_cursor: Cursor | None


class Holder(Struct):
    """An allocated order, and how much of the lot it holds."""

    order_id: OrderId
    customer: str | None
    reference: str | None
    quantity: QuantityOut


class Holders(Struct):
    """A page of the orders that hold stock of a lot."""

    items: list[Holder]
    next_cursor: Cursor | None


class Recalled(Struct):
    """The lot as it is now, and the first of the orders that hold stock of it."""

    lot: LotOut
    orders: list[Holder]
    next_cursor: Cursor | None


class Alive(Struct):
    """The process answers."""

    status: Literal["alive"]


class Ready(Struct):
    """An order would be taken in. With `?verbose` also the figures; `drain_rate`: orders per
    second, null as long as nothing can be said."""

    status: Literal["ready"]
    degraded: list[Literal["database", "journal", "ring"]]
    depth: Count | UnsetType = UNSET
    capacity: Count | UnsetType = UNSET
    waiting: Count | UnsetType = UNSET
    drain_rate: float | UnsetType | None = UNSET


class Problem(Struct):
    """What went wrong (RFC 9457). `type` leads to its section in /docs/problems."""

    type: Annotated[str, Meta(examples=["/docs/problems#invalid"])]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    errors: list[FieldError] | UnsetType = UNSET


class LineResult(Struct):
    """What became of a line; lines count from 1. With `order_id` it was taken in; with `error` it
    was refused, with the problem its order would have got alone. `stopped`: from this line on
    nothing was looked at; `retry_after`: seconds."""

    line: Annotated[int, Meta(ge=1)]
    order_id: OrderId | UnsetType = UNSET
    error: Problem | UnsetType = UNSET
    stopped: bool | UnsetType = UNSET
    retry_after: Annotated[int, Meta(ge=1)] | UnsetType = UNSET


class BulkResults(Struct):
    """What became of every line that is not empty, in their order."""

    items: list[LineResult]
    accepted: Count
    refused: Count

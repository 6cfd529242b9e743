"""Calls about orders."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ingest import shapes
from ingest.catalogue.common import (
    BODY,
    ETAG,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    INSTANT,
    KEYED,
    LINE,
    LINK,
    LOCATION,
    LOT_ID,
    PAGING,
    REPLAYED,
    TAKING_IN,
    refusal,
)
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.patience import WAIT_S_MAX
from ingest.problems import (
    BAD_QUERY,
    DATABASE_AWAY,
    ID_TAKEN,
    INVALID,
    KEY_NAMES_ANOTHER_ID,
    NO_SUCH_ORDER,
    NOT_CANCELLABLE,
    ORDER_TOO_LARGE,
    RECOVERING,
)
from ingest.shapes import ORDER_ID

PREFER = Parameter(
    "Prefer",
    str,
    f"`wait=N` (RFC 7240): the outcome, if there is one within N seconds, at most {WAIT_S_MAX};"
    " what is not understood is ignored",
    "header",
)
APPLIED = Parameter("Preference-Applied", str, "`wait=N`")
WAIT = Parameter(
    "wait",
    Annotated[int, Meta(ge=0, le=WAIT_S_MAX)],
    "seconds: answer as soon as there is an outcome, or with what is known then",
)

EXPLAIN = Parameter(
    "explain",
    Literal["true", "false"],
    "true: with why these lots, which were passed over and why, once there is an outcome",
)

POST_ORDER = Operation(
    name="postOrder",
    tag="Orders",
    summary="Order",
    text="The order is taken in, on disk if the service says so, and worked off later. While the"
    " ring is full the request waits, first come first served. Whoever may have to repeat a"
    " request chooses an `order_id` or an `Idempotency-Key` and repeats the very body.",
    parameters=(IDEMPOTENCY_KEY, PREFER),
    body=shapes.OrderIn,
    replies={
        200: Reply(
            "its outcome, in the time that was asked for",
            shapes.OrderOut,
            (LOCATION, REPLAYED, ETAG, APPLIED),
        ),
        202: Reply(
            "taken in, now or before",
            shapes.Accepted,
            (LOCATION, REPLAYED),
            links=("getOrder", "deleteOrder"),
        ),
    },
    problems=(*BODY, *KEYED, ORDER_TOO_LARGE, ID_TAKEN, KEY_NAMES_ANOTHER_ID, *TAKING_IN),
    examples=(
        Example(
            name="belly",
            status=202,
            text="an id chosen by the client",
            body={
                "order_id": ORDER_ID,
                "customer": "Funky Foods",
                "reference": "PO-4711",
                "metadata": {"dock": "7"},
                "lines": [LINE],
            },
            answer={"order_id": ORDER_ID, "status": "queued", "position": 0},
        ),
        Example(
            name="other-body",
            status=422,
            text="the same id, another body",
            body={"order_id": ORDER_ID, "customer": "Somebody", "lines": [LINE]},
            answer=refusal(ID_TAKEN, f"order_id {ORDER_ID} was posted before with another body"),
        ),
        Example(
            name="nothing-ordered",
            status=422,
            body={"customer": "", "lines": []},
            answer=refusal(
                INVALID,
                "2 fields are not valid",
                errors=[
                    {"pointer": "/customer", "detail": "must have 1 to 200 characters, has 0"},
                    {"pointer": "/lines", "detail": "must have 1 to 100 lines, has 0"},
                ],
            ),
        ),
    ),
)

BELLY: dict[str, Any] = {
    "order_id": ORDER_ID,
    "status": "allocated",
    "reason": None,
    "customer": "Funky Foods",
    "reference": "PO-4711",
    "metadata": {"dock": "7"},
    "lines": [LINE],
    "allocations": [{**LINE, "lot_id": LOT_ID, "expires_at": INSTANT}],
    "timings": {
        "accepted": INSTANT,
        "taken": INSTANT,
        "committed": INSTANT,
        "notified": None,
    },
}

GET_ORDER = Operation(
    name="getOrder",
    tag="Orders",
    summary="How an order fares",
    text="Found from the moment it was answered 202. Allocated in full or rejected in full.",
    parameters=(WAIT, EXPLAIN, IF_NONE_MATCH),
    replies={
        200: Reply("the order", shapes.OrderOut, (ETAG,), links=("getDeadLetter",)),
        304: Reply("as it was", None, (ETAG,)),
    },
    problems=(BAD_QUERY, NO_SUCH_ORDER, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"order_id": ORDER_ID},
            answer=BELLY,
        ),
        Example(
            name="unknown",
            status=404,
            given={"order_id": "00000000-0000-4000-8000-000000000000"},
            answer=refusal(NO_SUCH_ORDER, "no order 00000000-0000-4000-8000-000000000000"),
        ),
    ),
)

GET_ORDERS = Operation(
    name="getOrders",
    tag="Orders",
    summary="Orders",
    text="The newest first: those that have an outcome, or with `status` `queued` or `processing`"
    " what the ring and the workers' hands hold now. With a filter a page may have few items or"
    " none and still a next one: follow `Link` until there is none.",
    parameters=(
        Parameter("status", shapes.Status, "only those"),
        Parameter("customer", shapes.Name, "only of exactly that customer"),
        Parameter("reference", shapes.Reference, "only of exactly that reference"),
        *PAGING,
    ),
    replies={200: Reply("a page", shapes.Orders, (LINK,))},
    problems=(BAD_QUERY, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"status": "allocated", "customer": "Funky Foods", "limit": 10},
            answer={
                "items": [{name: one for name, one in BELLY.items() if name != "allocations"}],
                "next_cursor": None,
            },
        ),
        Example(
            name="no-limit",
            status=422,
            given={"limit": 0},
            answer=refusal(BAD_QUERY, "limit must be from 1 to 1000, is 0"),
        ),
    ),
)

DELETE_ORDER = Operation(
    name="deleteOrder",
    tag="Orders",
    summary="Cancel an order",
    text="While it is queued or processing, whoever gives it its outcome first wins, this call or a"
    " worker. What was allocated goes back to the same lots, once. It can be repeated.",
    replies={200: Reply("cancelled, now or before", shapes.OrderOut)},
    problems=(NO_SUCH_ORDER, NOT_CANCELLABLE, RECOVERING, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"order_id": ORDER_ID},
            answer={**BELLY, "status": "cancelled", "allocations": []},
        ),
    ),
)

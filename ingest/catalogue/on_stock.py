"""Calls about stock."""

from __future__ import annotations

from ingest import shapes
from ingest.catalogue.common import (
    BODY,
    IDEMPOTENCY_KEY,
    INSTANT,
    KEYED,
    LIMIT,
    LINK,
    LOCATION,
    LOT_ID,
    PAGING,
    REPLAYED,
    refusal,
)
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.problems import (
    BAD_QUERY,
    BELOW_ZERO,
    DATABASE_AWAY,
    KEY_TAKEN,
    LOT_EXISTS,
    NO_SUCH_LOT,
    NO_SUCH_SKU,
)
from ingest.shapes import ORDER_ID
from processors.inventory import State

LOT = {"lot_id": LOT_ID, "sku": "PORK-BELLY", "quantity": "100", "expires_at": INSTANT}

LOT_OUT = {
    **LOT,
    "available": "100",
    "received_at": "2026-01-01T00:00:00.000000Z",
    "supplier": "Farm 7",
    "state": "available",
}

_LOT_IN = {**LOT, "received_at": "2026-01-01T00:00:00Z", "supplier": "Farm 7"}

STOCK_LOT = {name: LOT_OUT[name] for name in shapes.StockLot.__struct_fields__}

POST_LOT = Operation(
    name="postLot",
    tag="Stock",
    summary="Enter a lot",
    text="A lot may be entered when it has already expired. `lot_id` is unique over all skus.",
    parameters=(IDEMPOTENCY_KEY,),
    body=shapes.LotIn,
    replies={
        201: Reply(
            "entered",
            shapes.LotOut,
            (LOCATION,),
            links=("postAdjustment", "getHolders", "postRecall"),
        ),
        200: Reply("entered before, with this body", shapes.LotOut, (LOCATION,)),
    },
    problems=(*BODY, *KEYED, LOT_EXISTS, DATABASE_AWAY),
    examples=(
        Example(name="belly", status=201, body=_LOT_IN, answer=LOT_OUT),
        Example(name="again", status=200, body=_LOT_IN, answer=LOT_OUT),
        Example(
            name="other-body",
            status=409,
            body={**LOT, "quantity": 99},
            answer=refusal(LOT_EXISTS, f"lot {LOT_ID} is there already, with another body"),
        ),
    ),
)

GET_LOTS = Operation(
    name="getLots",
    tag="Stock",
    summary="Lots",
    text="In the order of use, sku by sku. With a `state` a page may be short or empty and still"
    " have a next one.",
    parameters=(
        Parameter("sku", shapes.Code, "only lots of this sku"),
        Parameter("state", State, "only lots in this state, as of now"),
        *PAGING,
    ),
    replies={200: Reply("a page", shapes.Lots, (LINK,))},
    problems=(BAD_QUERY, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"sku": "PORK-BELLY", "limit": 10},
            answer={"items": [LOT_OUT], "next_cursor": None},
        ),
        Example(
            name="recalled",
            status=200,
            given={"state": "recalled"},
            answer={"items": [], "next_cursor": None},
        ),
        Example(
            name="no-limit",
            status=422,
            given={"limit": 0},
            answer=refusal(BAD_QUERY, "limit must be from 1 to 1000, is 0"),
        ),
    ),
)

POST_ADJUSTMENT = Operation(
    name="postAdjustment",
    tag="Stock",
    summary="Correct a lot",
    text="Spoilage, counts, returns. With an `Idempotency-Key` a repeat changes nothing and is"
    " answered as the first time.",
    parameters=(IDEMPOTENCY_KEY,),
    body=shapes.AdjustmentIn,
    replies={201: Reply("corrected", shapes.Adjusted, (REPLAYED,))},
    problems=(*BODY, *KEYED, NO_SUCH_LOT, BELOW_ZERO, KEY_TAKEN, DATABASE_AWAY),
    examples=(
        Example(
            name="spoiled",
            status=201,
            given={"lot_id": LOT_ID},
            body={"delta": "-30", "reason": "spoilage"},
            answer={"lot_id": LOT_ID, "available": "70"},
        ),
        Example(
            name="too-much",
            status=409,
            given={"lot_id": LOT_ID},
            body={"delta": "-1000", "reason": "count"},
            answer=refusal(BELOW_ZERO, f"lot {LOT_ID} has 70: it would go below zero"),
        ),
    ),
)

GET_INVENTORY = Operation(
    name="getInventory",
    tag="Stock",
    summary="The stock of every sku",
    parameters=PAGING,
    replies={200: Reply("a page", shapes.Inventory, (LINK,))},
    problems=(BAD_QUERY, DATABASE_AWAY),
    examples=(
        Example(
            name="all",
            status=200,
            answer={
                "items": [{"sku": "PORK-BELLY", "available": "100", "lots": [STOCK_LOT]}],
                "next_cursor": None,
            },
        ),
    ),
)

GET_SKU = Operation(
    name="getSku",
    tag="Stock",
    summary="The stock of a sku",
    text="Used first expired, first out: by `expires_at`, then `received_at`, then lot id.",
    replies={200: Reply("its lots", shapes.SkuOut)},
    problems=(NO_SUCH_SKU, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"sku": "PORK-BELLY"},
            answer={"sku": "PORK-BELLY", "available": "100", "lots": [STOCK_LOT]},
        ),
        Example(
            name="unknown",
            status=404,
            given={"sku": "CHALK"},
            answer=refusal(NO_SUCH_SKU, "no lot of CHALK ever"),
        ),
    ),
)

POST_RECALL = Operation(
    name="postRecall",
    tag="Stock",
    summary="Recall a lot",
    text="It is never used again, for good. The answer has the first of the orders that hold stock"
    " of it now, the last allocated first; `Link` leads to more. It can be repeated.",
    parameters=(LIMIT,),
    replies={
        200: Reply("recalled, now or before", shapes.Recalled, (LINK,), links=("getHolders",))
    },
    problems=(BAD_QUERY, NO_SUCH_LOT, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"lot_id": LOT_ID},
            answer={
                "lot": {**LOT_OUT, "available": "70", "state": "recalled"},
                "orders": [],
                "next_cursor": None,
            },
        ),
    ),
)

GET_HOLDERS = Operation(
    name="getHolders",
    tag="Stock",
    summary="The orders that hold stock of a lot",
    text="Recalled or not. A page may be short or empty and still have a next one.",
    parameters=PAGING,
    replies={200: Reply("a page", shapes.Holders, (LINK,))},
    problems=(BAD_QUERY, NO_SUCH_LOT, DATABASE_AWAY),
    examples=(
        Example(
            name="belly",
            status=200,
            given={"lot_id": LOT_ID},
            answer={
                "items": [
                    {
                        "order_id": ORDER_ID,
                        "customer": "Funky Foods",
                        "reference": "PO-4711",
                        "quantity": "12.5",
                    }
                ],
                "next_cursor": None,
            },
        ),
    ),
)

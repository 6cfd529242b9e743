"""`POST /orders/bulk`, described."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ingest import shapes
from ingest.catalogue.common import IDEMPOTENCY_KEY, KEYED, TAKING_IN, refusal
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.problems import BAD_QUERY, BULKS_FULL, INVALID, LINE_TOO_LARGE, RESULTS_FULL, WRONG_TYPE
from ingest.shapes import ORDER_ID

NDJSON = "application/x-ndjson"
Lines = Annotated[str, Meta(extra_json_schema={"contentMediaType": NDJSON})]
BULK_ID = ORDER_ID[:-2] + "b1"
GOOD = (
    f'{{"order_id":"{BULK_ID}","customer":"Funky Foods",'
    '"lines":[{"sku":"PORK-BELLY","quantity":"1"}]}'
)

POST_BULK = Operation(
    name="postBulk",
    tag="Orders",
    summary="Order many at once",
    text="One order a line (NDJSON), as many as you like: nothing is read faster than the ring"
    " takes orders. Every line that is not empty has a result, in the order of the lines; one that"
    " is refused, as the order alone would be or as"
    f" [`{LINE_TOO_LARGE.name}`]({LINE_TOO_LARGE.uri}), does not keep the others from"
    " being taken in. With `Accept: application/x-ndjson` results come one a line while you still"
    " send: read them while you send."
    " With an `Idempotency-Key` a line without `order_id` gets an id that follows from key and line"
    " number, so the same bulk again is the same orders.",
    parameters=(
        IDEMPOTENCY_KEY,
        Parameter("errors_only", bool, "only the results of lines that were refused"),
    ),
    body=Lines,
    body_media=NDJSON,
    replies={
        200: Reply("a result for each line", shapes.BulkResults, also=((NDJSON, Lines),)),
    },
    problems=(*KEYED, WRONG_TYPE, BAD_QUERY, *TAKING_IN, BULKS_FULL, RESULTS_FULL),
    examples=(
        Example(
            name="two-lines",
            status=200,
            text="one good, one bad",
            body=f"{GOOD}\n{{}}\n",
            answer={
                "items": [
                    {"line": 1, "order_id": BULK_ID},
                    {
                        "line": 2,
                        "error": refusal(
                            INVALID,
                            "2 fields are not valid",
                            errors=[
                                {"pointer": "/customer", "detail": "required"},
                                {"pointer": "/lines", "detail": "required"},
                            ],
                        ),
                    },
                ],
                "accepted": 1,
                "refused": 1,
            },
        ),
    ),
)

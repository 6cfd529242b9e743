"""Calls about deliveries of webhooks."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ingest import shapes
from ingest.catalogue.common import LINK, PAGING, refusal
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.problems import BAD_QUERY, DATABASE_AWAY, ENDPOINT_GONE, NO_SUCH_DELIVERY
from processors.webhooks import NAME

ENDPOINT = Annotated[str, Meta(pattern=f"^{NAME.pattern}$", examples=["shop"])]

GET_DELIVERIES = Operation(
    name="getDeliveries",
    tag="Webhooks",
    summary="What endpoints were told",
    text="The newest first: what was delivered, waits for its next attempt, or failed for good."
    " A page looks through 5,000 of them, so it may be short and still have a next one.",
    parameters=(
        Parameter("state", shapes.DeliveryState, "only those"),
        Parameter("endpoint", ENDPOINT, "only those of this endpoint"),
        *PAGING,
    ),
    replies={200: Reply("a page", shapes.Deliveries, (LINK,))},
    problems=(BAD_QUERY, DATABASE_AWAY),
    examples=(Example(name="none", status=200, answer={"items": [], "next_cursor": None}),),
)

POST_RESEND = Operation(
    name="postResend",
    tag="Webhooks",
    summary="Send it once more",
    text="Whatever became of it before. The event keeps its id: a receiver that has it knows it.",
    replies={202: Reply("it is sent as soon as the endpoint takes it", shapes.DeliveryOut)},
    problems=(NO_SUCH_DELIVERY, ENDPOINT_GONE, DATABASE_AWAY),
    examples=(
        Example(
            name="unknown",
            status=404,
            given={"delivery_id": "17"},
            answer=refusal(NO_SUCH_DELIVERY, "no delivery 17"),
        ),
    ),
)

"""The call that goes on telling."""

from __future__ import annotations

from ingest import shapes
from ingest.operation import Operation, Parameter, Reply
from ingest.problems import BAD_QUERY, DATABASE_AWAY, NO_SUCH_ORDER, TOO_MANY_LISTENERS

GET_EVENTS = Operation(
    name="getEvents",
    tag="Events",
    summary="What happens, as it happens",
    text=(
        "Server-sent events. Without `order_id` the counters of all processes, each second, until"
        " the client goes; with it that order's progress, until it has its outcome."
    ),
    parameters=(
        Parameter("order_id", shapes.OrderId, "the order whose progress is told"),
        Parameter(
            "Last-Event-ID",
            str,
            "the `id` of the last event that came: it is not told again",
            "header",
        ),
    ),
    replies={
        200: Reply("a stream of events", str, media="text/event-stream"),
        204: Reply("the outcome is known to whoever asks: come no more"),
    },
    problems=(BAD_QUERY, NO_SUCH_ORDER, TOO_MANY_LISTENERS, DATABASE_AWAY),
)

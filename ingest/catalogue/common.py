"""What several calls share."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from ingest import shapes
from ingest.operation import Parameter
from ingest.problems import (
    BAD_IDEMPOTENCY_KEY,
    DATABASE_AWAY,
    DRAINING,
    INVALID,
    JOURNAL_FULL,
    MALFORMED,
    NO_LOCK,
    RECOVERING,
    RING_FULL,
    TOO_LARGE,
    WRONG_TYPE,
    ProblemType,
)

# What every call with a body may be told, and every call that puts something into the ring.
BODY = (MALFORMED, TOO_LARGE, WRONG_TYPE, INVALID)
TAKING_IN = (RING_FULL, DRAINING, RECOVERING, JOURNAL_FULL, DATABASE_AWAY, NO_LOCK)
KEYED = (BAD_IDEMPOTENCY_KEY,)

_KEY = r'^([!#-~][!-~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$'
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    Annotated[str, Meta(pattern=_KEY, examples=["order-4711"])],
    "bare without blanks, or in double quotes; 1 to 255 characters of ASCII",
    "header",
)
IF_NONE_MATCH = Parameter(
    "If-None-Match", str, "the `ETag` of an earlier answer: 304 if nothing has changed", "header"
)
LIMIT = Parameter("limit", shapes.Limit, "most items of the page; 100 if left out")
CURSOR = Parameter("cursor", shapes.Cursor, "where the page before ended: follow its `Link`")
LOCATION = Parameter("Location", str, "the path of what was made")
REPLAYED = Parameter("Idempotency-Replayed", str, "`true` for a repeat: nothing was made anew")
ETAG = Parameter("ETag", str, "of this version, for `If-None-Match`")
LINK = Parameter("Link", str, 'the next page, `rel="next"`; missing on the last one')
PAGING = (LIMIT, CURSOR)

LINE = {"sku": "PORK-BELLY", "quantity": "12.5"}
LOT_ID = "PB-2030-03-01"
INSTANT = "2030-03-01T12:00:00.000000Z"


def refusal(kind: ProblemType, detail: str, **more: Any) -> dict[str, Any]:
    """A problem as an example shows it."""
    return {"type": kind.uri, "title": kind.title, "status": kind.status, "detail": detail, **more}

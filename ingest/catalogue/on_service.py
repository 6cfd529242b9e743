"""Calls about the service itself: its health, and its documentation."""

from __future__ import annotations

from typing import Any

from ingest import shapes
from ingest.catalogue.common import (
    ETAG,
    IF_NONE_MATCH,
    LOCATION,
)
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.problems import (
    DRAINING,
    JOURNAL_FULL,
    NO_SUCH_PATH,
    RECOVERING,
    RING_FULL,
)

GET_METRICS = Operation(
    name="getMetrics",
    tag="Health",
    summary="Figures for Prometheus",
    replies={200: Reply("the text format", str, media="text/plain")},
)

GET_LIVEZ = Operation(
    name="getLivez",
    tag="Health",
    summary="Whether the process answers",
    replies={200: Reply("it does", shapes.Alive)},
    examples=(Example(name="alive", status=200, answer={"status": "alive"}),),
)

GET_READYZ = Operation(
    name="getReadyz",
    tag="Health",
    summary="Whether an order would be taken in",
    parameters=(Parameter("verbose", str, "with the figures"),),
    replies={200: Reply("it would", shapes.Ready)},
    problems=(RING_FULL, DRAINING, RECOVERING, JOURNAL_FULL),
    examples=(Example(name="ready", status=200, answer={"status": "ready", "degraded": []}),),
)

GET_OPENAPI = Operation(
    name="getOpenapi",
    tag="This documentation",
    summary="This document",
    parameters=(IF_NONE_MATCH,),
    replies={
        200: Reply("OpenAPI 3.1", dict[str, Any], (ETAG,)),
        304: Reply("as it was", None, (ETAG,)),
    },
)

GET_DOCS = Operation(
    name="getDocs",
    tag="This documentation",
    summary="The calls, to read and to try",
    replies={200: Reply("a page", str, media="text/html")},
)

GET_PROBLEMS = Operation(
    name="getProblems",
    tag="This documentation",
    summary="Every type of problem",
    replies={200: Reply("a page", str, media="text/html")},
)

GET_ASSET = Operation(
    name="getAsset",
    tag="This documentation",
    summary="A file of the pages",
    text="Pages name it with its hash, so it may be kept for ever.",
    parameters=(IF_NONE_MATCH,),
    replies={
        200: Reply("script, style or picture", str, (ETAG,), media="*/*"),
        304: Reply("as it was", None, (ETAG,)),
    },
    problems=(NO_SUCH_PATH,),
)

GET_ROOT = Operation(
    name="getRoot",
    tag="This documentation",
    summary="To the documentation",
    replies={307: Reply("to /docs", None, (LOCATION,))},
)

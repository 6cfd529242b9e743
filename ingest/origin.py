"""Where an order comes from: whose key posted it, and what its request was called.

`X-Request-ID` is the client's or its proxy's own name for a request; every answer repeats it.
`traceparent` is W3C Trace Context's; one that is not valid is ignored, as it demands. Both go with
the order through the ring to its row, its events and every line that is logged about it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from msgspec import Struct

from ingest.answers import Answer, Headers, Refused, problem
from ingest.exchange import Application, Receive, Scope, Send, deliver, header
from ingest.problems import BAD_REQUEST_ID
from processors.logs import about
from processors.schema import RecordHeader, encode_header

REQUEST_ID_CHARACTERS_MAX = 128
REQUEST_ID, TRACEPARENT = b"x-request-id", b"traceparent"
# Where in the scope the names are, and the identity that the keys gave the request, if any.
NAMES, IDENTITY = "rasher.names", "rasher.identity"

_VISIBLE = re.compile(rb"[\x21-\x7e]{1,%d}" % REQUEST_ID_CHARACTERS_MAX)
# version, trace id, parent id, flags; later versions may append.
_TRACEPARENT = re.compile(
    rb"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?"
)


class Origin(Struct, frozen=True):
    """`header`: the same as the record header of an order; `echo`: what answers repeat."""

    owner: str | None
    request_id: str | None
    traceparent: str | None
    header: bytes
    echo: Headers


class Names(NamedTuple):
    """What a request is called by others."""

    request_id: str | None
    traceparent: str | None


NOBODY = Origin(None, None, None, b"", ())
NAMELESS = Names(None, None)


def make_origin(owner: str | None, names: Names = NAMELESS) -> Origin:
    """Of an order that this key's owner posts in a request of these names."""
    if owner is None and names == NAMELESS:
        return NOBODY
    record = RecordHeader(b"", owner, names.request_id, names.traceparent)
    return Origin(owner, *names, encode_header(record), echo(names.request_id))


def read_names(request_id: bytes | None, traceparent: bytes | None) -> Names:
    """From the headers of a request; Refused (400) for an X-Request-ID that can't be kept."""
    if request_id is not None and _VISIBLE.fullmatch(request_id) is None:
        raise Refused(bad_request_id(request_id))
    parts = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    if parts is not None and parts[2] and parts[1].startswith(b"00"):
        parts = None
    return Names(
        None if request_id is None else request_id.decode("ascii"),
        None if parts is None else parts[1].decode("ascii"),
    )


def origin_of(scope: Scope) -> Origin:
    """Of an order that this request brings."""
    return make_origin(owner_of(scope), scope.get(NAMES, NAMELESS))


def owner_of(scope: Scope) -> str | None:
    """The name of the key that the request came with; None where there are no keys."""
    identity = scope.get(IDENTITY)
    return None if identity is None else str(identity.name)


def echo(request_id: str | None) -> Headers:
    """The header that repeats it."""
    return () if request_id is None else ((REQUEST_ID, request_id.encode("ascii")),)


def bad_request_id(value: bytes) -> Answer:
    """400."""
    detail = (
        f"X-Request-ID must be 1 to {REQUEST_ID_CHARACTERS_MAX} visible ASCII characters,"
        f" this one has {len(value)}"
    )
    return problem(BAD_REQUEST_ID, detail)


class Traced:
    """An application whose answers and log lines bear the request's id."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, traceparent = header(scope, REQUEST_ID), header(scope, TRACEPARENT)
        if request_id is None and traceparent is None:
            await self._app(scope, receive, send)
            return
        try:
            names = read_names(request_id, traceparent)
        except Refused as refused:
            await deliver(refused.answer, receive, send)
            return
        scope[NAMES] = names
        with about(*names):
            await self._app(scope, receive, _echoing(send, echo(names.request_id)))


def _echoing(send: Send, headers: Headers) -> Send:
    """In front of the answer's own headers, as the lane has them."""

    async def echoing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*headers, *message["headers"]]
        await send(message)

    return echoing if headers else send

"""Answers: status, headers and body as bytes, made before anything is sent.

Every error is a problem (RFC 9457, `application/problem+json`), whoever finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from ingest.problems import INVALID, MISTAKE, ProblemType
from processors.refusal import FieldError
from processors.schema import format_uuid

Headers: TypeAlias = "tuple[tuple[bytes, bytes], ...]"

JSON: Headers = ((b"content-type", b"application/json"),)
PROBLEM: Headers = ((b"content-type", b"application/problem+json"),)
LOCATION = (b"location", b"/orders/")  # and the id
REPLAYED: Headers = ((b"idempotency-replayed", b"true"),)
CLOSE: Headers = ((b"connection", b"close"),)

_encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True):
    """One HTTP answer; `headers` without content-length.

    `unread_body`: the client may still be sending; see `deliver.deliver`.
    """

    status: int
    headers: Headers
    body: bytes
    unread_body: bool = False

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it."""
        return CLOSE[0] in self.headers


class Queued(Struct, frozen=True):
    """202 for an order that lies in the ring now, `position` orders before it."""

    key: bytes
    position: int

    def answer(self) -> Answer:
        """The same, of the parts that every answer has."""
        return order_answer(self.key, "queued", self.position)


class Unsynced(Struct, frozen=True):
    """An order that lies in the ring and is not on disk yet; `begun_ns`: when its request was
    whole, of time.perf_counter_ns."""

    key: bytes
    position: int
    begun_ns: int


class Refused(Exception):
    """Ends the handling of a request with an answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Unanswered(Exception):
    """Ends the handling of a request without an answer, and its connection: what it ordered is in
    the ring, so that 503 would be wrong, and 202 can't be promised."""


class Problem(Struct, omit_defaults=True):
    """The body of an error; `type` is one of `problems.PROBLEMS`."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


def json_answer(status: int, content: Any, headers: Headers = ()) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, JSON + headers, _encode(content))


def order_answer(key: bytes, status: str, position: int, headers: Headers = ()) -> Answer:
    """202 for an order that was taken in, now or before."""
    order_id = format_uuid(key)
    location = (LOCATION[0], LOCATION[1] + order_id.encode())
    body = f'{{"order_id":"{order_id}","status":"{status}","position":{position}}}'
    return Answer(202, (*JSON, location, *headers), body.encode())


def problem(
    kind: ProblemType, detail: str, headers: Headers = (), errors: list[FieldError] | None = None
) -> Answer:
    """An error answer; `detail` says the value, the limit and the flag where there are such."""
    content = Problem(kind.uri, kind.title, kind.status, detail, errors or [])
    return Answer(kind.status, PROBLEM + headers, _encode(content))


def invalid(errors: list[FieldError]) -> Answer:
    """422 with every field error."""
    count = "1 field is" if len(errors) == 1 else f"{len(errors)} fields are"
    return problem(INVALID, f"{count} not valid", errors=errors)


def unavailable(
    kind: ProblemType, detail: str, retry_after_s: int, headers: Headers = ()
) -> Answer:
    """503: nothing was taken in and nothing will be; try again after that many seconds."""
    return problem(kind, detail, ((b"retry-after", b"%d" % retry_after_s), *headers))


def server_mistake() -> Answer:
    """500; whoever makes it logs the traceback."""
    return problem(MISTAKE, "a mistake of the server, it is in its log")


def header_pairs(headers: Mapping[str, str] | None) -> Headers:
    """Text headers as bytes."""
    return tuple((name.encode(), value.encode()) for name, value in (headers or {}).items())

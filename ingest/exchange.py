"""One request's bytes: reading a body with a cap, sending an answer, dropping the unwanted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, TypeAlias

from ingest.answers import CLOSE, Answer, Refused, problem
from ingest.problems import TOO_LARGE, TOO_SLOW, WRONG_TYPE

Scope: TypeAlias = "dict[str, Any]"
Receive: TypeAlias = "Callable[[], Awaitable[Any]]"
Send: TypeAlias = "Callable[[Any], Awaitable[None]]"
Application: TypeAlias = "Callable[[Scope, Receive, Send], Awaitable[None]]"

# A client still sending when it is refused would see a reset instead of the answer, so the rest
# is read and dropped, within these bounds.
DROPPED_BYTES_MAX = 8 * 1024 * 1024
DROPPING_S_MAX = 2.0
BODY_S_MAX = 30.0

JSON_TYPE = re.compile(rb"application/json[ \t]*(?:;.*)?", re.IGNORECASE | re.DOTALL)


class HungUp(Exception):
    """The client is gone; there is nobody to answer."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The last header of that name (lower case)."""
    found = None
    for key, value in scope["headers"]:
        if key == name:
            found = value
    return found


async def read_json_body(scope: Scope, receive: Receive, body_bytes_max: int) -> bytes:
    """The body of a request that must be JSON.

    Raises Refused (408, 413, 415) and HungUp. The cap is checked against Content-Length before
    anything is read, then chunk by chunk.
    """
    content_type = header(scope, b"content-type")
    if content_type is None or JSON_TYPE.fullmatch(content_type.strip()) is None:
        raise Refused(wrong_type(content_type))
    length = header(scope, b"content-length")
    if length is not None and int(length) > body_bytes_max:
        raise Refused(too_large(f"{int(length)} bytes", body_bytes_max))
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await _read_body(receive, body_bytes_max)
    except TimeoutError:
        raise Refused(too_slow("body", BODY_S_MAX)) from None


async def _read_body(receive: Receive, body_bytes_max: int) -> bytes:
    first, more = await _next(receive)
    if not more and len(first) <= body_bytes_max:
        return first
    body = bytearray(first)
    while len(body) <= body_bytes_max:
        if not more:
            return bytes(body)
        chunk, more = await _next(receive)
        body += chunk
    raise Refused(too_large(f"more than {body_bytes_max} bytes", body_bytes_max, unread=more))


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise HungUp
    return message.get("body", b""), message.get("more_body", False)


async def deliver(answer: Answer, receive: Receive, send: Send) -> None:
    """Send an answer; with `unread_body`, then drop what the client still sends, then close."""
    headers = list(answer.headers)
    if answer.status not in (204, 304):  # there it would be the length of what is not sent
        headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if not answer.unread_body:
        await send({"type": "http.response.body", "body": answer.body})
        return
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    await _drop(receive)
    await send({"type": "http.response.body", "body": b""})


async def _drop(receive: Receive) -> None:
    dropped = 0
    try:
        async with asyncio.timeout(DROPPING_S_MAX):
            more = True
            while more and dropped < DROPPED_BYTES_MAX:
                chunk, more = await _next(receive)
                dropped += len(chunk)
    except (TimeoutError, HungUp):
        return


def with_etag(answer: Answer) -> Answer:
    """The answer with an ETag of its body, the last header."""
    tag = b'"%s"' % blake2b(answer.body, digest_size=12).hexdigest().encode()
    return Answer(answer.status, (*answer.headers, (b"etag", tag)), answer.body)


def unless_known(scope: Scope, answer: Answer) -> Answer:
    """An answer of `with_etag`; 304 when the client has that very version."""
    tag = answer.headers[-1][1]
    known = header(scope, b"if-none-match") or b""
    if tag in (part.strip().removeprefix(b"W/") for part in known.split(b",")):
        return Answer(304, ((b"etag", tag),), b"")
    return answer


def wrong_type(content_type: bytes | None, wanted: str = "application/json") -> Answer:
    """415."""
    found = "none" if content_type is None else repr(content_type[:100].decode("latin-1"))
    return problem(WRONG_TYPE, f"Content-Type must be {wanted}, is {found}")


def too_large(size: str, body_bytes_max: int, *, unread: bool = True) -> Answer:
    """413; `unread`: there is a rest of the body to be dropped."""
    detail = f"the body has {size}, the limit is {body_bytes_max} (--max-body-bytes)"
    refusal = problem(TOO_LARGE, detail, CLOSE)
    return Answer(refusal.status, refusal.headers, refusal.body, unread_body=unread)


def too_slow(part: str, limit_s: float) -> Answer:
    """408."""
    return problem(TOO_SLOW, f"the {part} of the request took longer than {limit_s:g} s", CLOSE)

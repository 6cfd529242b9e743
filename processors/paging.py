"""Pages: bounded, and continued by an opaque cursor that holds the last key shown."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
CURSOR_CHARACTERS_MAX = 256

T = TypeVar("T")
# A key part must fit the database's integers, or binding it raises.
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class CursorError(ValueError):
    """The cursor is none that a page of this list gave out."""


class Page(Struct, Generic[T], frozen=True):
    """`next_cursor` is None on the last page."""

    items: list[T]
    next_cursor: str | None


def bounded(limit: int) -> int:
    """The limit that is used for the one asked for: 1 to LIMIT_MAX."""
    return min(max(limit, 1), LIMIT_MAX)


def encode_cursor(key: tuple[Any, ...]) -> str:
    """URL-safe text of a key of numbers and short texts."""
    return urlsafe_b64encode(msgspec.msgpack.encode(key)).rstrip(b"=").decode("ascii")


def decode_cursor(cursor: str, shape: type[T]) -> T:
    """The key of a cursor, a tuple of `shape`; raises CursorError."""
    if len(cursor) > CURSOR_CHARACTERS_MAX:
        raise CursorError(f"cursor of {len(cursor)} characters; at most {CURSOR_CHARACTERS_MAX}")
    try:
        data = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        key = msgspec.msgpack.decode(data, type=shape)
    except (ValueError, msgspec.MsgspecError) as error:
        raise CursorError("not a cursor of this list; leave it out to begin anew") from error
    if isinstance(key, tuple) and any(isinstance(part, str) and "\0" in part for part in key):
        raise CursorError("not a cursor: it has U+0000, which not every database can look for")
    return key

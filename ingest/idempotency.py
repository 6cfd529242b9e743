"""`Idempotency-Key`: the id of an order follows from it, so that a repeat is the same order.

Nothing is stored: an id is looked for where every order is looked for (ring, hands, database).
"""

from __future__ import annotations

import re
from hashlib import blake2b

from ingest.answers import Refused, problem
from ingest.exchange import Scope, header
from ingest.problems import BAD_IDEMPOTENCY_KEY

HEADER = b"idempotency-key"
CHARACTERS_MAX = 255

# Bare, or a string of RFC 8941, in which `"` and `\\` are escaped.
_BARE = re.compile(rb"[\x21\x23-\x7e][\x21-\x7e]*")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED = re.compile(rb'\\(["\\])')
# RFC 9562: version 8 is for whoever makes ids his own way.
_VERSION, _VARIANT = 0x80, 0x80


def idempotency_key(scope: Scope) -> bytes | None:
    """The request's key without its quotes; Refused (400) for what is none."""
    value = header(scope, HEADER)
    if value is None:
        return None
    key = value.strip()
    quoted = _QUOTED.fullmatch(key)
    if quoted is not None:
        key = _ESCAPED.sub(rb"\1", quoted[1])
    elif _BARE.fullmatch(key) is None:
        key = b""
    if not 1 <= len(key) <= CHARACTERS_MAX:
        detail = (
            f"Idempotency-Key must be 1 to {CHARACTERS_MAX} characters of ASCII, bare and without"
            f" blanks or in double quotes; this one has {len(value)}"
        )
        raise Refused(problem(BAD_IDEMPOTENCY_KEY, detail))
    return key


def derived_id(owner: str | None, key: bytes, line: int | None = None) -> bytes:
    """The id, a UUIDv8, of the order that this owner posts with that key; `line`: of a bulk."""
    place = b"" if line is None else b"%d" % line
    parts = (b"rasher order", (owner or "").encode(), key, place)
    told_apart = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
    made = bytearray(blake2b(told_apart, digest_size=16).digest())
    made[6] = made[6] & 0x0F | _VERSION
    made[8] = made[8] & 0x3F | _VARIANT
    return bytes(made)

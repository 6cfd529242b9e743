"""How long a client would wait for an outcome: `Prefer: wait=N`, `?wait=N`."""

from __future__ import annotations

import re

from ingest.answers import Headers, Refused, problem
from ingest.exchange import Scope
from ingest.problems import BAD_QUERY

PREFER = b"prefer"
WAIT_S_MAX = 30
PREFER_BYTES_MAX = 1024  # what is longer is not read

# One preference of RFC 7240, without its parameters: `name`, `name=token`, `name="text"`.
_PREFERENCE = re.compile(
    rb'[ \t]*([^\s=;,"]+)[ \t]*(?:=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?'
)
_SECONDS = re.compile(rb"[0-9]{1,9}")


def preferred_wait_s(scope: Scope) -> int:
    """Of the request's Prefer headers, at most WAIT_S_MAX; 0 without one. What is not understood is
    ignored, as RFC 7240 wants it."""
    for name, value in scope["headers"]:
        if name != PREFER or len(value) > PREFER_BYTES_MAX:
            continue
        for part in _split(value):
            found = _PREFERENCE.match(part)
            if found is not None and found[1].lower() == b"wait":
                seconds = found[2] or found[3] or b""
                return min(int(seconds), WAIT_S_MAX) if _SECONDS.fullmatch(seconds) else 0
    return 0


def applied(wait_s: int) -> Headers:
    """That the preference was honoured."""
    return ((b"preference-applied", b"wait=%d" % wait_s),)


def asked_wait_s(query: dict[str, str]) -> int:
    """Of the query's parameter; Refused (422) for what is out of range."""
    text = query.get("wait", "0")
    if text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= WAIT_S_MAX:
        return int(text)
    detail = f"wait must be from 0 to {WAIT_S_MAX} seconds, is {text[:100]}"
    raise Refused(problem(BAD_QUERY, detail))


def _split(value: bytes) -> list[bytes]:
    """At the commas that are in no quotes."""
    return re.findall(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"|")+', value)

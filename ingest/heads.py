"""What of a request's head could be read in two ways, beyond what llhttp refuses by itself.

Somebody in front of us may read a request otherwise than we do, and then takes a part of one for
another. llhttp refuses a length together with chunks, two lengths, bare line ends, folded lines,
NUL, blanks before a colon. What it leaves open is refused here.
"""

from __future__ import annotations

import re

from ingest.answers import CLOSE, Answer, Headers, problem
from ingest.problems import NOT_HTTP

HOST = b"host"
TRANSFER_ENCODING = b"transfer-encoding"
# Name or address and perhaps a port; empty where a target has no authority. A name is not checked
# further, for nothing depends on it.
HOST_VALUE = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
SHOWN_BYTES_MAX = 100


def wrong_head(version: str, headers: Headers | list[tuple[bytes, bytes]]) -> Answer | None:
    """400 for a head without exactly one reading. Names are in lower case."""
    if version not in ("1.1", "1.0"):
        return refusal(f"the version must be HTTP/1.1 or HTTP/1.0, is HTTP/{version}")
    codings = [value for name, value in headers if name == TRANSFER_ENCODING]
    if codings:
        wrong = wrong_codings(version, codings)
        if wrong is not None:
            return wrong
    hosts = [value for name, value in headers if name == HOST]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return refusal(f"a request has one Host, this one has {len(hosts)}")
    if hosts and HOST_VALUE.fullmatch(hosts[0]) is None:
        return refusal(f"Host must be a name or an address, is {shown(hosts[0])}")
    return None


def wrong_codings(version: str, codings: list[bytes]) -> Answer | None:
    """We know one, and who speaks HTTP/1.0 may know none."""
    if version != "1.1":
        return refusal("Transfer-Encoding is not for HTTP/1.0")
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        return refusal(f"Transfer-Encoding must be chunked, is {shown(b', '.join(codings))}")
    return None


def shown(value: bytes) -> str:
    """For a message."""
    return repr(value[:SHOWN_BYTES_MAX].decode("latin-1"))


def refusal(detail: str) -> Answer:
    """400, and the end of the connection."""
    return problem(NOT_HTTP, detail, CLOSE)

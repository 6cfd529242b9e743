"""Requests that are nearly right: by hand, each with what must become of it, and by chance."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

BODY = b'{"customer":"first","lines":[{"sku":"BELLY","quantity":"1"}]}'
SIZE = len(BODY)
START = b"POST /orders HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
TYPE = b"Content-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % SIZE
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (SIZE, BODY)
# What stands behind: an order that is only ever one if what is before it was read to its end.
NEXT = START + HOST + TYPE + LENGTH + b"\r\n" + BODY.replace(b"first", b"later")
LIVEZ = b"GET /livez HTTP/1.1\r\n" + HOST


def with_length(more: bytes = b"", length: bytes = LENGTH, start: bytes = START) -> bytes:
    return start + HOST + TYPE + more + length + b"\r\n" + BODY


def with_chunks(chunks: bytes = CHUNKS, how: bytes = CHUNKED, more: bytes = b"") -> bytes:
    return START + HOST + TYPE + how + more + b"\r\n" + chunks


def with_size(size: bytes) -> bytes:
    return with_chunks(size + b"\r\n" + BODY + b"\r\n0\r\n\r\n")


def with_trailer(trailer: bytes) -> bytes:
    return with_chunks(CHUNKS[:-2] + trailer + b"\r\n")


HEX = b"%x" % SIZE

# One reading, a refusal, and nothing behind it.
REFUSED: dict[str, bytes] = {
    "length and chunks": with_chunks(more=LENGTH),
    "chunks and length": START + HOST + TYPE + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "length 0 and chunks": with_chunks(more=b"Content-Length: 0\r\n"),
    "two lengths alike": with_length(LENGTH),
    "two lengths": with_length(b"Content-Length: 3\r\n"),
    "two lengths, the first counts nothing": with_length(b"Content-Length: 0\r\n"),
    "two transfer encodings": with_chunks(how=CHUNKED * 2),
    "chunked and identity": with_chunks(how=CHUNKED + b"Transfer-Encoding: identity\r\n"),
    "a folded transfer encoding": with_chunks(how=b"Transfer-Encoding:\r\n chunked\r\n"),
    "a blank before the colon of chunks": with_chunks(how=b"Transfer-Encoding : chunked\r\n"),
    "a blank before the colon of length": with_length(length=b"Content-Length : %d\r\n" % SIZE),
    "a blank before a colon": with_length(b"X : y\r\n"),
    "a tab before a colon": with_length(b"X\t: y\r\n"),
    "chunks of HTTP/1.0": with_chunks().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "bare LF everywhere": NEXT.replace(b"\r\n", b"\n"),
    "bare LF behind the first line": NEXT.replace(b"1.1\r\n", b"1.1\n"),
    "bare LF behind a field": NEXT.replace(b"x\r\n", b"x\n"),
    "bare LF behind the head": NEXT.replace(b"\r\n\r\n", b"\r\n\n"),
    "bare CR behind a field": NEXT.replace(b"x\r\n", b"x\r"),
    "CR within a value": with_length(b"X: a\rb\r\n"),
    "CR CR LF": NEXT.replace(b"x\r\n", b"x\r\r\n"),
    "a folded field": with_length(b"X: a\r\n b\r\n"),
    "a field folded with a tab": with_length(b"X: a\r\n\tb\r\n"),
    "a first field that is folded": NEXT.replace(b"1.1\r\n", b"1.1\r\n X: y\r\n"),
    "NUL in a name": with_length(b"X\0: y\r\n"),
    "NUL in a value": with_length(b"X: y\0\r\n"),
    "NUL in the target": NEXT.replace(b"/orders", b"/orders\0"),
    "a control character in a value": with_length(b"X: \x01\r\n"),
    "a field without a colon": with_length(b"X\r\n"),
    "a field without a name": with_length(b": x\r\n"),
    "a byte beyond ASCII in a name": with_length(b"X\xff: x\r\n"),
    "no Host": NEXT.replace(HOST, b""),
    "two Hosts": with_length(HOST),
    "two Hosts that differ": with_length(b"Host: y\r\n"),
    "a Host with a blank": NEXT.replace(b"Host: x", b"Host: x y"),
    "a Host with a path": NEXT.replace(b"Host: x", b"Host: x/y"),
    "a Host with a user": NEXT.replace(b"Host: x", b"Host: a@x"),
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/1.2": NEXT.replace(b"1.1\r", b"1.2\r"),
    "HTTP/2.0": NEXT.replace(b"1.1\r", b"2.0\r"),
    "HTTP/1.10": NEXT.replace(b"1.1\r", b"1.10\r"),
    "http in small letters": NEXT.replace(b"HTTP", b"http"),
    "a method in small letters": NEXT.replace(b"POST", b"post"),
    "a tab in the first line": NEXT.replace(b"POST ", b"POST\t"),
    "a blank behind the first line": NEXT.replace(b"1.1\r\n", b"1.1 \r\n"),
    "a blank before the first line": b" " + NEXT,
    "a blank in the target": NEXT.replace(b"/orders", b"/ord ers"),
    "a target beyond ASCII": NEXT.replace(b"/orders", b"/ord\xc3\xa9rs"),
    "a target without a host": NEXT.replace(b"/orders", b"http://[/orders"),
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
for _length in (b"+%d" % SIZE, b"-1", b"0x3d", b"6_1", b"6 1", b"", b"%d, %d" % (SIZE, SIZE),
                b"%d.0" % SIZE, b"1e1", b"\xb2", b"9" * 30, b"%d;" % SIZE):  # fmt: skip
    REFUSED[f"length {_length!r}"] = with_length(length=b"Content-Length: " + _length + b"\r\n")
for _coding in (b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked",
                b"chunkedx", b'"chunked"', b"chunked;q=1", b"\x0bchunked", b"", b"chunked,",
                b",chunked", b"chun ked", b"chunked\0", b"gzip"):  # fmt: skip
    REFUSED[f"coding {_coding!r}"] = with_chunks(how=b"Transfer-Encoding: " + _coding + b"\r\n")
    REFUSED[f"coding {_coding!r} with length"] = with_length(
        b"Transfer-Encoding: " + _coding + b"\r\n"
    )
for _size in (b" " + HEX, HEX + b" ", b"+" + HEX, b"-1", b"0x" + HEX, b"1" * 17 + HEX, b"", b"g",
              HEX + b"\t", HEX + b',"', HEX + b';a="', HEX + b";a\nb", HEX + b";a\rb", HEX + b";\0",
              b"%x" % (SIZE - 1), b"\xb2"):  # fmt: skip
    REFUSED[f"chunk size {_size!r}"] = with_size(_size)
REFUSED |= {
    "LF behind a chunk size": with_chunks(HEX + b"\n" + BODY + b"\r\n0\r\n\r\n"),
    "CR behind a chunk size": with_chunks(HEX + b"\r" + BODY + b"\r\n0\r\n\r\n"),
    "LF behind a chunk": with_chunks(HEX + b"\r\n" + BODY + b"\n0\r\n\r\n"),
    "nothing behind a chunk": with_chunks(HEX + b"\r\n" + BODY + b"0\r\n\r\n"),
    "LF behind the last chunk": with_chunks(HEX + b"\r\n" + BODY + b"\r\n0\n\n"),
    "a trailer with a length": with_trailer(LENGTH),
    "a trailer with chunks": with_trailer(CHUNKED),
    "a trailer that is folded": with_trailer(b"X: a\r\n b\r\n"),
    "a trailer with LF": with_trailer(b"X: a\n"),
    "a trailer with a blank before the colon": with_trailer(b"X : a\r\n"),
}

# One reading, an order; then what is behind it.
TAKEN: dict[str, bytes] = {
    "as it should be": with_length(),
    "in chunks": with_chunks(),
    "CHUNKED": with_chunks(how=b"TRANSFER-ENCODING: CHUNKED\r\n"),
    "chunks behind a tab": with_chunks(how=b"Transfer-Encoding:\tchunked\r\n"),
    "a name like that of chunks": with_length(b"Transfer_Encoding: chunked\r\n"),
    "zeros before a chunk size": with_size(b"0" * 30 + HEX),
    "a chunk extension": with_size(HEX + b';a=b;c="d"'),
    "a last chunk of zeros": with_chunks(CHUNKS[:-5] + b"000\r\n\r\n"),
    "zeros before a length": with_length(length=b"Content-Length: 0000%d\r\n" % SIZE),
    "blanks around a length": with_length(length=b"Content-Length: \t %d \t\r\n" % SIZE),
    "a trailer": with_trailer(b"X: y\r\n"),
    "a trailer with another type": with_trailer(b"Content-Type: text/plain\r\n"),
    "a trailer with another Host": with_trailer(b"Host: y\r\n"),
    "a trailer with a name": with_trailer(b"X-Request-ID: not good\r\n"),
    "a trailer with a key": with_trailer(b"Idempotency-Key: x y\r\n"),
    "a trailer that expects": with_trailer(b"Expect: 100-continue\r\n"),
    "an absolute target": with_length(start=b"POST http://y/orders HTTP/1.1\r\n"),
    "an empty Host": NEXT.replace(b"Host: x", b"Host:"),
    "a Host with a port": NEXT.replace(b"Host: x", b"Host: [::1]:80"),
    "a value beyond ASCII": with_length(b"X: \xff\r\n"),
    "line ends before it": b"\r\n\r\n" + with_length(),
    "LF before it": b"\n" + with_length(),
    "another request for a body": with_length(b"X: " + b"GET / HTTP/1.1" + b"\r\n"),
}

# One reading, an order, and the end of the connection: nothing behind it.
LAST_TAKEN: dict[str, bytes] = {
    "close": with_length(b"Connection: close\r\n"),
    "close in chunks": with_chunks(more=b"Connection: close\r\n"),
    "close in a trailer": with_trailer(b"Connection: close\r\n"),
    "HTTP/1.0": with_length(start=b"POST /orders HTTP/1.0\r\n"),
    "HTTP/1.0 without Host": NEXT.replace(HOST, b"").replace(b"/1.1", b"/1.0"),
    "HTTP/1.0 that would stay": with_length(
        b"Connection: keep-alive\r\n", start=b"POST /orders HTTP/1.0\r\n"
    ),
}


@dataclass(frozen=True)
class Case:
    """`taken`: whether the order is; `goes_on`: whether what is behind it is read."""

    name: str
    sent: bytes
    taken: bool
    goes_on: bool


CASES = [
    *(Case(name, sent, False, False) for name, sent in REFUSED.items()),
    *(Case(name, sent, True, True) for name, sent in TAKEN.items()),
    *(Case(name, sent, True, False) for name, sent in LAST_TAKEN.items()),
]

SEEDS = [case.sent for case in CASES] + [
    LIVEZ + b"\r\n",
    LIVEZ + b"Content-Length: 5\r\n\r\n12345",
    LIVEZ + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n12345",
    LIVEZ + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /lots HTTP/1.1\r\n" + HOST + TYPE + LENGTH + b"\r\n" + BODY,
    b"GET /nowhere?%zz#x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    with_length(b"Idempotency-Key: k\r\n"),
    with_length(b"Idempotency-Key: k k\r\n"),
    with_length(b"X-Request-ID: r r\r\n"),
    with_chunks(how=CHUNKED + b"Expect: 100-continue\r\n"),
    with_length(b"X-Request-ID: r\r\nTraceparent: 00-%s-%s-01\r\n" % (b"a" * 32, b"b" * 16)),
]
PARTS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"-", b"\xff", b"\r\n\r\n",
    b"0\r\n\r\n", HOST, TYPE, LENGTH, CHUNKED, b"Content-Length: 0\r\n", b"Connection: close\r\n",
    b"Expect: 100-continue\r\n", b"Transfer-Encoding: gzip\r\n", b"X: " + b"x" * 5000 + b"\r\n",
    b"X: y\r\n" * 101, b"HTTP/1.1", b"HTTP/1.0", START, b"GET /livez HTTP/1.1\r\n", HEX,
]  # fmt: skip


def malformed(seed: int) -> Iterator[bytes]:
    """Without end, the same for the same seed: good and bad ones, changed in up to four places."""
    chance = Random(seed)
    while True:
        sent = chance.choice(SEEDS)
        for _ in range(chance.randint(1, 4)):
            sent = changed(chance, sent)
        yield sent


def changed(chance: Random, sent: bytes) -> bytes:
    at = chance.randint(0, len(sent))
    end = min(len(sent), at + chance.randint(0, 12))
    match chance.randint(0, 5):
        case 0:
            return sent[:at] + chance.choice(PARTS) + sent[at:]
        case 1:
            return sent[:at] + chance.choice(PARTS) + sent[end:]
        case 2:
            return sent[:at] + sent[end:]
        case 3:
            return sent[:at] + bytes([chance.randrange(256)]) + sent[at + 1 :]
        case 4:
            return sent[:at] + sent[at:end] * 2 + sent[end:]
        case _:
            other = chance.choice(SEEDS)
            return sent[:at] + other[chance.randint(0, len(other)) :]


def in_pieces(chance: Random, sent: bytes, most: int = 4) -> list[bytes]:
    """Cut anywhere, in as many reads."""
    places = sorted({0, len(sent), *(chance.randint(0, len(sent)) for _ in range(most - 1))})
    return [sent[a:b] for a, b in itertools.pairwise(places)]

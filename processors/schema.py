"""What clients send and what lies in a ring slot: orders, lots, adjustments.

`decode_order` has two paths. The fast one decodes into strict structs and only says yes or "look
again"; the second look (`refusal`) decides all else and finds every field error at once.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from processors import refusal
from processors.quantity import (
    ASK_DELTA,
    ASK_QUANTITY,
    above_zero,
    not_zero,
    parse_quantity,
)
from processors.refusal import FieldError, Findings, Invalid, Malformed, Wrong

__all__ = [
    "Adjustment",
    "FieldError",
    "Invalid",
    "Line",
    "Lot",
    "Malformed",
    "Order",
    "RecordHeader",
    "body_hash",
    "decode_adjustment",
    "decode_lot",
    "decode_order",
    "encode_header",
    "encode_order",
    "format_instant",
    "format_uuid",
    "hash_of",
    "load_header",
    "load_order",
    "parse_instant",
    "parse_uuid",
    "posted_hash",
]

LINES_MAX = 100
METADATA_PAIRS_MAX = 16
METADATA_BYTES_MAX = 1024


class Line(Struct, array_like=True, frozen=True):
    """One sku of an order and how much of it, in thousandths."""

    sku: str
    thousandths: int


class Order(Struct, array_like=True, frozen=True):
    """An order as it lies in a ring slot; its id is the slot's key."""

    customer: str
    lines: list[Line]
    reference: str | None = None
    metadata: dict[str, str] | None = None


class RecordHeader(Struct, array_like=True, frozen=True):
    """What travels beside the payload. Fields are only ever appended; readers skip the unknown.

    `body_hash`: b"" where it is that of the payload. `owner`: the name of the API key that posted
    the order. `request_id`, `traceparent`: of the request that posted it (W3C Trace Context).
    """

    body_hash: bytes = b""
    owner: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


class Lot(Struct, frozen=True):
    """A received lot; instants are microseconds since 1970, UTC."""

    lot_id: str | None
    sku: str
    thousandths: int
    expires_us: int
    received_us: int | None
    supplier: str | None


class Adjustment(Struct, frozen=True):
    """A correction of one lot's stock, in thousandths, never 0."""

    delta: int
    reason: str


# Patterns in here would cost more than all the rest of decoding; _decode_fast looks itself.
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Sku = Annotated[str, Meta(min_length=1, max_length=64)]
UuidText = Annotated[str, Meta(pattern=rf"\A{refusal.UUID_TEXT.pattern}\Z")]
Reference = Annotated[str, Meta(min_length=1, max_length=100)]


class _WireLine(Struct, forbid_unknown_fields=True):
    sku: Sku
    quantity: msgspec.Raw


class _WireOrder(Struct, forbid_unknown_fields=True):
    customer: Name
    lines: Annotated[list[_WireLine], Meta(min_length=1, max_length=LINES_MAX)]
    order_id: UuidText | None = None
    reference: Reference | None = None
    metadata: dict[str, str] | None = None


CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SKU = re.compile(r"[A-Za-z0-9._-]+")

_wire_order = msgspec.json.Decoder(_WireOrder)
# Sorted keys: the same metadata in another order is the same body.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_order_decoder = msgspec.msgpack.Decoder(Order)
_header_decoder = msgspec.msgpack.Decoder(RecordHeader)
NO_HEADER = RecordHeader()


def decode_order(body: bytes) -> tuple[bytes | None, Order]:
    """The order id (16 bytes, or None) and the order of a request body; Malformed, Invalid."""
    try:
        return _decode_fast(body)
    except (ValueError, RecursionError):
        return _decode_slow(body)


def decode_lot(body: bytes) -> Lot:
    """The lot of a request body; Malformed, Invalid."""
    findings = Findings()
    found = findings.fields(refusal.parse_json(body), "", LOT_REQUIRED, LOT_OPTIONAL)
    findings.raise_if_any()
    return Lot(
        lot_id=found.get("lot_id"),
        sku=found["sku"],
        thousandths=found["quantity"],
        expires_us=found["expires_at"],
        received_us=found.get("received_at"),
        supplier=found.get("supplier"),
    )


def decode_adjustment(body: bytes) -> Adjustment:
    """The adjustment of a request body; Malformed, Invalid."""
    findings = Findings()
    found = findings.fields(refusal.parse_json(body), "", ADJUSTMENT, {})
    findings.raise_if_any()
    return Adjustment(delta=found["delta"], reason=found["reason"])


def encode_order(order: Order) -> bytes:
    """The slot's payload; equal orders have equal bytes."""
    return _encoder.encode(order)


def load_order(payload: bytes) -> Order:
    """The order of a slot's payload; msgspec.DecodeError when it is none."""
    return _order_decoder.decode(payload)


def body_hash(payload: bytes, owner: str | None = None) -> bytes:
    """16 bytes that tell two bodies apart, and the same one of two owners; `payload` as
    `encode_order` makes it."""
    return blake2b(payload, digest_size=16, key=(owner or "").encode()).digest()


def encode_header(header: RecordHeader) -> bytes:
    """The slot's header; nothing for one that says nothing."""
    return b"" if header == NO_HEADER else _encoder.encode(header)


def load_header(header: bytes) -> RecordHeader:
    """The header of a slot, also one with fields that this version does not know, also none."""
    return _header_decoder.decode(header) if header else NO_HEADER


def posted_hash(header: bytes, payload: bytes) -> bytes:
    """The hash of the body that a slot's order was posted with; msgspec.DecodeError."""
    return hash_of(load_header(header), payload)


def hash_of(header: RecordHeader, payload: bytes) -> bytes:
    """The same of a header that was read."""
    return header.body_hash or body_hash(payload, header.owner)


def parse_uuid(text: str) -> bytes | None:
    """The 16 bytes of a hyphenated UUID of either case, or None."""
    if refusal.UUID_TEXT.fullmatch(text) is None:
        return None
    return bytes.fromhex(text.replace("-", ""))


def format_uuid(key: bytes) -> str:
    """16 bytes as a UUID's canonical text, lower case."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_instant(text: str) -> int:
    """Microseconds since 1970 of RFC 3339 text with an offset; ValueError."""
    return refusal.instant(text)


def format_instant(microseconds: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    moment = refusal.EPOCH + timedelta(microseconds=microseconds)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _decode_fast(body: bytes) -> tuple[bytes | None, Order]:
    # msgspec steps over the values of repeated keys without looking at their encoding.
    if not body.isascii():
        body.decode("utf-8")
    wire = _wire_order.decode(body)
    # Without a look at each character: what prints has no control characters.
    if not wire.customer.isprintable() and CONTROL.search(wire.customer):
        raise Wrong("control characters")
    if wire.reference is not None and "\0" in wire.reference:
        raise Wrong("U+0000, which not every database can store")
    lines = [Line(_check_sku(line.sku), parse_quantity(line.quantity)) for line in wire.lines]
    if len(lines) > 1 and len({line.sku for line in lines}) != len(lines):
        raise Wrong("a sku twice")
    if wire.metadata is not None:
        _metadata(wire.metadata)
    order = Order(wire.customer, lines, wire.reference, wire.metadata)
    if wire.order_id is None:
        return None, order
    return bytes.fromhex(wire.order_id.replace("-", "")), order


@lru_cache(maxsize=16_384)
def _check_sku(sku: str) -> str:
    if SKU.fullmatch(sku) is None:
        raise Wrong("a character that no sku has")
    return sku


def _decode_slow(body: bytes) -> tuple[bytes | None, Order]:
    findings = Findings()
    found = findings.fields(
        refusal.parse_json(body),
        "",
        {"customer": CUSTOMER, "lines": _array},
        {"order_id": refusal.uuid, "reference": REFERENCE, "metadata": _as_is},
    )
    metadata = _check_metadata(findings, found.get("metadata"))
    lines = _check_lines(findings, found.get("lines"))
    findings.raise_if_any()
    return found.get("order_id"), Order(found["customer"], lines, found.get("reference"), metadata)


def _check_lines(findings: Findings, values: list[Any] | None) -> list[Line]:
    if values is None:
        return []
    if not 1 <= len(values) <= LINES_MAX:
        findings.add("/lines", f"must have 1 to {LINES_MAX} lines, has {len(values)}")
    lines: list[Line] = []
    first_place: dict[str, int] = {}
    for place, value in enumerate(values[:LINES_MAX]):
        found = findings.fields(value, f"/lines/{place}", LINE, {})
        sku = found.get("sku")
        if sku is not None and first_place.setdefault(sku, place) != place:
            findings.add(
                f"/lines/{place}/sku", f"the same sku as in line {first_place[sku]}; one line each"
            )
        lines.append(Line(sku or "", found.get("quantity") or 0))
    return lines


def _check_metadata(findings: Findings, value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if type(value) is not dict:
        findings.add("/metadata", f"must be an object, not {refusal.kind(value)}")
        return None
    for name, found in value.items():
        if type(found) is not str:
            detail = f"must be text, not {refusal.kind(found)}"
            findings.add(f"/metadata/{refusal.escape(name)}", detail)
    findings.check("/metadata", value, _metadata)
    return value


def _metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > METADATA_PAIRS_MAX:
        raise Wrong(f"must have at most {METADATA_PAIRS_MAX} pairs, has {len(metadata)}")
    size = sum(
        len(name.encode()) + len(value.encode())
        for name, value in metadata.items()
        if type(value) is str
    )
    if size > METADATA_BYTES_MAX:
        raise Wrong(f"must have at most {METADATA_BYTES_MAX} bytes of names and texts, has {size}")


def _array(value: object) -> object:
    if type(value) is not list:
        raise Wrong(f"must be an array, not {refusal.kind(value)}")
    return value


def _as_is(value: object) -> object:
    return value


CUSTOMER = refusal.text(200)
REFERENCE = refusal.text(100, control=refusal.NUL)
QUANTITY = refusal.quantity_like(ASK_QUANTITY, above_zero)
LINE = {"sku": refusal.code, "quantity": QUANTITY}
LOT_REQUIRED = {"sku": refusal.code, "quantity": QUANTITY, "expires_at": refusal.instant}
LOT_OPTIONAL = {
    "lot_id": refusal.code,
    "received_at": refusal.instant,
    "supplier": refusal.text(200),
}
ADJUSTMENT = {
    "delta": refusal.quantity_like(ASK_DELTA, not_zero),
    "reason": refusal.text(200),
}

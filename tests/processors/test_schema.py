"""Bodies in, slots out: the grammar against an oracle of its own."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors import schema
from processors.refusal import ERRORS_MAX, NESTING_MAX
from processors.schema import (
    Invalid,
    Line,
    Malformed,
    Order,
    RecordHeader,
    body_hash,
    decode_adjustment,
    decode_lot,
    decode_order,
    encode_header,
    encode_order,
    format_instant,
    format_uuid,
    load_header,
    load_order,
    parse_instant,
    parse_uuid,
)

GOOD = b'{"customer":"Funky Foods","lines":[{"sku":"PORK-BELLY","quantity":"12.5"}]}'
ID = "01937a3e-5b1c-7cc0-8000-0123456789ab"
SLOT_ROOM = 16384 - 64


def order_with(**members: str) -> bytes:
    """The good order with some members replaced by JSON text; "" takes one away."""
    parts = {"customer": '"c"', "lines": '[{"sku":"A","quantity":"1"}]', **members}
    return ("{" + ",".join(f'"{k}":{v}' for k, v in parts.items() if v) + "}").encode()


def pointers(decode: Any, body: bytes) -> list[str]:
    with pytest.raises(Invalid) as refused:
        decode(body)
    assert all(error.detail for error in refused.value.errors)
    return [error.pointer for error in refused.value.errors]


# --- an oracle: what is wrong with an order, from the contract's words, over plain Python values


def wrong_with(document: Any) -> set[str]:
    if not isinstance(document, dict):
        return {""}
    known = {"customer", "lines", "order_id", "reference", "metadata"}
    found = {pointer_to(name) for name in document if name not in known}
    customer = document.get("customer")
    if not is_text(customer, 200) or re.search("[\x00-\x1f\x7f]", str(customer)):
        found.add("/customer")
    reference = document.get("reference")
    if reference is not None and (not is_text(reference, 100) or "\0" in reference):
        found.add("/reference")
    if document.get("order_id") is not None and not is_uuid(document["order_id"]):
        found.add("/order_id")
    if document.get("metadata") is not None:
        found |= wrong_with_metadata(document["metadata"])
    return found | wrong_with_lines(document.get("lines"))


def wrong_with_metadata(metadata: Any) -> set[str]:
    if not isinstance(metadata, dict):
        return {"/metadata"}
    texts = [v for v in metadata.values() if isinstance(v, str)]
    found = {"/metadata" + pointer_to(k) for k, v in metadata.items() if not isinstance(v, str)}
    size = len("".join([*metadata, *texts]).encode())
    return found | ({"/metadata"} if len(metadata) > 16 or size > 1024 else set())


def wrong_with_lines(lines: Any) -> set[str]:
    if not isinstance(lines, list):
        return {"/lines"}
    found = set() if 1 <= len(lines) <= 100 else {"/lines"}
    seen = set()
    for place, line in enumerate(lines[:100]):
        if not isinstance(line, dict):
            found.add(f"/lines/{place}")
            continue
        found |= {f"/lines/{place}{pointer_to(n)}" for n in line if n not in ("sku", "quantity")}
        sku = line.get("sku")
        if not (isinstance(sku, str) and re.fullmatch("[A-Za-z0-9._-]{1,64}", sku)) or sku in seen:
            found.add(f"/lines/{place}/sku")
        elif isinstance(sku, str):
            seen.add(sku)
        if not is_quantity(line.get("quantity")):
            found.add(f"/lines/{place}/quantity")
    return found


def pointer_to(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= longest


def is_quantity(value: Any) -> bool:
    if isinstance(value, str):
        plain = re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,3})?", value)
        return bool(plain) and 0 < Decimal(value) <= 10**9
    return type(value) is int and 0 < value <= 10**9


def is_uuid(value: Any) -> bool:
    return isinstance(value, str) and bool(
        re.fullmatch("[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", value)
    )


# --- documents, mostly nearly right


GOOD_QUANTITIES = ("1", "12.5", "0.001", "1000000000")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
junk = st.one_of(
    st.none(), st.booleans(), st.integers(), text, st.just([]), st.just({}), st.just([{}])
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 24).flatmap(lambda chance: junk if chance == 24 else good)


names = st.text('ab~/"\\é\n', max_size=3)
line = st.fixed_dictionaries(
    {},
    optional={
        "sku": mostly(st.text("ABab01._-", min_size=1, max_size=3)),
        "quantity": mostly(st.sampled_from([*GOOD_QUANTITIES, *GOOD_QUANTITIES, "0", "1e3"])),
    },
)
full_line = st.fixed_dictionaries(
    {
        "sku": mostly(st.text("ABab01._-", min_size=1, max_size=64)),
        "quantity": mostly(st.sampled_from(GOOD_QUANTITIES)),
    }
)
lines = mostly(st.lists(st.one_of(full_line, full_line, full_line, line, junk), max_size=4))
customer = st.one_of(text, st.just("x" * 200), st.just("x" * 201), st.just("\x7f"))
documents = st.tuples(
    st.fixed_dictionaries(
        {"customer": mostly(customer), "lines": lines},
        optional={
            "order_id": mostly(st.sampled_from([ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}"])),
            "reference": mostly(st.one_of(text, st.just("r" * 100), st.just("r" * 101))),
            "metadata": mostly(
                st.dictionaries(names, mostly(st.one_of(text, st.just("é" * 400))), max_size=18)
            ),
        },
    ),
    st.one_of(st.just({}), st.dictionaries(names, junk, max_size=2)),
).map(lambda pair: {**pair[1], **pair[0]})


@settings(max_examples=500)
@given(st.one_of(documents, documents, junk), st.booleans(), st.sampled_from([None, 1]))
def test_an_order_is_taken_or_told_every_error_as_the_oracle_says(
    document: Any, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    wrong = wrong_with(document)
    if wrong:
        told = pointers(decode_order, body)
        assert set(told) == wrong
        assert len(told) <= len(wrong) + 1
        return
    key, order = decode_order(body)
    asked = document.get("order_id")
    assert key == (None if asked is None else parse_uuid(asked.lower()))
    assert order.customer == document["customer"]
    assert order.reference == document.get("reference")
    assert order.metadata == document.get("metadata")
    assert [one.sku for one in order.lines] == [one["sku"] for one in document["lines"]]
    assert load_order(encode_order(order)) == order


@given(
    st.sampled_from([GOOD, order_with(order_id=f'"{ID}"', metadata='{"a":"b"}', reference='"r"')]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), max_size=3),
)
def test_what_the_fast_path_takes_the_second_look_takes_alike(
    body: bytes, edits: list[tuple[float, bytes, int]]
) -> None:
    for where, what, cut in edits:
        place = int(where * len(body))
        body = body[:place] + what + body[place + cut :]
    try:
        fast = schema._decode_fast(body)
    except (ValueError, RecursionError):
        return
    assert schema._decode_slow(body) == fast


@given(st.binary(max_size=40), st.integers(0, len(GOOD)))
def test_no_body_raises_anything_but_the_two_refusals(noise: bytes, place: int) -> None:
    for decode in (decode_order, decode_lot, decode_adjustment):
        for body in (noise, GOOD[:place] + noise + GOOD[place:]):
            try:
                decode(body)
            except (Malformed, Invalid):
                continue


@pytest.mark.parametrize("decode", [decode_order, decode_lot, decode_adjustment])
@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"nul", b"{'a':1}", b'{"a":1,}', b'{"a":01}', b"{}x", b"\xef\xbb\xbf{}",
        b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b"NaN",
        b'{"customer":"\xff"}', b'{"customer":"\xed\xa0\x80"}', b'{"\xff":1}', b"\xff\xfe{\x00",
        b'{"customer":"\\ud800"}', b'{"customer":"\\udc00\\ud800"}', b'{"\\udfff":1}',
        b'{"x":["\\ud800\\u0041"]}', b'{"customer":"\\ud800","customer":"a"}',
        b'{"customer":"a\x00b"}', b'{"customer":"a\nb"}', b'{"customer":"\\x41"}',
        b"[" * 60_000, b'{"a":' * 10_000, b"[" * 1000 + b"]" * 1000,
        b'{"lines":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_malformed(decode: Any, body: bytes) -> None:
    with pytest.raises(Malformed):
        decode(body)


def test_a_lone_surrogate_is_malformed_wherever_it_stands() -> None:
    for place in ("\\ud800", "\\\\\\ud800", "\\ud83d\\ude00\\ude00", "\\uD800\\uD800\\uDC00"):
        with pytest.raises(Malformed):
            decode_order(order_with(customer=f'"{place}"'))
    for fine in ("\\ud83d\\ude00", "\\\\ud800", "\\uD83D\\uDE00", "é", "\\u00e9"):
        assert decode_order(order_with(customer=f'"{fine}"'))[1].customer == json.loads(f'"{fine}"')


def test_nesting_has_a_limit_that_brackets_in_text_do_not_count_for() -> None:
    deep = "[" * (NESTING_MAX - 1) + "]" * (NESTING_MAX - 1)
    assert pointers(decode_order, order_with(x=deep)) == ["/x"]
    with pytest.raises(Malformed, match=str(NESTING_MAX)):
        decode_order(order_with(x=f"[{deep}]"))
    brackets = '"' + '[{\\"' * 40 + '"'
    assert decode_order(order_with(customer=brackets))[1].customer == '[{"' * 40
    assert decode_lot(lot_with(supplier='[{"' * 40)).supplier == '[{"' * 40


@pytest.mark.parametrize(
    ("first", "last"),
    [('"a"', '"b"'), ("1", '"b"'), ("[]", '"b"'), ('"\\u0007"', '"b"'), ("1e999999", '"b"')],
)
def test_of_duplicate_keys_the_last_counts(first: str, last: str) -> None:
    body = order_with().replace(b'"customer":"c"', f'"customer":{first},"customer":{last}'.encode())
    assert decode_order(body)[1].customer == "b"
    swapped = order_with().replace(b'"customer":"c"', f'"customer":"b","customer":{first}'.encode())
    if first != '"a"':
        assert pointers(decode_order, swapped) == ["/customer"]


def test_of_duplicate_keys_in_lines_and_metadata_the_last_counts() -> None:
    body = order_with(
        lines='[{"sku":"x y","sku":"A","quantity":0,"quantity":"2"}]',
        metadata='{"a":1,"a":"b","\\u0061":"c"}',
    )
    assert decode_order(body)[1] == Order("c", [Line("A", 2000)], None, {"a": "c"})
    with pytest.raises(Malformed):
        decode_order(
            order_with(lines='[{"sku":"A","quantity":"\xff","quantity":"2"}]').replace(
                "ÿ".encode(), b"\xff"
            )
        )


def test_null_is_the_same_as_left_out_for_what_is_optional() -> None:
    body = order_with(order_id="null", reference="null", metadata="null")
    assert decode_order(body) == decode_order(order_with())
    empty = lot_with(lot_id=None, received_at=None, supplier=None)
    assert decode_lot(empty) == decode_lot(lot_with())
    assert pointers(decode_order, order_with(customer="null", lines="null")) == [
        "/customer",
        "/lines",
    ]


def test_an_order_id_is_read_in_either_case_and_written_in_lower() -> None:
    for spelled in (ID, ID.upper()):
        key, _ = decode_order(order_with(order_id=f'"{spelled}"'))
        assert key is not None
        assert format_uuid(key) == ID
        assert parse_uuid(spelled) == key
    assert parse_uuid(ID.replace("-", "")) is None


def test_100_lines_are_taken_and_101_are_not() -> None:
    def lines_of(count: int) -> str:
        return "[" + ",".join(f'{{"sku":"S{n}","quantity":1}}' for n in range(count)) + "]"

    assert len(decode_order(order_with(lines=lines_of(100)))[1].lines) == 100
    assert pointers(decode_order, order_with(lines=lines_of(101))) == ["/lines"]
    assert pointers(decode_order, order_with(lines="[]")) == ["/lines"]


def test_a_sku_stands_in_one_line_only() -> None:
    twice = '[{"sku":"A","quantity":"1"},{"sku":"B","quantity":"1"},{"sku":"A","quantity":"1"}]'
    assert pointers(decode_order, order_with(lines=twice)) == ["/lines/2/sku"]


@pytest.mark.parametrize(("name", "longest"), [("customer", 200), ("reference", 100)])
def test_text_has_its_length_in_characters(name: str, longest: int) -> None:
    assert decode_order(order_with(**{name: f'"{"é" * longest}"'}))
    for refused in ("é" * (longest + 1), ""):
        assert pointers(decode_order, order_with(**{name: f'"{refused}"'})) == [f"/{name}"]


def test_control_characters_are_refused_in_a_customer_and_kept_in_a_reference() -> None:
    for escaped in ("\\u0000", "\\n", "\\u001f", "\u007f"):
        assert pointers(decode_order, order_with(customer=f'"a{escaped}"')) == ["/customer"]
    for escaped in ("\\n", "\\u0001", "\\u001f", "\u007f"):
        assert decode_order(order_with(reference=f'"a{escaped}"'))
    # The only one that PostgreSQL can't store.
    assert pointers(decode_order, order_with(reference='"a\\u0000"')) == ["/reference"]
    assert decode_order(order_with(customer='"\u0080 \u2028"'))


def test_metadata_has_16_pairs_and_1_kib_at_most() -> None:
    def metadata(count: int, total_bytes: int) -> str:
        names = [f"é{number}" for number in range(count)]
        filler = "x" * (total_bytes - len("".join(names).encode()))
        return json.dumps({name: filler if name == "é0" else "" for name in names})

    assert decode_order(order_with(metadata=metadata(16, 1024)))
    assert pointers(decode_order, order_with(metadata=metadata(16, 1025))) == ["/metadata"]
    assert pointers(decode_order, order_with(metadata=metadata(17, 100))) == ["/metadata"]


def test_errors_are_bounded_and_the_rest_is_counted() -> None:
    body = order_with(**{f"x{number}": "1" for number in range(ERRORS_MAX + 5)})
    with pytest.raises(Invalid) as refused:
        decode_order(body)
    assert len(refused.value.errors) == ERRORS_MAX + 1
    assert "5 errors more" in refused.value.errors[-1].detail


def test_the_largest_order_fits_the_default_slot() -> None:
    wide = "\U0001f953"
    order = Order(
        wide * 200,
        [Line(f"{n:064d}", 10**12) for n in range(100)],
        wide * 100,
        {str(n): "x" * 62 for n in range(16)},
    )
    document = {
        "customer": order.customer,
        "lines": [{"sku": line.sku, "quantity": "1000000000"} for line in order.lines],
        "reference": order.reference,
        "metadata": order.metadata,
    }
    assert decode_order(json.dumps(document).encode())[1] == order
    payload = encode_order(order)
    header = RecordHeader(body_hash(payload), "o" * 64, "r" * 128, "t" * 55)
    assert len(payload) + len(encode_header(header)) <= SLOT_ROOM


def test_bodies_that_mean_the_same_have_the_same_hash() -> None:
    def digest(body: bytes) -> bytes:
        return body_hash(encode_order(decode_order(body)[1]))

    same = order_with(metadata='{"b":"2","a":"1"}', lines='[{"quantity":12.50,"sku":"A"}]')
    spelled = order_with(
        metadata='{"a":"1", "b":"2"}', lines='[{"sku":"\\u0041","quantity":"12.5"}]'
    )
    assert digest(same) == digest(spelled)
    assert digest(order_with()) != digest(order_with(reference='"r"'))
    assert digest(order_with()) != digest(order_with(lines='[{"sku":"A","quantity":"1.001"}]'))


def test_a_header_with_fields_of_a_later_version_is_read() -> None:
    later = msgspec.msgpack.encode([b"h" * 16, None, "request", None, {"more": 1}])
    assert load_header(later) == RecordHeader(b"h" * 16, None, "request")
    earlier = msgspec.msgpack.encode([b"h" * 16])
    assert load_header(earlier) == RecordHeader(b"h" * 16)
    assert load_header(b"") == RecordHeader()
    assert load_header(encode_header(RecordHeader(b"h" * 16))) == RecordHeader(b"h" * 16)


LOT = {"sku": "A", "quantity": "1.5", "expires_at": "2026-03-01T12:00:00Z"}


def lot_with(**members: Any) -> bytes:
    return json.dumps({**LOT, **members}).encode()


def test_a_lot_has_integer_microseconds() -> None:
    lot = decode_lot(lot_with(received_at="2026-02-28T23:00:00.25-01:00", supplier="S", lot_id="L"))
    assert lot.expires_us == 1_772_366_400_000_000
    assert lot.received_us == 1_772_323_200_250_000
    assert (lot.lot_id, lot.sku, lot.thousandths, lot.supplier) == ("L", "A", 1500, "S")
    bare = decode_lot(lot_with())
    assert (bare.lot_id, bare.received_us, bare.supplier) == (None, None, None)


def test_a_lot_is_told_every_error() -> None:
    body = lot_with(sku="", quantity="-1", expires_at="soon", lot_id="a b", supplier="\n", x=1)
    assert set(pointers(decode_lot, body)) == {
        "/sku", "/quantity", "/expires_at", "/lot_id", "/supplier", "/x",
    }  # fmt: skip
    assert pointers(decode_lot, b"{}") == ["/sku", "/quantity", "/expires_at"]
    assert pointers(decode_lot, b"[]") == [""]


@given(
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)),
    st.integers(-(24 * 60) + 1, 24 * 60 - 1),
)
def test_an_instant_is_what_datetime_says_to_the_microsecond(
    moment: datetime, offset_minutes: int
) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    exact = (aware - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_instant(aware.isoformat()) == exact
    assert parse_instant(format_instant(exact)) == exact


def test_an_instant_is_cut_to_microseconds_never_rounded_up() -> None:
    second = parse_instant("2026-03-01T12:00:00Z")
    assert parse_instant("2026-03-01T12:00:00.123456999Z") == second + 123_456
    assert parse_instant("2026-03-01T12:00:00.9999999Z") == second + 999_999
    assert parse_instant("1969-12-31T23:59:59.9999999Z") == -1
    assert parse_instant("2026-03-01t12:00:00.1z") == second + 100_000
    assert format_instant(second) == "2026-03-01T12:00:00.000000Z"
    assert format_instant(-62_135_596_800_000_000) == "0001-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    "instant",
    [
        "2026-03-01T12:00:00", "2026-03-01", "2026-03-01 12:00:00Z", "2026-03-01T12:00Z",
        "2026-02-29T12:00:00Z", "2026-13-01T12:00:00Z", "2026-03-01T24:00:00Z",
        "2026-03-01T12:00:60Z", "2026-03-01T12:00:00+24:00", "2026-03-01T12:00:00+01:60",
        "2026-03-01T12:00:00+0100", "2026-03-01T12:00:00.Z", "2026-03-01T12:00:00.1234567890Z",
        "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00",
        "2026-03-01T12:00:00Z\n", "\uff12026-03-01T12:00:00Z", " 2026-03-01T12:00:00Z", "", 1, None,
    ],
)  # fmt: skip
def test_what_is_no_instant_is_refused(instant: Any) -> None:
    assert pointers(decode_lot, lot_with(expires_at=instant)) == ["/expires_at"]


def test_an_adjustment_has_a_delta_and_a_reason() -> None:
    adjustment = decode_adjustment(b'{"delta":"-30","reason":"spoilage"}')
    assert (adjustment.delta, adjustment.reason) == (-30_000, "spoilage")
    assert pointers(decode_adjustment, b'{"delta":0,"reason":"","x":1}') == [
        "/delta",
        "/reason",
        "/x",
    ]
    assert pointers(decode_adjustment, b'{"delta":true}') == ["/reason", "/delta"]

"""What reads the lines of a bulk in C takes orders to the bytes that the schema takes them to."""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest._bulk import next_keys, pack_orders, render_taken
from ingest.ids import RAND_B_MAX, OrderIds
from processors.schema import Invalid, Malformed, decode_order, encode_order, format_uuid

LINE_BYTES_MAX = 65536
GOOD = b'{"customer":"Funky Foods","lines":[{"sku":"BELLY","quantity":"1.5"}]}'
FULL = (
    b'{"customer":"Funky Foods","reference":"r-1","metadata":{"b":"2","a":"1"},'
    b'"lines":[{"sku":"BELLY","quantity":"1.5"},{"quantity":2,"sku":"LEG"}]}'
)


def by_schema(line: bytes) -> bytes | None:
    """The payload of an order without an id."""
    try:
        order_id, order = decode_order(line)
    except (Malformed, Invalid):
        return None
    return None if order_id else encode_order(order)


def agrees(line: bytes) -> bool:
    """Whether it was taken; to the schema's bytes, or the test fails."""
    (packed,) = pack_orders([line], LINE_BYTES_MAX)
    assert packed is None or packed == by_schema(line), line
    return packed is not None


ASCII = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
texts = st.text(ASCII, min_size=1, max_size=40) | st.text(max_size=3)
quantities = st.one_of(
    st.decimals(0, 10**9, places=3).map(str),
    st.sampled_from(
        ["1", "12.50", "0.001", "0", "01", "1.", ".5", "1e3", "1.0000", "-1", "9" * 11]
    ),
    st.integers(-1, 2 * 10**9),
    st.floats(0, 100),
)
lines_of_order = st.lists(
    st.fixed_dictionaries(
        {"sku": st.text("ABC-._9", min_size=1, max_size=3) | texts, "quantity": quantities}
    ),
    max_size=20,
)
orders = st.fixed_dictionaries(
    {"customer": texts, "lines": lines_of_order},
    optional={
        "reference": texts | st.none(),
        "metadata": st.dictionaries(texts, texts, max_size=18) | st.none(),
        "order_id": st.uuids().map(str),
        "note": st.none(),
    },
)


@given(orders, st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r ")]), st.booleans())
def test_whatever_it_takes_the_schema_takes_to_the_same_bytes(
    order: dict[str, Any], separators: tuple[str, str], ascii_only: bool
) -> None:
    agrees(json.dumps(order, separators=separators, ensure_ascii=ascii_only).encode())


@given(st.data())
def test_a_damaged_order_is_never_taken_for_another(data: st.DataObject) -> None:
    line = bytearray(data.draw(st.sampled_from([GOOD, FULL])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(line) - 1))
        line[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.binary(max_size=2)
            | st.sampled_from([b'"', b"\\", b"{", b"}", b",", b":", b"0", b"\0"])
        )
    agrees(bytes(line))


PLAIN = [
    GOOD,
    FULL,
    GOOD + b" \t\r",
    b" " + GOOD.replace(b'"1.5"', b"1000000000"),
    GOOD.replace(b"Funky Foods", b"x" * 200),
    msgspec.json.encode(
        {"customer": "c", "lines": [{"sku": f"S{n}", "quantity": n + 1} for n in range(100)]}
    ),
    msgspec.json.encode(
        {
            "customer": "c",
            "lines": [{"sku": "S" * 64, "quantity": "0.001"}],
            "metadata": {f"{n:02}": "v" * 62 for n in range(16)},
        }
    ),
    b'{"metadata":{},"lines":[{"sku":"A","quantity":"65.536"}],"customer":"c"}',
    GOOD[:-1] + b',"metadata":{"k":"' + b"v" * 1023 + b'"}}',
]


@pytest.mark.parametrize("line", PLAIN, ids=range(len(PLAIN)))
def test_plain_orders_are_taken(line: bytes) -> None:
    assert agrees(line)


@pytest.mark.parametrize(
    "thousandths", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 10**12]
)
def test_every_width_of_a_number_is_the_schemas(thousandths: int) -> None:
    quantity = b"%d.%03d" % divmod(thousandths, 1000)
    assert agrees(GOOD.replace(b"1.5", quantity))


REFUSED = [
    b"",
    b"\0",
    GOOD + b"\0",
    GOOD + b"}",
    GOOD[:-1],
    b'{"order_id":"018f0000-0000-7000-8000-000000000001",' + GOOD[1:],
    GOOD.replace(b"}]", b'},{"sku":"BELLY","quantity":"1"}]'),
    GOOD.replace(b"1.5", b"0"),
    GOOD.replace(b"1.5", b"1000000000.001"),
    GOOD.replace(b"Funky Foods", b"x" * 201),
    GOOD.replace(b"Funky Foods", b""),
    GOOD.replace(b"BELLY", b"S" * 65),
    GOOD.replace(b"BELLY", b"B/Y"),
    GOOD[:-1] + b',"customer":"twice"}',
    GOOD[:-1] + b',"metadata":{"a":"1","a":"2"}}',
    GOOD[:-1] + b',"metadata":{"k":"' + b"v" * 1024 + b'"}}',
    b'{"customer":"c","lines":[]}',
    b'{"customer":"c","lines":['
    + b",".join(b'{"sku":"%d","quantity":1}' % n for n in range(101))
    + b"]}",
]


@pytest.mark.parametrize("line", REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_plain_or_not_right_is_left_to_the_schema(line: bytes) -> None:
    assert not agrees(line)


def test_a_line_beyond_the_limit_is_not_even_looked_at() -> None:
    assert pack_orders([GOOD, GOOD], len(GOOD)) == [by_schema(GOOD)] * 2
    assert pack_orders([GOOD], len(GOOD) - 1) == [None]


def test_many_ids_in_one_go_rise_and_are_of_version_7() -> None:
    ids = OrderIds()
    made = [ids(), *ids.many(500), ids(), *ids.many(3), *ids.many(0)]
    assert len(made) == 505
    assert made == sorted(set(made))
    assert {uuid.UUID(bytes=one).version for one in made} == {7}
    assert {uuid.UUID(bytes=one).variant for one in made} == {uuid.RFC_4122}


def test_many_ids_go_on_where_the_random_part_is_full() -> None:
    ids = OrderIds(clock_ns=lambda: 5_000_000)
    before = ids()
    ids._rand_b = RAND_B_MAX - 5
    made = [before, *ids.many(100)]
    assert made == sorted(set(made))
    assert next_keys(0, RAND_B_MAX, b"\0" * 8) == ([], RAND_B_MAX)


def test_results_are_json_with_what_is_between_them() -> None:
    keys = OrderIds().many(3)
    expected = [{"line": 9 + n, "order_id": format_uuid(key)} for n, key in enumerate(keys)]
    text = render_taken(9, keys, b"", b"\n")
    assert [json.loads(line) for line in text.splitlines()] == expected
    assert json.loads(b"[" + render_taken(9, keys, b",\n", b"")[2:] + b"]") == expected
    with pytest.raises(ValueError, match="16 bytes"):
        render_taken(1, [b"short"], b"", b"")

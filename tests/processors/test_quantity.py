"""Quantities against Python's decimal arithmetic."""

from __future__ import annotations

import json
import re
import time
from decimal import Context, Decimal, Inexact, InvalidOperation

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processors.quantity import (
    QUANTITY_MAX,
    QuantityError,
    format_quantity,
    parse_delta,
    parse_quantity,
)

# Wide enough for every literal of 64 characters with an exponent of two digits, so exact.
EXACT = Context(prec=400, Emin=-999999, Emax=999999, traps=[Inexact, InvalidOperation])


def expected(raw: bytes, *, signed: bool) -> int | None:
    """Thousandths by the contract's words, or None for what is refused."""
    value = read_exactly(raw)
    if value is None or not 0 < abs(value) <= 10**9 or (value < 0 and not signed):
        return None
    # Finer than a thousandth; scaleb of such a number might not be exact.
    if value.adjusted() < -3:
        return None
    thousandths = EXACT.scaleb(value, 3)
    return int(thousandths) if thousandths == int(thousandths) else None


def read_exactly(raw: bytes) -> Decimal | None:
    """The value of a JSON number, or of text of the contract's form."""
    exact = EXACT.create_decimal
    try:
        value = json.loads(raw.decode(), parse_int=exact, parse_float=exact)
    except ValueError:
        return None
    if isinstance(value, str):
        form = r"-?[0-9]{1,10}(\.[0-9]{1,3})?"
        return exact(value) if re.fullmatch(form, value, re.ASCII) else None
    return value if isinstance(value, Decimal) else None


def got(raw: bytes, *, signed: bool) -> int | None:
    try:
        return parse_delta(raw) if signed else parse_quantity(raw)
    except QuantityError:
        return None


digits = st.text("0123456789", min_size=1, max_size=12)
sign = st.sampled_from(["", "", "", "-", "+"])
fraction = st.one_of(st.just(""), st.text("0123456789", max_size=6).map(lambda text: f".{text}"))
exponent = st.one_of(
    st.just(""),
    st.tuples(st.sampled_from("eE"), sign, st.text("0123456789", max_size=3)).map("".join),
)
spelled = st.tuples(sign, digits, fraction, exponent).map("".join)
raws = st.one_of(
    spelled.map(str.encode),
    spelled.map(lambda text: json.dumps(text).encode()),
    st.text(max_size=8).map(lambda text: json.dumps(text).encode()),
    st.sampled_from([b"true", b"null", b"{}", b"[1]", b"", b'"1']),
)


@given(raws, st.booleans())
@example(b'"1000000000"', False)
@example(b'"1000000000.001"', False)
@example(b"1e9", False)
@example(b"1.0000", False)
@example(b"1.0001", False)
@example(b"100e-2", False)
@example(b"-0", True)
@example(b'"-0.001"', True)
@example(b'"\xd9\xa1"', False)  # an Arabic one is a digit to str.isdigit
def test_every_spelling_is_read_as_decimal_reads_it(raw: bytes, signed: bool) -> None:
    assert got(raw, signed=signed) == expected(raw, signed=signed)


@pytest.mark.parametrize(
    ("raw", "thousandths"),
    [
        (b'"12.5"', 12500),
        (b"12.5", 12500),
        (b'"0.001"', 1),
        (b"1e-3", 1),
        (b"1e3", 1_000_000),
        (b"1.0000", 1000),
        (b'"0000000001.500"', 1500),
        (b'"\\u0031\\u002e5"', 1500),
        (b"1000000000", QUANTITY_MAX),
        (b"0.00000000000000000000000000000001e32", 1000),
    ],
)
def test_quantities_are_thousandths(raw: bytes, thousandths: int) -> None:
    assert parse_quantity(raw) == thousandths


@pytest.mark.parametrize(
    "raw",
    [
        b'"NaN"', b'" 1"', b'"1 "', b'"1_0"', b'"1\\n"', b'"+1"', b'"-1"', b'".5"', b'"1."', b'""',
        b'"1e3"', b'"00000000001"', b'"1.2345"', b'"1,5"', b'"0x10"', b'"0"', b'"0.000"',
        b"0", b"-1", b"1e-4", b"1.2345", b"1e10", b"1000000000.001", b"1e999999", b"1e-999999",
        b"0e5", b"null", b"true", b"[]", b"{}", b"[1]", b'{"a":1}',
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(raw: bytes) -> None:
    with pytest.raises(QuantityError):
        parse_quantity(raw)


def test_a_delta_has_either_sign_but_is_not_zero() -> None:
    assert parse_delta(b'"-30"') == -30_000
    assert parse_delta(b"-0.5") == -500
    assert parse_delta(b'"30"') == 30_000
    for zero in (b'"-0"', b"0", b"-0.0"):
        with pytest.raises(QuantityError, match="not be 0"):
            parse_delta(zero)


@pytest.mark.parametrize(
    "raw", [b"1" * 60_000, b"1e" + b"9" * 60_000, b"1e" + b"9" * 9, b'"' + b"1" * 60_000 + b'"']
)
def test_long_numbers_are_refused_before_any_arithmetic(raw: bytes) -> None:
    started = time.process_time()
    for _ in range(100):
        with pytest.raises(QuantityError):
            parse_quantity(raw)
    # int() of 60,000 digits a hundred times takes seconds.
    assert time.process_time() - started < 0.5


@given(st.integers(-QUANTITY_MAX, QUANTITY_MAX).filter(bool))
def test_what_is_written_is_read_again(thousandths: int) -> None:
    text = format_quantity(thousandths)
    assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]{0,2}[1-9])?", text)
    assert parse_delta(b'"%s"' % text.encode()) == parse_delta(text.encode()) == thousandths


def test_quantities_are_written_without_trailing_zeros() -> None:
    written = [format_quantity(number) for number in (12500, 1000, 1, -1500, 0, QUANTITY_MAX)]
    assert written == ["12.5", "1", "0.001", "-1.5", "0", "1000000000"]

"""Quantities: integer thousandths from the wire to the database, never a float.

A quantity on the wire is text (`"12.5"`) or a JSON number (`12.5`, `1.25e1`); both are exact here.
Length and exponent are bounded before any arithmetic, so `1e999999` costs nothing.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

QUANTITY_MAX = 10**12  # thousandths, that is 1,000,000,000 units
NUMBER_CHARACTERS_MAX = 64
# With at most 64 characters of digits, a larger exponent can only be zero, out of range, or finer
# than a thousandth.
EXPONENT_MAX = 80

# The common forms of both spellings in one look; all else takes the slower path.
PLAIN_BYTES_MAX = len(b'"1234567890.123"')
PLAIN = re.compile(rb'(")?(0|[1-9][0-9]{0,9})(?:\.([0-9]{1,3}))?(?(1)")')
TEXT = re.compile(r"(-?)([0-9]{1,10})(?:\.([0-9]{1,3}))?")
NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")
# Indexed by the number of decimals: what one of the last digit is worth, in thousandths.
SCALE = (1000, 100, 10, 1)

ASK_QUANTITY = 'must be a number with at most 3 decimals, as text like "12.5" or a JSON number'
ASK_DELTA = ASK_QUANTITY.replace("a number", "a number, '-' allowed,")


class QuantityError(ValueError):
    """A quantity that is not one; `detail` is the sentence for the client."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


def parse_quantity(raw: bytes | msgspec.Raw) -> int:
    """Thousandths of a raw JSON value, 1 to QUANTITY_MAX; raises QuantityError."""
    value = bytes(raw)
    if len(value) <= PLAIN_BYTES_MAX:
        return _parse_short(value)
    return above_zero(_read_raw(value, ASK_QUANTITY))


def parse_delta(raw: bytes | msgspec.Raw) -> int:
    """Thousandths of a raw JSON value, either sign, not 0; raises QuantityError."""
    return not_zero(_read_raw(bytes(raw), ASK_DELTA))


def above_zero(thousandths: int) -> int:
    """The same number if it is a quantity; raises QuantityError."""
    if thousandths <= 0:
        raise QuantityError("must be more than 0")
    if thousandths > QUANTITY_MAX:
        raise QuantityError(f"must be at most {format_quantity(QUANTITY_MAX)}")
    return thousandths


def not_zero(thousandths: int) -> int:
    """The same number if it is a delta; raises QuantityError."""
    if thousandths == 0:
        raise QuantityError("must not be 0")
    if abs(thousandths) > QUANTITY_MAX:
        limit = format_quantity(QUANTITY_MAX)
        raise QuantityError(f"must be from -{limit} to {limit}")
    return thousandths


def thousandths_of_text(text: str, ask: str = ASK_QUANTITY) -> int:
    """Thousandths of the text form, any sign; raises QuantityError saying `ask`."""
    match = TEXT.fullmatch(text)
    if match is None:
        raise QuantityError(ask)
    sign, whole, decimals = match.groups()
    thousandths = int(whole) * 1000
    if decimals is not None:
        thousandths += int(decimals) * SCALE[len(decimals)]
    return -thousandths if sign else thousandths


def thousandths_of_number(literal: str, ask: str = ASK_QUANTITY) -> int:
    """Thousandths of a JSON number literal, any sign and exponent; raises QuantityError.

    It counts by value: `1e3` and `1.0000` are fine, `1.0001` is not.
    """
    if len(literal) > NUMBER_CHARACTERS_MAX:
        raise QuantityError(f"must have at most {NUMBER_CHARACTERS_MAX} characters as a number")
    match = NUMBER.fullmatch(literal)
    if match is None:
        raise QuantityError(ask)
    sign, whole, decimals, exponent_digits = match.groups(default="")
    exponent = int(exponent_digits or "0")
    if abs(exponent) > EXPONENT_MAX:
        raise QuantityError(f"must have an exponent from -{EXPONENT_MAX} to {EXPONENT_MAX}")
    thousandths = _shift(int(whole + decimals), exponent - len(decimals) + 3, ask)
    return -thousandths if sign else thousandths


def format_quantity(thousandths: int) -> str:
    """The text of an integer of thousandths, without trailing zeros: 12500 -> "12.5"."""
    whole, rest = divmod(abs(thousandths), 1000)
    sign = "-" if thousandths < 0 else ""
    return f"{sign}{whole}.{rest:03d}".rstrip("0").rstrip(".") if rest else f"{sign}{whole}"


# The same few quantities come again and again, and looking one up is much faster than reading it.
@lru_cache(maxsize=4096)
def _parse_short(raw: bytes) -> int:
    match = PLAIN.fullmatch(raw)
    if match is None:
        return above_zero(_read_raw(raw, ASK_QUANTITY))
    whole, decimals = match.group(2, 3)
    if decimals is None:
        return above_zero(int(whole) * 1000)
    return above_zero(int(whole) * 1000 + int(decimals) * SCALE[len(decimals)])


def _read_raw(raw: bytes, ask: str) -> int:
    if not raw.startswith(b'"'):
        return thousandths_of_number(raw.decode("ascii", "replace"), ask)
    try:
        text = msgspec.json.decode(raw, type=str)
    except ValueError:
        raise QuantityError(ask) from None
    return thousandths_of_text(text, ask)


def _shift(digits: int, places: int, ask: str) -> int:
    if places >= 0:
        return digits * int(10**places)
    shifted, remainder = divmod(digits, int(10**-places))
    if remainder:
        raise QuantityError(ask)
    return shifted

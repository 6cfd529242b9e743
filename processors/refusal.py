"""The second look: why a body is refused, every field error at once.

The fast path in `schema` only says yes or "look again". This path is slower, decides alone, and is
the reference: whatever the fast path takes, it takes with the same result. It also reads what is
not hot (lots, adjustments).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, NoReturn, TypeAlias

from msgspec import Struct

from processors.quantity import (
    ASK_DELTA,
    ASK_QUANTITY,
    QuantityError,
    thousandths_of_number,
    thousandths_of_text,
)

NESTING_MAX = 32
# One body may be wrong in thousands of places; past this many only their number is told.
ERRORS_MAX = 1000

CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The one that not every database can store.
NUL = re.compile(r"\x00")
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
)
JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
# In text that is known to be JSON: group 1 is the escape of a surrogate without its other half.
ESCAPES = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F])|.)",
    re.DOTALL,
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Check: TypeAlias = "Callable[[Any], Any]"


class FieldError(Struct, frozen=True):
    """One thing wrong with a body: an RFC 6901 pointer to it and a sentence."""

    pointer: str
    detail: str


class Malformed(ValueError):
    """The body is not JSON (400)."""


class Invalid(ValueError):
    """The body is JSON and breaks the schema (422); `errors` is never empty."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.pointer or '/'} {error.detail}" for error in errors))
        self.errors = errors


class Wrong(ValueError):
    """A check's verdict on one value."""


class Number(Struct, frozen=True):
    """A JSON number as it was spelled."""

    literal: str


class Findings:
    """Collects the field errors of one body."""

    def __init__(self) -> None:
        self._errors: list[FieldError] = []
        self._omitted = 0

    def add(self, pointer: str, detail: str) -> None:
        """Note one error; past ERRORS_MAX it is only counted."""
        if len(self._errors) < ERRORS_MAX:
            self._errors.append(FieldError(pointer, detail))
        else:
            self._omitted += 1

    def check(self, pointer: str, value: object, check: Check) -> Any:
        """What `check` makes of `value`, or None with the error noted."""
        try:
            return check(value)
        except (Wrong, QuantityError) as verdict:
            self.add(pointer, str(verdict))
            return None

    def raise_if_any(self) -> None:
        """Raise Invalid when anything was noted."""
        if self._omitted:
            self._errors.append(FieldError("", f"and {self._omitted} errors more, left out here"))
        if self._errors:
            raise Invalid(self._errors)

    def fields(
        self, value: object, pointer: str, required: dict[str, Check], optional: dict[str, Check]
    ) -> dict[str, Any]:
        """The checked members of an object; null counts as absent for an optional one."""
        if type(value) is not dict:
            self.add(pointer, f"must be an object, not {kind(value)}")
            return {}
        for name in required:
            if name not in value:
                self.add(f"{pointer}/{name}", "required")
        found = {}
        for name, member in value.items():
            check = required.get(name) or optional.get(name)
            if check is None:
                self.add(f"{pointer}/{escape(name)}", "unknown field")
            elif name in required or member is not None:
                found[name] = self.check(f"{pointer}/{name}", member, check)
        return found


def parse_json(body: bytes) -> Any:
    """The JSON value of a body, numbers as `Number`, the last of duplicate keys; Malformed."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8: {error.reason} at byte {error.start}") from None
    _refuse_deep(text)
    try:
        value = json.loads(
            text, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
        )
    except (json.JSONDecodeError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from None
    if any(match.group(1) for match in ESCAPES.finditer(text)):
        raise Malformed("not JSON: the escape of a surrogate without its other half")
    return value


def kind(value: object) -> str:
    """What a JSON value is, for a sentence."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "a number")


def escape(name: str) -> str:
    """A member name as an RFC 6901 token."""
    return name.replace("~", "~0").replace("/", "~1")


def text(characters_max: int, *, control: re.Pattern[str] = CONTROL) -> Check:
    """A check for text of 1 to `characters_max` characters, none of which `control` finds."""

    def check(value: object) -> str:
        if type(value) is not str:
            raise Wrong(f"must be text, not {kind(value)}")
        if not 1 <= len(value) <= characters_max:
            raise Wrong(f"must have 1 to {characters_max} characters, has {len(value)}")
        if found := control.search(value):
            raise Wrong(f"must have no control characters, has U+{ord(found.group()):04X}")
        return value

    return check


def code(value: object) -> str:
    """A sku or lot_id."""
    if type(value) is not str:
        raise Wrong(f"must be text, not {kind(value)}")
    if CODE.fullmatch(value) is None:
        raise Wrong("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return value


def uuid(value: object) -> bytes:
    """The 16 bytes of a UUID in its hyphenated form; upper case is read too."""
    if type(value) is not str or UUID_TEXT.fullmatch(value) is None:
        raise Wrong("must be a UUID like 01937a3e-5b1c-7cc0-8000-0123456789ab")
    return bytes.fromhex(value.replace("-", ""))


def quantity_like(ask: str, bound: Callable[[int], int]) -> Check:
    """A check for a quantity or a delta, to thousandths."""

    def check(value: object) -> int:
        if type(value) is str:
            return bound(thousandths_of_text(value, ask))
        if type(value) is Number:
            return bound(thousandths_of_number(value.literal, ask))
        raise Wrong(ASK_DELTA if ask is ASK_DELTA else ASK_QUANTITY)

    return check


def instant(value: object) -> int:
    """Microseconds since 1970 of RFC 3339 text with an offset.

    Up to 9 decimals are read and cut to microseconds, so a time is never later than was said.
    """
    match = RFC3339.fullmatch(value) if type(value) is str else None
    if match is None:
        raise Wrong("must be RFC 3339 with an offset, like 2026-03-01T12:00:00Z")
    year, month, day, hour, minute, second, decimals, sign, hours, minutes = match.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    try:
        zone = timezone(-offset if sign == "-" else offset)
        whole = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second), 0, zone
        )
        microseconds = int((decimals or "").ljust(9, "0")[:6])
        return (whole.astimezone(UTC) - EPOCH) // MICROSECOND + microseconds
    except (ValueError, OverflowError):
        raise Wrong("must be a time that exists, of the years 1 to 9999 in UTC") from None


def _refuse_deep(text: str) -> None:
    depth = 0
    for character in re.findall(r"[\[\]{}]", JSON_STRING.sub("", text)):
        depth += 1 if character in "[{" else -1
        if depth > NESTING_MAX:
            raise Malformed(f"nested deeper than {NESTING_MAX}")


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"not JSON: {name} is not a JSON number")

from __future__ import annotations

from base64 import urlsafe_b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.paging import CursorError, Int64, bounded, decode_cursor, encode_cursor

Key: type[tuple[int, str]] = tuple[Int64, str]


@given(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    )
)
def test_a_cursor_gives_back_its_key(key: tuple[int, str]) -> None:
    assert decode_cursor(encode_cursor(key), Key) == key


@given(st.text(max_size=300))
def test_any_text_is_a_cursor_or_a_cursor_error(text: str) -> None:
    try:
        decode_cursor(text, Key)
    except CursorError:
        return
    assert len(text) <= 256


@pytest.mark.parametrize(
    "key", [(2**64 - 1, "a"), (-(2**63) - 0, 1), ("a", "a"), (1,), (1, "a", 1), {}, None]
)
def test_a_key_of_another_shape_is_refused(key: object) -> None:
    cursor = urlsafe_b64encode(msgspec.msgpack.encode(key)).decode().rstrip("=")
    with pytest.raises(CursorError):
        decode_cursor(cursor, Key)


@pytest.mark.parametrize(("asked", "used"), [(-5, 1), (0, 1), (7, 7), (10**9, 1000)])
def test_a_limit_is_bounded(asked: int, used: int) -> None:
    assert bounded(asked) == used

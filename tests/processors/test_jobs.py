from __future__ import annotations

from processors.jobs import CAUSE_CHARACTERS_MAX, describe


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as raised:
        return raised


def test_a_cause_is_the_traceback() -> None:
    text = describe(caught(ValueError("no bacon")))
    assert text.startswith("Traceback")
    assert "in caught" in text
    assert text.endswith("ValueError: no bacon\n")


def test_a_long_cause_keeps_its_beginning_and_its_end() -> None:
    text = describe(caught(ValueError("x" * 100_000 + "the end")))
    assert len(text) < CAUSE_CHARACTERS_MAX + 100
    assert text.startswith("Traceback")
    assert text.endswith("the end\n")
    assert " characters ...\n" in text


def test_a_cause_is_text_that_a_database_takes() -> None:
    text = describe(caught(ValueError("\0 and \ud800")))
    assert "\0" not in text
    assert "\\ud800" in text
    text.encode()


def test_an_error_that_can_not_be_shown_is_still_described() -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert "Shy" in describe(caught(Shy()))

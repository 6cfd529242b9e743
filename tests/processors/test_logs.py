from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from processors.logs import JsonFormatter, TextFormatter


def record(message: str, *args: object, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("first\nsecond")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("a.b", logging.WARNING, "file", 1, message, args, info)
    made.created = 1_795_366_861.25
    return made


def test_a_text_line_has_instant_level_process_and_message() -> None:
    line = TextFormatter("worker 1").format(record("%d orders", 5))
    assert line == "2026-11-22T17:01:01.250000Z warning worker 1   5 orders"


def test_a_json_line_has_the_same_and_more() -> None:
    fields = json.loads(JsonFormatter("front 0").format(record("%d orders", 5)))
    assert fields.pop("pid") > 0
    assert fields == {
        "at": "2026-11-22T17:01:01.250000Z",
        "level": "warning",
        "process": "front 0",
        "logger": "a.b",
        "message": "5 orders",
    }


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
def test_a_record_is_one_line_whatever_it_says(form: type[logging.Formatter]) -> None:
    line = form("front 0").format(record("a\nb\r\x1b[31m\u2028c\x85", error=True))
    assert len(line.splitlines()) == 1 or form is JsonFormatter
    assert "\n" not in line
    assert not re.search(r"[\x00-\x1f\x7f]", line)
    assert "ValueError: first" in line

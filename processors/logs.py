"""Logging of every process: to stderr, one line per record, text or json, UTC microseconds.

text: 2026-11-22T17:06:01.123456Z info    worker 1     what happened
json: {"at", "level", "process", "pid", "logger", "message"} and, where there are such,
      {"order_id", "request_id", "trace_id", "exception"}

What a line is about comes with it: `extra=of_order(...)`, or from `about` around what logs it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec

from processors.settings import LogSettings

TRACE_ID = slice(3, 35)  # of a traceparent
_request: ContextVar[dict[str, str]] = ContextVar("request", default={})  # noqa: B039 - never changed

# A line break inside a record would let a client's text pass for a record of its own.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    return CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def of_order(
    order_id: str | None, request_id: str | None, traceparent: str | None
) -> dict[str, dict[str, str]]:
    """What a line about an order is told with: `log.error(..., extra=of_order(...))`."""
    named = {"order_id": order_id, "request_id": request_id}
    named["trace_id"] = None if traceparent is None else traceparent[TRACE_ID]
    return {"about": {name: text for name, text in named.items() if text is not None}}


@contextmanager
def about(request_id: str | None, traceparent: str | None) -> Iterator[None]:
    """Every line that this task logs in here is about that request."""
    token = _request.set(of_order(None, request_id, traceparent)["about"])
    try:
        yield
    finally:
        _request.reset(token)


def subject(record: logging.LogRecord) -> dict[str, str]:
    """What the line is about."""
    return {**_request.get(), **getattr(record, "about", {})}


def instant(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        # An order's id stands in the text of its lines already.
        text += "".join(
            f" {key}={name}" for key, name in subject(record).items() if key != "order_id"
        )
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        level = record.levelname.lower()
        return f"{instant(record)} {level:<7} {self.process:<10} {escape(text)}"


class JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, str | int] = {
            "at": instant(record),
            "level": record.levelname.lower(),
            "process": self.process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": record.getMessage(),
            **subject(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up_logging(settings: LogSettings, process: str) -> None:
    """Replaces the root logger's handlers. `process`: role and index, as in `front 0`."""
    handler = logging.StreamHandler(sys.stderr)
    form = JsonFormatter if settings.format == "json" else TextFormatter
    handler.setFormatter(form(process))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    # At info it tells of each of its plug-ins whenever it is imported.
    logging.getLogger("alembic").setLevel(logging.WARNING)

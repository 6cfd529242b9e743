"""An event, as the outbox has it and endpoints are told of it."""

from __future__ import annotations

from msgspec import Struct


class Event(Struct, frozen=True):
    """`place`: in the outbox; `subject`: whose events are told in order; `number`: of the event
    among those of its subject."""

    place: int
    id: bytes
    subject: bytes
    number: int
    type: str
    created_us: int

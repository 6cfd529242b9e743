"""Requests that bore an Idempotency-Key, and what they were answered, in the same transaction as
what they did. Orders need none of this: their ids follow from the key."""

from __future__ import annotations

from hashlib import blake2b
from typing import Self

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from processors.instants import now_us
from processors.tables import requests


class Request(Struct, frozen=True):
    """Names one request: who sent it with which key; `body_hash` tells what it asked for."""

    id: bytes
    body_hash: bytes

    @classmethod
    def of(cls, owner: str | None, key: bytes, asked: object) -> Self:
        """`asked`: what it asks for, of types that msgspec encodes."""
        named = msgspec.msgpack.encode((owner, key))
        body = msgspec.msgpack.encode(asked)
        return cls(_digest(named), _digest(body))


class KeyTaken(Exception):
    """The key came before with another request."""


def earlier_answer(connection: Connection, request: Request) -> bytes | None:
    """What the request was answered when it came before, JSON. Raises KeyTaken."""
    row = connection.execute(
        sa.select(requests.c.body_hash, requests.c.answer).where(requests.c.id == request.id)
    ).one_or_none()
    if row is None:
        return None
    if row.body_hash != request.body_hash:
        raise KeyTaken
    return bytes(row.answer)


def keep_answer(connection: Connection, request: Request, answer: bytes) -> None:
    """Where two keep it at the same instant, one of them raises StoreContended."""
    row = {"id": request.id, "body_hash": request.body_hash, "answer": answer}
    connection.execute(sa.insert(requests).values(**row, created_us=now_us()))


def forget_requests(connection: Connection, before_us: int, rows: int) -> int:
    """Removes the oldest, so many at most -> how many."""
    old = (
        sa.select(requests.c.id)
        .where(requests.c.created_us < before_us)
        .order_by(requests.c.created_us)
        .limit(rows)
    )
    return connection.execute(sa.delete(requests).where(requests.c.id.in_(old))).rowcount


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=16).digest()

"""Endpoints that are told of outcomes, and how a message to one is signed: Standard Webhooks.

A message has an id that is the same however often it is sent, a timestamp of the attempt, and for
each secret of its endpoint a signature, so that a secret can be replaced without a message that
the receiver can't verify (https://www.standardwebhooks.com):

    webhook-id: ID    webhook-timestamp: SECONDS    webhook-signature: v1,BASE64 v1,BASE64

    BASE64 = HMAC-SHA256(secret, ID.SECONDS.BODY)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from msgspec import Struct

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
NAMES = "1 to 32 of a-z 0-9 -"
ENDPOINTS_MAX = 32
URL_CHARACTERS_MAX = 2000
SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
SECRET_FILE_BYTES_MAX = 4096
# The new one and the one that it replaces.
SECRETS_MAX = 2
ORDER_EVENTS = ("order.allocated", "order.rejected", "order.dead", "order.cancelled")
STOCK_EVENTS = ("stock.low", "stock.expired")
EVENTS = ORDER_EVENTS + STOCK_EVENTS
TEST_EVENT = "webhook.test"
FIELDS = ("name", "url", "secret", "events", "disabled")
# What --webhook-url makes.
DEFAULT_NAME = "default"


class WebhookError(Exception):
    """An endpoint that can't be used; the text names value, limit and key, and no secret."""


class Endpoint(Struct, frozen=True):
    """`secrets`: the keys of signatures, the newest first. `events`: patterns of types, as in
    `order.*`. `disabled`: it is told of nothing, and what happens meanwhile waits for it."""

    name: str
    url: str
    secrets: tuple[bytes, ...]
    events: tuple[str, ...] = ("*",)
    disabled: bool = False

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r}, {shown_url(self.url)!r})"

    def wants(self, event_type: str) -> bool:
        """Whether it is to be told of such events."""
        return any(fnmatchcase(event_type, pattern) for pattern in self.events)


def names_told(endpoints: Sequence[Endpoint]) -> tuple[str, ...]:
    """Those that are told of anything."""
    return tuple(one.name for one in endpoints if not one.disabled)


def shown_url(url: str) -> str:
    """Without what may be a password or a token, as paths of chats' webhooks are: for logs and
    lists, where the endpoint's name tells it from others of its host."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    hidden = parts.path.strip("/") or parts.query
    return f"{parts.scheme}://{host}/" + ("…" if hidden else "")


def event_id(subject: bytes, number: int, kind: str = "") -> bytes:
    """16 bytes, the same for ever: of an order's outcome its id and round, of stock the sku, its
    movement's number, and which event that is."""
    digest = blake2b(
        number.to_bytes(8, "big") + kind.encode() + b"\0" + subject,
        digest_size=16,
        person=b"rasher.event",
    ).digest()
    # The bits that make it a UUID of version 8.
    return bytes(
        (*digest[:6], digest[6] & 0x0F | 0x80, digest[7], digest[8] & 0x3F | 0x80, *digest[9:])
    )


def shown_id(number: bytes) -> str:
    """As receivers see it."""
    return str(UUID(bytes=number))


def sign(secrets: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes) -> str:
    """The signatures of a message, one for each secret."""
    signed = b"%s.%d.%s" % (message_id.encode(), timestamp_s, body)
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, signed, sha256)).decode() for secret in secrets
    )


def headers_of(
    secrets: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """What a request carries beside its body."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": sign(secrets, message_id, timestamp_s, body),
    }


# ---- settings ------------------------------------------------------------------------------------


def read_endpoints(tables: Any, where: str) -> tuple[Endpoint, ...]:
    """`[[webhooks]]` of rasher.toml, checked. Raises WebhookError."""
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise WebhookError(f"webhooks in {where} must be tables, each headed [[webhooks]]")
    if len(tables) > ENDPOINTS_MAX:
        raise WebhookError(f"{len(tables)} webhooks in {where}: at most {ENDPOINTS_MAX}")
    found = [_read(one, f"webhooks number {at} in {where}") for at, one in enumerate(tables, 1)]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise WebhookError(f"two webhooks in {where} are called {twice}")
    return tuple(found)


def make_endpoint(name: str, url: str, secrets: Sequence[str], where: str) -> Endpoint:
    """One that is told of everything. Raises WebhookError."""
    return _read({"name": name, "url": url, "secret": list(secrets)}, where)


def _read(table: Mapping[str, Any], where: str) -> Endpoint:
    unknown = next((key for key in table if key not in FIELDS), None)
    if unknown is not None:
        raise WebhookError(f"{where}: no such key: {unknown}, there are {', '.join(FIELDS)}")
    name = table.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise WebhookError(f"{where}: name must be {NAMES}")
    where = f"{where} ({name})"
    disabled = table.get("disabled", False)
    if not isinstance(disabled, bool):
        raise WebhookError(f"{where}: disabled must be true or false")
    return Endpoint(
        name,
        _check_url(table.get("url"), where),
        _check_secrets(table.get("secret"), where),
        _check_events(table.get("events", ["*"]), where),
        disabled,
    )


def _check_url(url: Any, where: str) -> str:
    wanted = f"{where}: url must be http:// or https://, at most {URL_CHARACTERS_MAX} characters"
    if not isinstance(url, str) or not url.isprintable() or len(url) > URL_CHARACTERS_MAX:
        raise WebhookError(wanted)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or " " in url:
        raise WebhookError(wanted)
    return url


def _check_events(patterns: Any, where: str) -> tuple[str, ...]:
    if not isinstance(patterns, list) or not all(isinstance(one, str) for one in patterns):
        raise WebhookError(f'{where}: events must be a list, as in ["order.*", "stock.low"]')
    for one in patterns:
        if not any(fnmatchcase(event, one) for event in EVENTS):
            raise WebhookError(f"{where}: events {one[:50]!r}: there are {', '.join(EVENTS)}")
    if not patterns:
        raise WebhookError(f"{where}: events is empty: leave it out for all of them")
    return tuple(patterns)


def _check_secrets(given: Any, where: str) -> tuple[bytes, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise WebhookError(f"{where}: secret must be a text, or a list of two, the newest first")
    if not 1 <= len(texts) <= SECRETS_MAX:
        raise WebhookError(f"{where}: secret has {len(texts)} texts, must be 1 or {SECRETS_MAX}")
    return tuple(_secret(one, where) for one in texts)


def _secret(text: str, where: str) -> bytes:
    """The key; no error repeats any of it."""
    if text.startswith("@"):
        text = _secret_in(Path(text[1:]), where)
    sizes = f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes"
    wanted = f"{where}: secret must be {SECRET_PREFIX} and base64 of {sizes}, or @FILE with that"
    if not text.startswith(SECRET_PREFIX):
        raise WebhookError(wanted)
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise WebhookError(wanted) from None
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise WebhookError(f"{wanted}; it has {len(secret)} bytes")
    return secret


def _secret_in(path: Path, where: str) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(SECRET_FILE_BYTES_MAX).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise WebhookError(f"{where}: secret @{path}: {reason}") from None

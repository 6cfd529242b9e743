"""API keys: who a request is from, and what it may do.

`Authorization: Bearer rsk_…`. A token names its key by its second part, which is no secret; what
is secret is compared as hashes, in constant time. The keys of a front never change: at HUP fronts
are replaced, so whatever remembers that a key was good ends with them.

    Keyed        who it is, or 401, for every path but those that are open
    needing      403, route by route, by the table NEEDS; a route that is not in it needs admin
    owners.py    whose orders a request sees
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest

from msgspec import Struct

from ingest.answers import Answer, Headers, problem
from ingest.exchange import Application, Receive, Scope, Send, deliver
from ingest.origin import IDENTITY, NOBODY, Origin, make_origin
from ingest.problems import NO_KEY, UNKNOWN_KEY, WRONG_SCOPE
from processors.keys import ID, Key
from processors.tally import Tally

AUTHORIZATION = b"authorization"
TOKEN = re.compile(rb"bearer +(rsk_(%s)_[A-Za-z0-9_-]{43})" % ID.encode(), re.IGNORECASE)
NO_HASH = bytes(32)

SUBMIT, READ, ADMIN = "submit", "read", "admin"
# Any one of them; admin always is enough. What submit alone sees of orders: owners.py.
NEEDS: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/orders"): frozenset({SUBMIT}),
    ("POST", "/orders/bulk"): frozenset({SUBMIT}),
    ("GET", "/orders"): frozenset({SUBMIT, READ}),
    ("GET", "/orders/{order_id}"): frozenset({SUBMIT, READ}),
    ("DELETE", "/orders/{order_id}"): frozenset({SUBMIT}),
    ("GET", "/lots"): frozenset({READ}),
    ("GET", "/lots/{lot_id}/orders"): frozenset({READ}),
    ("GET", "/inventory"): frozenset({READ}),
    ("GET", "/inventory/{sku}"): frozenset({READ}),
    ("GET", "/events"): frozenset({READ}),
    ("GET", "/metrics"): frozenset({READ}),
    # Stock, dead letters (whose causes show tracebacks) and deliveries are the operator's.
    ("POST", "/lots"): frozenset(),
    ("POST", "/lots/{lot_id}/adjustments"): frozenset(),
    ("POST", "/lots/{lot_id}/recall"): frozenset(),
    ("GET", "/dead-letters"): frozenset(),
    ("GET", "/dead-letters/{order_id}"): frozenset(),
    ("DELETE", "/dead-letters/{order_id}"): frozenset(),
    ("POST", "/dead-letters/{order_id}/replay"): frozenset(),
    ("GET", "/deliveries"): frozenset(),
    ("POST", "/deliveries/{delivery_id}/resend"): frozenset(),
}
# Asked for by those who carry no key (probes, browsers), and telling nothing of anybody's orders.
OPEN = frozenset({"/", "/livez", "/readyz", "/openapi.json", "/docs"})
OPEN_BELOW = ("/docs/",)


class Identity(Struct, frozen=True):
    """The key that a request came with. `origin`: of an order whose request has no names."""

    name: str
    scopes: frozenset[str]
    origin: Origin

    def may(self, scopes: frozenset[str]) -> bool:
        """Whether it has one of them, or admin."""
        return ADMIN in self.scopes or not self.scopes.isdisjoint(scopes)

    @property
    def submits(self) -> bool:
        """Whether it may order."""
        return self.may(NEEDS["POST", "/orders"])


# Whoever asks for what is open.
STRANGER = Identity("", frozenset(), NOBODY)


class Keyring:
    """The keys of a front."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_id: dict[bytes, tuple[bytes, Identity]] = {}
        for key in keys:
            identity = Identity(key.name, frozenset(key.scopes), make_origin(key.name))
            self._by_id[key.id.encode()] = bytes.fromhex(key.sha256), identity

    def identify(self, authorization: bytes) -> Identity | None:
        """Whose key that value of the header is."""
        match = TOKEN.fullmatch(authorization)
        if match is None:
            return None
        token, key_id = match.groups()
        hashed, identity = self._by_id.get(key_id, (NO_HASH, None))
        return identity if compare_digest(sha256(token).digest(), hashed) else None


class Keyed:
    """An application that takes requests of known keys only; `scope[IDENTITY]` says whose."""

    def __init__(self, app: Application, keyring: Keyring, tally: Tally) -> None:
        self._app = app
        self._keyring = keyring
        self._tally = tally

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_open(scope["path"]):
            scope[IDENTITY] = STRANGER
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == AUTHORIZATION]
        # Of two, a proxy might have looked at the other.
        identity = self._keyring.identify(given[0]) if len(given) == 1 else None
        if identity is None:
            self._tally.refused(401)
            await deliver(unauthorized(given), receive, send)
            return
        scope[IDENTITY] = identity
        await self._app(scope, receive, send)


def needing(scopes: frozenset[str], app: Application, tally: Tally) -> Application:
    """The same application for whoever has one of these scopes; 403 for others."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        identity = scope.get(IDENTITY)
        if identity is None or identity.may(scopes):
            await app(scope, receive, send)
            return
        tally.refused(403)
        await deliver(forbidden(identity, scopes), receive, send)

    return application


def guarded(method: str, path: str, app: Application, tally: Tally) -> Application:
    """The application of a route, for whoever may call it. A route that NEEDS does not know is for
    admin alone: nothing is forgotten here but in the safe direction."""
    return app if is_open(path) else needing(NEEDS.get((method, path), frozenset()), app, tally)


def is_open(path: str) -> bool:
    """Whether that path needs no key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def unauthorized(given: list[bytes]) -> Answer:
    """401; RFC 6750."""
    if not given:
        return problem(NO_KEY, "this needs a key: Authorization: Bearer rsk_…", challenge(""))
    if len(given) > 1:
        detail = "Authorization is there more than once"
        return problem(UNKNOWN_KEY, detail, challenge(', error="invalid_request"'))
    detail = "the key is not known, or was revoked (--keys)"
    return problem(UNKNOWN_KEY, detail, challenge(', error="invalid_token"'))


def forbidden(identity: Identity, scopes: frozenset[str]) -> Answer:
    """403; RFC 6750."""
    wanted = sorted(scopes | {ADMIN})
    has = ", ".join(sorted(identity.scopes))
    detail = f"this needs the scope {' or '.join(wanted)}; the key of {identity.name} has: {has}"
    more = f', error="insufficient_scope", scope="{wanted[-1]}"'
    return problem(WRONG_SCOPE, detail, challenge(more))


def challenge(more: str) -> Headers:
    """What every refusal for a key's sake says."""
    return ((b"www-authenticate", f'Bearer realm="rasher"{more}'.encode()),)

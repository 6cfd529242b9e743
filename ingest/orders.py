"""`POST /orders` and `GET /orders/{id}`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from ingest.accept import Accepted, Acceptor, Pending
from ingest.answers import (
    LOCATION,
    REPLAYED,
    Answer,
    Queued,
    Refused,
    Unanswered,
    Unsynced,
    json_answer,
    problem,
)
from ingest.database import Database
from ingest.exchange import (
    HungUp,
    Receive,
    Scope,
    Send,
    deliver,
    read_json_body,
    unless_known,
    with_etag,
)
from ingest.flight import Flight, identity
from ingest.hangup import cut_off, unless_hung_up
from ingest.idempotency import idempotency_key
from ingest.origin import origin_of
from ingest.outcomes import Outcomes
from ingest.owners import sees
from ingest.patience import applied, asked_wait_s, preferred_wait_s
from ingest.problems import BAD_QUERY, NO_SUCH_ORDER
from ingest.stock import read_query
from processors.explaining import explain_order
from processors.orders import OrderView, find_order
from processors.quantity import format_quantity
from processors.schema import (
    Order,
    format_instant,
    format_uuid,
    load_header,
    load_order,
    parse_uuid,
)
from ringbuf import Found, Identity, Ring

UNSEEN = -1  # no count of commits


class PostOrder:
    """The ASGI application of `POST /orders`."""

    def __init__(self, acceptor: Acceptor, outcomes: Outcomes, body_bytes_max: int) -> None:
        self._acceptor = acceptor
        self._outcomes = outcomes
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json_body(scope, receive, self._body_bytes_max)
            origin, key = origin_of(scope), idempotency_key(scope)
            wait_s, seen = preferred_wait_s(scope), self._outcomes.commits
            accepted = self._acceptor.accept(body, origin, key)
            answer = await self._answer(scope, accepted)
            if wait_s and answer.status == 202 and not isinstance(accepted, Answer):
                answer = await self._final(scope, accepted.key, answer, wait_s, seen)
        except Refused as refused:
            answer = refused.answer
            self._acceptor.tally.refused(answer.status)
        except HungUp:
            return
        except Unanswered:
            await cut_off(scope)
            return
        await deliver(answer, receive, send)

    async def _answer(self, scope: Scope, accepted: Accepted) -> Answer:
        match accepted:
            case Queued():
                return accepted.answer()
            case Unsynced():
                return await unless_hung_up(scope, self._acceptor.acknowledged(accepted))
            case Pending():
                return await unless_hung_up(scope, self._acceptor.finish(accepted))
        return accepted

    async def _final(
        self, scope: Scope, key: bytes, answer: Answer, wait_s: int, seen: int
    ) -> Answer:
        """200 with the outcome, if there is one in time; else the answer as it is."""
        if REPLAYED[0] in answer.headers:
            seen = UNSEEN  # it may have had it long ago
        waiting = self._outcomes.of(Identity(key, 0), seen, wait_s)
        view = await unless_hung_up(scope, waiting)
        if view is None:
            return answer
        more = [one for one in answer.headers if one[0] == LOCATION[0] or one in REPLAYED]
        final = versioned(view.to_json_dict())
        return Answer(200, (*final.headers, *more, *applied(wait_s)), final.body)


class GetOrder:
    """`GET /orders/{id}`: the ring first, then the hands, then the database, with the flow. With
    `wait`, as soon as there is an outcome, or what is known when that time is over."""

    def __init__(self, ring: Ring, database: Database, outcomes: Outcomes) -> None:
        self._ring = ring
        self._database = database
        self._outcomes = outcomes
        self._flight = Flight(database)

    async def __call__(self, scope: Scope, _receive: Receive) -> Answer:
        text: str = scope["path_params"]["order_id"]
        key = parse_uuid(text)
        if key is None:
            return unknown(text)
        query = read_query(scope, "wait", "explain")
        explained = asked_to_explain(query)
        wait_s, seen = asked_wait_s(query), self._outcomes.commits
        found = self._ring.find(key)
        if found is not None and not await self._flight.settled([found.item]):
            must_see(scope, key, owner_in(found))
            if not wait_s:
                return tagged(scope, in_flight(key, found))
            waiting = self._outcomes.of(identity(found.item), seen, wait_s)
            final = await unless_hung_up(scope, waiting)
            if final is not None:
                return await self._final(scope, key, final, explained)
            # It has been moving: what is known now, and not what was known then.
            found = self._ring.find(key)
            if found is not None:
                must_see(scope, key, owner_in(found))
                return tagged(scope, in_flight(key, found))
        view = await self._database.ask(find_order, key)
        if view is None:
            return unknown(format_uuid(key))
        must_see(scope, key, view.owner)
        return await self._final(scope, key, view, explained)

    async def _final(self, scope: Scope, key: bytes, view: OrderView, explained: bool) -> Answer:
        if not explained:
            return tagged(scope, view.to_json_dict())
        found = await self._database.ask(explain_order, key)
        if found is None:
            return unknown(format_uuid(key))
        view, explanation = found
        return tagged(scope, view.to_json_dict() | {"explanation": explanation.to_json_dict()})


def asked_to_explain(query: dict[str, str]) -> bool:
    """Refused for what is neither true nor false."""
    text = query.get("explain", "false")
    if text not in ("true", "false"):
        raise Refused(problem(BAD_QUERY, f"explain must be true or false, is {text[:100]}"))
    return text == "true"


def unknown(order_id: str) -> Answer:
    """404."""
    return problem(NO_SUCH_ORDER, f"no order {order_id[:100]}")


def must_see(scope: Scope, key: bytes, owner: str | None) -> None:
    """Refused with the 404 of an order that is not there, for one that is not to be seen."""
    if not sees(scope, owner):
        raise Refused(unknown(format_uuid(key)))


def owner_in(found: Found) -> str | None:
    """Whose order it is; nobody's when that was damaged in memory."""
    try:
        return load_header(found.item.header).owner
    except msgspec.DecodeError:
        return None


def in_flight(key: bytes, found: Found) -> dict[str, Any]:
    """An order without an outcome, as clients see it."""
    content: dict[str, Any] = {
        "order_id": format_uuid(key),
        "status": "queued" if found.place == "ring" else "processing",
    }
    if found.position is not None:
        content["position"] = found.position
    # Damaged in memory, all that is known is that it is here.
    with suppress(msgspec.DecodeError):
        content |= _of_order(load_order(found.item.payload))
    accepted = format_instant(found.item.accepted_ns // 1000)
    return content | {"allocations": [], "reason": None, "timings": {"accepted": accepted}}


def _of_order(order: Order) -> dict[str, Any]:
    lines = [
        {"sku": line.sku, "quantity": format_quantity(line.thousandths)} for line in order.lines
    ]
    return {
        "customer": order.customer,
        "reference": order.reference,
        "metadata": order.metadata,
        "lines": lines,
    }


def versioned(content: dict[str, Any]) -> Answer:
    """The order with an ETag."""
    return with_etag(json_answer(200, content))


def tagged(scope: Scope, content: dict[str, Any]) -> Answer:
    """The same; 304 when the client has that very version."""
    return unless_known(scope, versioned(content))

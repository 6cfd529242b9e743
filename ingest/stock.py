"""Lots, adjustments and inventory."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec.structs import replace

from ingest.answers import REPLAYED, Answer, Headers, Refused, json_answer, problem
from ingest.database import Database
from ingest.exchange import Receive, Scope, read_json_body
from ingest.idempotency import derived_id, idempotency_key
from ingest.origin import owner_of
from ingest.problems import BAD_QUERY, BELOW_ZERO, KEY_TAKEN, LOT_EXISTS, NO_SUCH_LOT, NO_SUCH_SKU
from processors.inventory import (
    STATES,
    add_lot,
    adjust_lot,
    list_inventory,
    list_lots,
    sku_inventory,
)
from processors.paging import LIMIT_MAX, CursorError, Page
from processors.recalling import list_holders, recall_lot
from processors.refusal import CODE, Wrong, code
from processors.requests import KeyTaken, Request
from processors.schema import decode_adjustment, decode_lot, format_uuid
from ringbuf import Ring

LIMIT = 100


class Stock:
    """The calls about stock; every one asks the database."""

    def __init__(self, ring: Ring, database: Database, body_bytes_max: int) -> None:
        self._ring = ring
        self._database = database
        self._body_bytes_max = body_bytes_max

    async def post_lot(self, scope: Scope, receive: Receive) -> Answer:
        """`POST /lots`: 201, 200 for the same again, 409 for another body."""
        lot = decode_lot(await read_json_body(scope, receive, self._body_bytes_max))
        key = idempotency_key(scope)
        if lot.lot_id is None and key is not None:
            lot = replace(lot, lot_id=f"lot-{format_uuid(derived_id(owner_of(scope), key))}")
        result = await self._database.ask(add_lot, lot)
        if result.outcome == "conflict":
            return problem(LOT_EXISTS, f"lot {result.lot_id} is there already, with another body")
        status = 201 if result.outcome == "created" else 200
        return json_answer(status, result.view, location(f"/lots/{result.lot_id}"))

    async def post_adjustment(self, scope: Scope, receive: Receive) -> Answer:
        """`POST /lots/{id}/adjustments`: 201, 404, or 409 when it would go below zero."""
        lot_id = lot_id_of(scope)
        adjustment = decode_adjustment(await read_json_body(scope, receive, self._body_bytes_max))
        key = idempotency_key(scope)
        asked = None if key is None else Request.of(owner_of(scope), key, (lot_id, adjustment))
        try:
            result = await self._database.ask(adjust_lot, lot_id, adjustment, asked)
        except KeyTaken:
            return problem(
                KEY_TAKEN, "with this Idempotency-Key another adjustment was posted before"
            )
        if result.outcome == "unknown_lot":
            return no_lot(lot_id)
        content = result.to_json_dict()
        if result.outcome == "below_zero":
            available = content["available"]
            return problem(BELOW_ZERO, f"lot {lot_id} has {available}: it would go below zero")
        self._ring.bump_commits()  # its sku may be low now, and the relay sleeps
        return json_answer(201, content, REPLAYED if result.replayed else ())

    async def post_recall(self, scope: Scope, _receive: Receive) -> Answer:
        """`POST /lots/{id}/recall?limit=`: 200 with the lot and the orders that hold it; 404."""
        query, lot_id = read_query(scope, "limit"), lot_id_of(scope)
        recall = await self._database.ask(recall_lot, lot_id, limit=read_limit(query))
        if recall is None:
            return no_lot(lot_id)
        self._ring.bump_commits()  # as above
        page = recall.holders
        content = {"lot": recall.lot, "orders": page.items, "next_cursor": page.next_cursor}
        return json_answer(200, content, next_link(f"/lots/{lot_id}/orders", query, page))

    async def get_holders(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /lots/{id}/orders?limit=&cursor=`: those that hold stock of it; 404."""
        query, lot_id = read_query(scope, "limit", "cursor"), lot_id_of(scope)
        page = await self._page(list_holders, query, lot_id=lot_id)
        return no_lot(lot_id) if page is None else as_page(scope, query, page)

    async def get_lots(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /lots?sku=&state=&limit=&cursor=`."""
        query = read_query(scope, "sku", "state", "limit", "cursor")
        check_code(query, "sku")
        state = query.get("state")
        if state not in (None, *STATES):
            detail = f"state must be one of {', '.join(STATES)}, is {(state or '')[:100]}"
            raise Refused(problem(BAD_QUERY, detail))
        page = await self._page(list_lots, query, sku=query.get("sku"), state=state)
        return as_page(scope, query, page)

    async def get_inventory(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /inventory?limit=&cursor=`."""
        query = read_query(scope, "limit", "cursor")
        return as_page(scope, query, await self._page(list_inventory, query))

    async def get_sku(self, scope: Scope, _receive: Receive) -> Answer:
        """`GET /inventory/{sku}`."""
        sku: str = scope["path_params"]["sku"]
        view = None
        if CODE.fullmatch(sku) is not None:
            view = await self._database.ask(sku_inventory, sku)
        return (
            problem(NO_SUCH_SKU, f"no lot of {sku[:100]} ever")
            if view is None
            else json_answer(200, view)
        )

    async def _page(self, function: Any, query: dict[str, str], **more: Any) -> Any:
        limit, cursor = read_limit(query), query.get("cursor")
        try:
            return await self._database.ask(function, limit=limit, cursor=cursor, **more)
        except CursorError:
            raise Refused(
                problem(BAD_QUERY, "cursor is not one that this server gave out")
            ) from None


def read_query(scope: Scope, *names: str) -> dict[str, str]:
    """The query's parameters; Refused with 422 for one that is not among `names`."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    unknown = [name for name in query if name not in names]
    if unknown:
        known = ", ".join(names)
        raise Refused(
            problem(BAD_QUERY, f"unknown parameter {unknown[0][:100]}, there are: {known}")
        )
    return query


def check_code(query: dict[str, str], name: str) -> None:
    """Refused with 422 when it is there and nothing can be called so."""
    try:
        code(query.get(name, "absent"))
    except Wrong as wrong:
        detail = f"{name} {wrong}, is {query[name][:100]}"
        raise Refused(problem(BAD_QUERY, detail)) from None


def read_limit(query: dict[str, str]) -> int:
    """The page size; Refused with 422 when out of range."""
    text = query.get("limit", str(LIMIT))
    if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= LIMIT_MAX:
        return int(text)
    raise Refused(problem(BAD_QUERY, f"limit must be from 1 to {LIMIT_MAX}, is {text[:100]}"))


def as_page(scope: Scope, query: dict[str, str], page: Page[Any]) -> Answer:
    """The items, with a Link to the next page when there is one."""
    content = {"items": page.items, "next_cursor": page.next_cursor}
    return json_answer(200, content, next_link(scope["path"], query, page))


def next_link(path: str, query: dict[str, str], page: Page[Any]) -> Headers:
    """A Link header to the page behind this one, if there is one."""
    if page.next_cursor is None:
        return ()
    target = f"{path}?{urlencode({**query, 'cursor': page.next_cursor})}"
    return ((b"link", f'<{target}>; rel="next"'.encode()),)


def lot_id_of(scope: Scope) -> str:
    """The lot of the path; Refused with 404 for what no lot can be called."""
    lot_id: str = scope["path_params"]["lot_id"]
    if CODE.fullmatch(lot_id) is None:
        raise Refused(no_lot(lot_id))
    return lot_id


def no_lot(lot_id: str) -> Answer:
    """404."""
    return problem(NO_SUCH_LOT, f"no lot {lot_id[:100]}")


def location(path: str) -> Headers:
    """A Location header."""
    return ((b"location", path.encode()),)

"""`GET /orders`: pages of orders, those with an outcome from the database, others from the ring."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import msgspec

from ingest.answers import Answer, Refused, problem
from ingest.database import Database
from ingest.exchange import Receive, Scope
from ingest.flight import Flight, identity
from ingest.orders import in_flight
from ingest.owners import only_of
from ingest.problems import BAD_QUERY
from ingest.stock import as_page, read_limit, read_query
from processors.listing import OUTCOMES, Wanted, list_orders
from processors.orders import OrderView
from processors.paging import CursorError, Int64, Page, decode_cursor, encode_cursor
from processors.refusal import Wrong
from processors.schema import CUSTOMER, REFERENCE, load_header, load_order
from ringbuf import Found, Item, Ring

IN_FLIGHT = {"queued": "ring", "processing": "hand"}
STATUSES = (*IN_FLIGHT, *OUTCOMES)
CHECKS = {"customer": CUSTOMER, "reference": REFERENCE}
SLOT = Literal["slot"]


class ListOrders:
    """The newest first. Without a status those that have an outcome; `queued` and `processing` are
    what the ring and the hands hold, which is bounded by their size."""

    def __init__(self, ring: Ring, database: Database) -> None:
        self._ring = ring
        self._database = database
        self._flight = Flight(database)

    async def __call__(self, scope: Scope, _receive: Receive) -> Answer:
        query = read_query(scope, "status", "customer", "reference", "limit", "cursor")
        wanted, limit = _read_wanted(query, only_of(scope)), read_limit(query)
        try:
            page = await self._page(wanted, limit, query.get("cursor"))
        except CursorError:
            shown = query["cursor"][:100]
            raise Refused(
                problem(BAD_QUERY, f"cursor {shown} is not one that this list gave out")
            ) from None
        return as_page(scope, query, page)

    async def _page(self, wanted: Wanted, limit: int, cursor: str | None) -> Page[dict[str, Any]]:
        if wanted.status in IN_FLIGHT:
            return await self._waiting(wanted, limit, cursor)
        page = await self._database.ask(list_orders, wanted, limit=limit, cursor=cursor)
        return Page([_as_listed(view) for view in page.items], page.next_cursor)

    async def _waiting(
        self, wanted: Wanted, limit: int, cursor: str | None
    ) -> Page[dict[str, Any]]:
        """By their places in the ring, which only grow."""
        before = 2**63 if cursor is None else decode_cursor(cursor, tuple[SLOT, Int64])[1]
        place = IN_FLIGHT[wanted.status or ""]
        there = [
            found
            for found in _everything(self._ring)
            if found.place == place
            and found.item.sequence < before
            and _matches(found.item, wanted)
        ]
        there.sort(key=lambda found: -found.item.sequence)
        some = there[:limit]
        more = encode_cursor(("slot", some[-1].item.sequence)) if len(there) > limit else None
        settled = await self._flight.settled([found.item for found in some])
        shown = [found for found in some if identity(found.item) not in settled]
        return Page([_without_allocations(in_flight(one.item.key, one)) for one in shown], more)


def _read_wanted(query: dict[str, str], owner: str | None) -> Wanted:
    status = query.get("status")
    if status not in (None, *STATUSES):
        known = ", ".join(STATUSES)
        raise Refused(
            problem(BAD_QUERY, f"status must be one of {known}, is {(status or '')[:100]}")
        )
    for name, check in CHECKS.items():
        try:
            if name in query:
                check(query[name])
        except Wrong as wrong:
            raise Refused(problem(BAD_QUERY, f"{name} {wrong}: {query[name][:100]}")) from None
    return Wanted(status, query.get("customer"), query.get("reference"), owner)


def _everything(ring: Ring) -> list[Found]:
    snapshot = ring.snapshot()
    waiting = [Found("ring", item, place) for place, item in enumerate(snapshot.waiting)]
    return [*waiting, *(Found("hand", item, None) for _, item in snapshot.held)]


def _matches(item: Item, wanted: Wanted) -> bool:
    """What can't be read is only in lists of all."""
    if wanted.customer is None and wanted.reference is None and wanted.owner is None:
        return True
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        order, header = load_order(item.payload), load_header(item.header)
        return (
            wanted.customer in (None, order.customer)
            and wanted.reference in (None, order.reference)
            and wanted.owner in (None, header.owner)
        )
    return False


def _as_listed(view: OrderView) -> dict[str, Any]:
    return _without_allocations(view.to_json_dict())


def _without_allocations(content: dict[str, Any]) -> dict[str, Any]:
    del content["allocations"]
    return content

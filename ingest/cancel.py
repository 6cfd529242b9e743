"""`DELETE /orders/{id}`: cancelled while it waits, or given back."""

from __future__ import annotations

from ingest.accept import Acceptor, recovering
from ingest.answers import Answer, json_answer, problem
from ingest.database import Database
from ingest.exchange import Receive, Scope
from ingest.orders import unknown
from ingest.owners import cancels_only_of
from ingest.problems import NOT_CANCELLABLE
from processors.cancelling import Cancellation, Canceller
from processors.jobs import DISCARDED
from processors.orders import OrderView
from processors.schema import format_uuid, parse_uuid
from processors.store import Store
from ringbuf import Item, Ring


class DeleteOrder:
    """200 with the order as it is then, also for one that was cancelled before; 404; 409."""

    def __init__(self, ring: Ring, acceptor: Acceptor, database: Database) -> None:
        self._ring = ring
        self._acceptor = acceptor
        self._database = database
        self._canceller = Canceller(ring.epoch)

    async def __call__(self, scope: Scope, _receive: Receive) -> Answer:
        text: str = scope["path_params"]["order_id"]
        key = parse_uuid(text)
        if key is None:
            return unknown(text)
        # With the flow, as everybody looks: what has left the hands is in the database.
        found = self._ring.find(key)
        item = None if found is None else found.item
        done = await self._database.ask(self._cancel, key, item, cancels_only_of(scope))
        if done.verdict == "cancelled":
            self._acceptor.tally.count("cancelled")
            self._ring.bump_commits()
        return self._answer(key, done)

    def _cancel(
        self, store: Store, key: bytes, item: Item | None, owner: str | None
    ) -> Cancellation:
        return self._canceller.cancel(store, key, item, owner)

    def _answer(self, key: bytes, done: Cancellation) -> Answer:
        if done.verdict == "unreadable":
            detail = "can't be read, it will be a dead letter, which can be let go"
            return problem(NOT_CANCELLABLE, f"order {format_uuid(key)} {detail}")
        if done.view is None:
            return recovering() if self._acceptor.recovering else unknown(format_uuid(key))
        if done.verdict == "settled":
            return settled(done.view)
        return json_answer(200, done.view.to_json_dict())


def settled(view: OrderView) -> Answer:
    """409, and why."""
    order_id = format_uuid(view.order_id)
    if view.status != "dead":
        why = f"was rejected ({view.reason}), it holds nothing"
    elif view.reason == DISCARDED:
        why = "was a dead letter and is let go already"
    else:
        why = f"is a dead letter ({view.reason}): DELETE /dead-letters/{order_id} lets it go"
    return problem(NOT_CANCELLABLE, f"order {order_id} {why}")

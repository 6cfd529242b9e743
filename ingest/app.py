"""The Starlette application of a front, put together."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ingest.accept import Acceptor, Earlier
from ingest.database import Database
from ingest.endpoints import Methods, answering, http_problem, server_problem
from ingest.health import Readyz, livez
from ingest.orders import GetOrder, PostOrder
from ingest.stock import Stock
from processors.orders import find_body_hash, find_order
from processors.settings import Settings
from processors.store import Store
from ringbuf import Ring, Writer


def make_app(settings: Settings, ring: Ring, writer: Writer, database: Database) -> Starlette:
    """The application over a ring and a database, both open."""
    body_bytes_max = settings.http.max_body_bytes
    full_timeout_s = settings.ring.full_timeout_s

    async def find_stored(key: bytes) -> Earlier | None:
        return await database.ask(find_earlier, key)

    acceptor = Acceptor(ring, writer, find_stored, full_timeout_s)
    stock = Stock(database, body_bytes_max)
    ready = Readyz(ring, acceptor, database, full_timeout_s)
    app = Starlette(
        routes=[
            _route("/orders", POST=PostOrder(acceptor, body_bytes_max)),
            _route("/orders/{order_id}", GET=answering(GetOrder(ring, database))),
            _route("/lots", GET=answering(stock.get_lots), POST=answering(stock.post_lot)),
            _route("/lots/{lot_id}/adjustments", POST=answering(stock.post_adjustment)),
            _route("/inventory", GET=answering(stock.get_inventory)),
            _route("/inventory/{sku}", GET=answering(stock.get_sku)),
            _route("/livez", GET=answering(livez)),
            _route("/readyz", GET=answering(ready)),
        ],
        exception_handlers={HTTPException: http_problem, Exception: server_problem},
    )
    # A redirect would lose the body of a POST with many clients.
    app.router.redirect_slashes = False
    return app


def find_earlier(store: Store, key: bytes) -> Earlier | None:
    """What the database knows of an order id; the second look is only for a repeat."""
    digest = find_body_hash(store, key)
    if digest is None:
        return None
    view = find_order(store, key)
    return Earlier(digest, "processing" if view is None else view.status)


def _route(path: str, **applications: Any) -> Route:
    methods = Methods(**applications)
    return Route(path, methods, methods=methods.allowed)

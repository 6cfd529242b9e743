"""The Starlette application of a front, put together."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ingest.accept import Acceptor
from ingest.cancel import DeleteOrder
from ingest.claims import Claims
from ingest.database import Database
from ingest.dead_letters import DeadLetters
from ingest.endpoints import Methods, answering, http_problem, server_problem
from ingest.events import Events
from ingest.exchange import Application
from ingest.health import Readyz, livez
from ingest.keys import Keyed, Keyring, guarded
from ingest.lookup import Lookup
from ingest.metrics import Metrics
from ingest.order_list import ListOrders
from ingest.orders import GetOrder, PostOrder
from ingest.origin import Traced
from ingest.outcomes import Outcomes
from ingest.post_bulk import PostBulk
from ingest.stock import Stock
from processors.settings import HttpSettings, Settings
from processors.tally import Tally
from ringbuf import Journal, Ring, Writer


def make_acceptor(
    settings: Settings,
    ring: Ring,
    writer: Writer,
    database: Database,
    tally: Tally,
    *,
    journal: Journal | None = None,
    claims: Claims | None = None,
) -> Acceptor:
    """The one way in, for the application and for the lane."""
    find, timeout_s = Lookup(database).find, settings.ring.full_timeout_s
    return Acceptor(ring, writer, find, timeout_s, tally=tally, journal=journal, claims=claims)


def make_app(
    settings: Settings,
    ring: Ring,
    acceptor: Acceptor,
    database: Database,
    outcomes: Outcomes,
    *,
    keyring: Keyring | None = None,
) -> Application:
    """The application over a ring and a database, both open, for whoever has one of these keys."""
    app: Application = make_routes(settings, ring, acceptor, database, outcomes)
    if keyring is not None:
        app = Keyed(app, keyring, acceptor.tally)
    return behind_proxies(Traced(app), settings.http)


def behind_proxies(app: Application, http: HttpSettings) -> Application:
    """The same, told of scheme and client what the proxies say that are trusted."""
    if http.proxy_headers == "off":
        return app
    wrapped: Any = ProxyHeadersMiddleware(cast("Any", app), http.forwarded_allow_ips)
    return cast("Application", wrapped)


def make_routes(
    settings: Settings, ring: Ring, acceptor: Acceptor, database: Database, outcomes: Outcomes
) -> Starlette:
    """What answers every path there is."""
    body_bytes_max = settings.http.max_body_bytes
    full_timeout_s = settings.ring.full_timeout_s

    stock = Stock(database, body_bytes_max)
    dead = DeadLetters(acceptor, database)
    ready = Readyz(ring, acceptor, database, full_timeout_s)
    _route = partial(route, acceptor.tally)
    app = Starlette(
        routes=[
            _route(
                "/orders",
                GET=answering(ListOrders(ring, database)),
                POST=PostOrder(acceptor, outcomes, body_bytes_max),
            ),
            _route("/orders/bulk", POST=PostBulk(acceptor, ring, database, settings)),
            _route(
                "/orders/{order_id}",
                GET=answering(GetOrder(ring, database, outcomes)),
                DELETE=answering(DeleteOrder(ring, acceptor, database)),
            ),
            _route("/lots", GET=answering(stock.get_lots), POST=answering(stock.post_lot)),
            _route("/lots/{lot_id}/adjustments", POST=answering(stock.post_adjustment)),
            _route("/lots/{lot_id}/recall", POST=answering(stock.post_recall)),
            _route("/lots/{lot_id}/orders", GET=answering(stock.get_holders)),
            _route("/inventory", GET=answering(stock.get_inventory)),
            _route("/inventory/{sku}", GET=answering(stock.get_sku)),
            _route("/dead-letters", GET=answering(dead.get_all)),
            _route(
                "/dead-letters/{order_id}", GET=answering(dead.get), DELETE=answering(dead.delete)
            ),
            _route("/dead-letters/{order_id}/replay", POST=dead.post_replay),
            _route("/events", GET=Events(ring, database, acceptor.ending)),
            _route("/metrics", GET=answering(Metrics(ring, database))),
            _route("/livez", GET=answering(livez)),
            _route("/readyz", GET=answering(ready)),
        ],
        exception_handlers={HTTPException: http_problem, Exception: server_problem},
    )
    # A redirect would lose the body of a POST with many clients.
    app.router.redirect_slashes = False
    return app


def route(tally: Tally, path: str, **applications: Application) -> Route:
    """One path, each method for the keys that `keys.NEEDS` says."""
    methods = Methods(
        **{
            method: guarded(method, path, application, tally)
            for method, application in applications.items()
        }
    )
    return Route(path, methods, methods=methods.allowed)

"""The Starlette application of a front, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ingest import pages
from ingest.accept import Acceptor
from ingest.cancel import DeleteOrder
from ingest.catalogue import (
    on_bulk,
    on_dead,
    on_deliveries,
    on_events,
    on_orders,
    on_service,
    on_stock,
)
from ingest.claims import Claims
from ingest.database import Database
from ingest.dead_letters import DeadLetters
from ingest.deliveries import Deliveries
from ingest.endpoints import Entry, Methods, answering, http_problem, server_problem
from ingest.events import Events
from ingest.exchange import Application
from ingest.health import Readyz, livez
from ingest.keys import Keyed, Keyring, guarded
from ingest.lookup import Lookup
from ingest.metrics import Metrics
from ingest.openapi import Call, document
from ingest.order_list import ListOrders
from ingest.orders import GetOrder, PostOrder
from ingest.origin import Traced
from ingest.outcomes import Outcomes
from ingest.pages import OpenAPI
from ingest.post_bulk import PostBulk
from ingest.stock import Stock
from processors.settings import HttpSettings, Settings
from processors.tally import Tally
from processors.webhooks import names_told
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
    ready = Readyz(ring, acceptor, database, settings.ring.full_timeout_s)
    metrics = Metrics(ring, database, names_told(settings.webhooks.endpoints))
    app = Starlette(
        routes=[
            *order_routes(settings, ring, acceptor, database, outcomes),
            *stock_routes(Stock(ring, database, body_bytes_max)),
            *dead_letter_routes(DeadLetters(acceptor, database)),
            *delivery_routes(Deliveries(ring, database)),
            _route("/events", GET=(on_events.GET_EVENTS, Events(ring, database, acceptor.ending))),
            _route("/metrics", GET=(on_service.GET_METRICS, answering(metrics))),
            _route("/livez", GET=(on_service.GET_LIVEZ, answering(livez))),
            _route("/readyz", GET=(on_service.GET_READYZ, answering(ready))),
            *page_routes(lambda: described(app, settings)),
        ],
        exception_handlers={HTTPException: http_problem, Exception: server_problem},
    )
    # A redirect would lose the body of a POST with many clients.
    app.router.redirect_slashes = False
    guard(app, acceptor.tally)
    return app


def order_routes(
    settings: Settings, ring: Ring, acceptor: Acceptor, database: Database, outcomes: Outcomes
) -> list[Route]:
    """The calls about orders."""
    post_order = PostOrder(acceptor, outcomes, settings.http.max_body_bytes)
    delete_order = DeleteOrder(ring, acceptor, database)
    return [
        _route(
            "/orders",
            GET=(on_orders.GET_ORDERS, answering(ListOrders(ring, database))),
            POST=(on_orders.POST_ORDER, post_order),
        ),
        _route(
            "/orders/bulk",
            POST=(on_bulk.POST_BULK, PostBulk(acceptor, ring, database, settings)),
        ),
        _route(
            "/orders/{order_id}",
            GET=(on_orders.GET_ORDER, answering(GetOrder(ring, database, outcomes))),
            DELETE=(on_orders.DELETE_ORDER, answering(delete_order)),
        ),
    ]


def stock_routes(stock: Stock) -> list[Route]:
    """The calls about stock."""
    return [
        _route(
            "/lots",
            GET=(on_stock.GET_LOTS, answering(stock.get_lots)),
            POST=(on_stock.POST_LOT, answering(stock.post_lot)),
        ),
        _route(
            "/lots/{lot_id}/adjustments",
            POST=(on_stock.POST_ADJUSTMENT, answering(stock.post_adjustment)),
        ),
        _route(
            "/lots/{lot_id}/recall",
            POST=(on_stock.POST_RECALL, answering(stock.post_recall)),
        ),
        _route("/lots/{lot_id}/orders", GET=(on_stock.GET_HOLDERS, answering(stock.get_holders))),
        _route("/inventory", GET=(on_stock.GET_INVENTORY, answering(stock.get_inventory))),
        _route("/inventory/{sku}", GET=(on_stock.GET_SKU, answering(stock.get_sku))),
    ]


def delivery_routes(deliveries: Deliveries) -> list[Route]:
    """The calls about deliveries of webhooks."""
    return [
        _route("/deliveries", GET=(on_deliveries.GET_DELIVERIES, answering(deliveries.get_all))),
        _route(
            "/deliveries/{delivery_id}/resend",
            POST=(on_deliveries.POST_RESEND, answering(deliveries.post_resend)),
        ),
    ]


def dead_letter_routes(dead: DeadLetters) -> list[Route]:
    """The calls about dead letters."""
    return [
        _route("/dead-letters", GET=(on_dead.GET_DEAD_LETTERS, answering(dead.get_all))),
        _route(
            "/dead-letters/{order_id}",
            GET=(on_dead.GET_DEAD_LETTER, answering(dead.get)),
            DELETE=(on_dead.DELETE_DEAD_LETTER, answering(dead.delete)),
        ),
        _route("/dead-letters/{order_id}/replay", POST=(on_dead.POST_REPLAY, dead.post_replay)),
    ]


def page_routes(describe: Callable[[], dict[str, Any]]) -> list[Route]:
    """The documentation; `describe` makes the OpenAPI document."""
    return [
        _route("/openapi.json", GET=(on_service.GET_OPENAPI, answering(OpenAPI(describe)))),
        _route("/docs", GET=(on_service.GET_DOCS, answering(pages.docs))),
        _route("/docs/problems", GET=(on_service.GET_PROBLEMS, answering(pages.problems))),
        _route("/docs/assets/{name}", GET=(on_service.GET_ASSET, pages.asset)),
        _route("/", GET=(on_service.GET_ROOT, answering(pages.root))),
    ]


def _route(path: str, **entries: Entry) -> Route:
    methods = Methods(**entries)
    return Route(path, methods, methods=methods.allowed)


def guard(app: Starlette, tally: Tally) -> None:
    """Each call is for the keys that `keys.NEEDS` says."""
    for one, methods in described_routes(app):
        methods.wrap(lambda method, call, path=one.path: guarded(method, path, call, tally))  # type: ignore[misc]


def described(app: Starlette, settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of its table of routes."""
    calls = [
        Call(method, route.path, operation)
        for route, methods in described_routes(app)
        for method, operation in methods.operations.items()
    ]
    return document(calls, keys=bool(settings.http.keys))


def described_routes(app: Starlette) -> list[tuple[Route, Methods]]:
    """The entries of its table."""
    return [
        (route, route.endpoint)
        for route in app.routes
        if isinstance(route, Route) and isinstance(route.endpoint, Methods)
    ]

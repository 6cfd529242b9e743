"""The OpenAPI document is valid, whole, and its examples are what the server does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from ingest.app import described, make_routes
from ingest.catalogue import (
    on_bulk,
    on_dead,
    on_deliveries,
    on_events,
    on_orders,
    on_service,
    on_stock,
)
from ingest.endpoints import Methods
from ingest.keys import is_open
from ingest.operation import Operation
from ingest.problems import PROBLEMS

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from tests.ingest.conftest import Service

pytestmark = pytest.mark.anyio

CATALOGUE = (on_bulk, on_events, on_orders, on_stock, on_dead, on_deliveries, on_service)

# Of the moment, not of the request: compared by its kind alone.
OF_THE_MOMENT = {"accepted", "taken", "committed", "accepted_at", "died_at"}


async def read(service: Service) -> Any:
    answer = await service.client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def with_keys(service: Service) -> Any:
    """The document of a service that asks for keys."""
    http = msgspec.structs.replace(service.settings.http, keys="keys")
    settings = msgspec.structs.replace(service.settings, http=http)
    return json.loads(json.dumps(described(application(service), settings)))


def application(service: Service) -> Starlette:
    return make_routes(
        service.settings, service.ring, service.acceptor, service.database, service.outcomes
    )


def mentioned(document: Any) -> set[str]:
    """The problems that it links to."""
    return set(re.findall(r"/docs/problems#([a-z-]+)", json.dumps(document)))


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


async def test_the_document_is_valid_openapi_31(service: Service) -> None:
    document = await read(service)
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


async def test_every_route_is_in_the_document_and_nothing_else(service: Service) -> None:
    app = application(service)
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) == len(app.routes)
    assert all(isinstance(route.endpoint, Methods) for route in routes)
    # Starlette adds HEAD wherever GET is.
    there = {
        (method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}
    }
    assert {call[:2] for call in operations(await read(service))} == there


async def test_every_described_call_has_a_route(service: Service) -> None:
    described = {
        one.name
        for module in CATALOGUE
        for one in vars(module).values()
        if isinstance(one, Operation)
    }
    shown = [operation["operationId"] for _, _, operation in operations(await read(service))]
    assert sorted(shown) == sorted(described)


async def test_every_problem_that_is_mentioned_is_there(service: Service) -> None:
    # Of no call: the router's own, and what nothing that a client sends should do.
    elsewhere = {"wrong-method", "mistake"}
    there = {kind.name for kind in PROBLEMS} - elsewhere
    of_keys = {"no-key", "unknown-key", "wrong-scope"}
    assert mentioned(await read(service)) == there - of_keys
    assert mentioned(with_keys(service)) == there


async def test_the_document_says_which_calls_ask_for_a_key(service: Service) -> None:
    document = with_keys(service)
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    for _, path, operation in operations(document):
        assert ("401" in operation["responses"]) == ("security" in operation), path
        assert ("security" in operation) == (not is_open(path)), path
    assert all("security" not in one for _, _, one in operations(await read(service)))


async def test_every_link_leads_somewhere(service: Service) -> None:
    document = await read(service)
    schemas = document["components"]["schemas"]
    seen = 0
    for _, path, operation in operations(document):
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                (content,) = list(answer["content"].values())[:1]
                shape = schemas[content["schema"]["$ref"].rpartition("/")[2]]
                for value in link["parameters"].values():
                    place, _, name = value.rpartition("/" if "#" in value else ".")
                    there = shape["properties"] if "#" in place else re.findall(r"{(\w+)}", path)
                    assert name in there, (path, value)
                    seen += 1
    assert seen > 5


async def test_the_document_has_an_etag(service: Service) -> None:
    first = await service.client.get("/openapi.json")
    again = await service.client.get(
        "/openapi.json", headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


# ---- examples ------------------------------------------------------------------------------------

# Stock comes in, is looked at, an order is taken in, worked off and looked at, then corrected.
STORY = [
    "postLot belly", "postLot again", "postLot other-body", "getLots belly", "getLots recalled",
    "getLots no-limit", "getInventory all", "getSku belly", "getSku unknown",
    "postOrder belly", "postOrder other-body", "postOrder nothing-ordered",
    "(work)", "getOrder belly", "getOrder unknown", "getOrders belly", "getOrders no-limit",
    "getHolders belly", "deleteOrder belly",
    "postAdjustment spoiled", "postAdjustment too-much", "postRecall belly", "postBulk two-lines",
    "getDeadLetters none", "getDeadLetter alive", "deleteDeadLetter alive", "postReplay alive",
    "getDeliveries none", "postResend unknown",
    "getLivez alive", "getReadyz ready",
]  # fmt: skip


def examples(document: Any) -> Iterator[tuple[str, str, str, Any]]:
    """(name, method, path, operation) of each answer that is shown."""
    for method, path, operation in operations(document):
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                for name in content.get("examples", {}):
                    yield f"{operation['operationId']} {name}", method, path, operation


def request_of(name: str, path: str, operation: Any) -> tuple[str, dict[str, str], bytes | None]:
    """Path, headers and body of an example."""
    query: dict[str, Any] = {}
    headers: dict[str, str] = {}
    for one in operation["parameters"]:
        value = one.get("examples", {}).get(name, {}).get("value")
        if value is None:
            assert one["in"] != "path", f"{name} has no {one['name']}"
        elif one["in"] == "path":
            path = path.replace(f"{{{one['name']}}}", quote(str(value), safe=""))
        else:
            (query if one["in"] == "query" else headers)[one["name"]] = str(value)
    body = None
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        value = content["examples"][name]["value"]
        headers["content-type"] = media
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return path + (f"?{urlencode(query)}" if query else ""), headers, body


def documented(name: str, operation: Any) -> tuple[int, str, Any]:
    """Status, media type and body of the answer to an example."""
    for status, answer in operation["responses"].items():
        for media, content in answer.get("content", {}).items():
            if name in content.get("examples", {}):
                return int(status), media, content["examples"][name]["value"]
    raise AssertionError(f"no answer to {name}")


def settled(value: Any, key: str = "") -> Any:
    """Without what is of the moment."""
    if isinstance(value, dict):
        return {name: settled(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [settled(one) for one in value]
    return "an instant" if key in OF_THE_MOMENT else value


async def test_every_example_gets_the_answer_that_stands_beside_it(service: Service) -> None:
    document = await read(service)
    shown = {name: rest for name, *rest in examples(document)}
    assert sorted(shown) == sorted(one for one in STORY if not one.startswith("("))
    for step in STORY:
        if step == "(work)":
            service.work_off()
            continue
        method, path, operation = shown[step]
        name = step.partition(" ")[2]
        target, headers, content = request_of(name, path, operation)
        answer = await service.client.request(method, target, headers=headers, content=content)
        status, media, body = documented(name, operation)
        assert (step, answer.status_code) == (step, status)
        assert answer.headers["content-type"].partition(";")[0] == media
        assert (step, settled(answer.json())) == (step, settled(body))


# ---- pages ---------------------------------------------------------------------------------------


async def test_the_root_leads_to_the_documentation(service: Service) -> None:
    answer = await service.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize("path", ["/docs", "/docs/problems"])
async def test_a_page_needs_nothing_from_elsewhere(service: Service, path: str) -> None:
    page = await service.client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy
    needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(needed) >= 3
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for link in needed:
        assert link.startswith("/")
        found = await service.client.get(link)
        assert found.status_code == 200
        if link.startswith("/docs/assets/"):
            assert "immutable" in found.headers["cache-control"]
            tag = found.headers["etag"]
            again = await service.client.get(link, headers={"if-none-match": tag})
            assert (again.status_code, again.content) == (304, b"")


async def test_the_page_of_problems_has_a_section_for_each(service: Service) -> None:
    page = (await service.client.get("/docs/problems")).text
    assert re.findall(r'<h2 id="([^"]+)">', page) == [kind.name for kind in PROBLEMS]


@pytest.mark.parametrize("name", ["LICENSE", "..%2F__init__.py", "x"])
async def test_only_the_files_of_the_pages_are_served(service: Service, name: str) -> None:
    assert (await service.client.get(f"/docs/assets/{name}")).status_code == 404

"""The OpenAPI 3.1 document: made of the table of routes and of the types in `shapes`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import groupby
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ingest import shapes
from ingest.keys import ADMIN, NEEDS, is_open
from ingest.operation import Example, Operation, Parameter, Reply
from ingest.origin import REQUEST_ID_CHARACTERS_MAX
from ingest.pages import FILES
from ingest.problems import (
    BAD_REQUEST_ID,
    HEAD_TOO_LARGE,
    NO_KEY,
    NOT_HTTP,
    PIPELINE_TOO_LONG,
    TOO_SLOW,
    UNKNOWN_KEY,
    WRONG_SCOPE,
    ProblemType,
)

JSONObject: TypeAlias = "dict[str, Any]"

SCHEMAS = "#/components/schemas/{name}"
SECURITY = "key"
PROBLEM = "application/problem+json"
INTRODUCTION = """\
Rasher takes orders in at once and works on them later. Errors are `application/problem+json`
(RFC 9457); their types are explained at [/docs/problems](/docs/problems). Any call may be answered
400, 408 or 431 when the request itself is at fault. 503 means *not taken in, and never will be*."""

# Whoever reads the request itself may say these, whatever the call.
EVERYWHERE = (NOT_HTTP, PIPELINE_TOO_LONG, BAD_REQUEST_ID, TOO_SLOW, HEAD_TOO_LARGE)
REQUEST_ID = Parameter(
    "X-Request-ID",
    Annotated[str, Meta(pattern=rf"^[!-~]{{1,{REQUEST_ID_CHARACTERS_MAX}}}$", examples=["web-17"])],
    "a name for this request: every answer repeats it, and the log has it",
    "header",
)
TRACEPARENT = Parameter(
    "traceparent",
    str,
    "W3C Trace Context; one that is not valid is ignored, as it demands",
    "header",
)
PATH_PARAMETERS = {
    "order_id": Parameter("order_id", shapes.OrderId, "of an order", "path"),
    "lot_id": Parameter("lot_id", shapes.Code, "of a lot", "path"),
    "sku": Parameter("sku", shapes.Code, "a sku", "path"),
    "delivery_id": Parameter("delivery_id", shapes.DeliveryId, "of a delivery", "path"),
    "name": Parameter("name", Literal[FILES], "of a file", "path"),
}
RETRY_AFTER = Parameter("Retry-After", Annotated[int, Meta(ge=1)], "seconds")
WWW_AUTHENTICATE = Parameter("WWW-Authenticate", str, "RFC 6750")
# What refusals of a status have beside the body.
OF_STATUS = {401: (WWW_AUTHENTICATE,), 403: (WWW_AUTHENTICATE,), 503: (RETRY_AFTER,)}
FOR_A_KEY = (NO_KEY, UNKNOWN_KEY, WRONG_SCOPE)


class Call(Struct, frozen=True):
    """One entry of the table: a method of a path, described."""

    method: str
    path: str
    operation: Operation


def document(calls: Iterable[Call], *, keys: bool) -> JSONObject:
    """The document; `keys`: whether the service asks for API keys."""
    return _Document(list(calls), keys).whole()


class _Document:
    def __init__(self, calls: list[Call], keys: bool) -> None:
        self._calls = calls
        self._keys = keys
        self._ids = {call.operation.name for call in calls}
        found = [shape for call in calls for shape in _shapes(call.operation)]
        found += [one.shape for one in (*PATH_PARAMETERS.values(), REQUEST_ID, TRACEPARENT)]
        found += [one.shape for some in OF_STATUS.values() for one in some]
        found.append(shapes.Problem)
        schemas, self._components = msgspec.json.schema_components(found, ref_template=SCHEMAS)
        # By identity, for types that are equal need not be hashable.
        self._schemas = {id(one): schema for one, schema in zip(found, schemas, strict=True)}

    def whole(self) -> JSONObject:
        paths: JSONObject = {}
        for call in self._calls:
            paths.setdefault(call.path, {})[call.method.lower()] = self._operation(call)
        components: JSONObject = {"schemas": self._components}
        if self._keys:
            bearer = {"type": "http", "scheme": "bearer", "description": "an API key"}
            components["securitySchemes"] = {SECURITY: bearer}
        tags = dict.fromkeys(call.operation.tag for call in self._calls)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Rasher",
                "version": metadata.version("rasher"),
                "description": INTRODUCTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": tag} for tag in tags],
            "paths": paths,
            "components": components,
        }

    def _operation(self, call: Call) -> JSONObject:
        operation = call.operation
        found: JSONObject = {
            "operationId": operation.name,
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": operation.text or operation.summary,
            "parameters": [self._parameter(one, operation.examples) for one in parameters_of(call)],
            "responses": self._responses(operation, self._guarded(call)),
        }
        if self._guarded(call):
            scopes = NEEDS.get((call.method, call.path), frozenset()) | {ADMIN}
            found["security"] = [{SECURITY: [scope]} for scope in sorted(scopes)]
        if operation.body is not None:
            content = self._content(operation.body, operation.body_media)
            content[operation.body_media] |= _examples(operation.examples, "body")
            found["requestBody"] = {"required": True, "content": content}
        return found

    def _guarded(self, call: Call) -> bool:
        return self._keys and not is_open(call.path)

    def _parameter(self, one: Parameter, examples: tuple[Example, ...]) -> JSONObject:
        given = {e.name: {"value": e.given[one.name]} for e in examples if one.name in e.given}
        return {
            "name": one.name,
            "in": one.place,
            "description": one.text,
            "required": one.place == "path",
            "schema": self._schema(one.shape),
        } | ({"examples": given} if given else {})

    def _responses(self, operation: Operation, guarded: bool) -> JSONObject:
        replies = {
            str(status): self._reply(reply, answered(operation.examples, status))
            for status, reply in operation.replies.items()
        }
        possible = problems_of(operation) + (list(FOR_A_KEY) if guarded else [])
        kinds = sorted(possible, key=lambda kind: kind.status)
        for status, some in groupby(kinds, key=lambda kind: kind.status):
            shown = answered(operation.examples, status)
            replies[str(status)] = self._refusal(status, list(some), shown)
        return replies

    def _reply(self, reply: Reply, shown: tuple[Example, ...]) -> JSONObject:
        made: JSONObject = {"description": reply.text, "headers": self._headers(reply.headers)}
        if reply.shape is not None:
            made["content"] = self._content(reply.shape, reply.media)
            made["content"][reply.media] |= _examples(shown, "answer")
            for media, shape in reply.also:
                made["content"] |= self._content(shape, media)
        links = {name: self._link(name, reply) for name in reply.links if name in self._ids}
        return made | ({"links": links} if links else {})

    def _refusal(
        self, status: int, kinds: list[ProblemType], shown: tuple[Example, ...]
    ) -> JSONObject:
        lines = [f"- [`{kind.name}`]({kind.uri}): {kind.title}" for kind in kinds]
        narrowed = {"type": {"enum": [kind.uri for kind in kinds]}, "status": {"const": status}}
        schema = {"allOf": [self._schema(shapes.Problem), {"properties": narrowed}]}
        headers = OF_STATUS.get(status, ())
        return {
            "description": "\n".join(lines),
            "headers": self._headers(headers),
            "content": {PROBLEM: {"schema": schema} | _examples(shown, "answer")},
        }

    def _headers(self, some: Iterable[Parameter]) -> JSONObject:
        return {
            one.name: {"description": one.text, "schema": self._schema(one.shape)}
            for one in (*some, REQUEST_ID)
        }

    def _link(self, name: str, reply: Reply) -> JSONObject:
        """To an operation whose path's parameters are members of the answer, or were the call's."""
        call = next(call for call in self._calls if call.operation.name == name)
        members = getattr(reply.shape, "__struct_fields__", ())
        values = {
            one: f"$response.body#/{one}" if one in members else f"$request.path.{one}"
            for one in path_names(call.path)
        }
        return {"operationId": name, "parameters": values}

    def _content(self, shape: Any, media: str) -> JSONObject:
        return {media: {"schema": self._schema(shape)}}

    def _schema(self, shape: Any) -> JSONObject:
        return self._schemas[id(shape)]


def parameters_of(call: Call) -> list[Parameter]:
    """Of path, query and head, those that every call has last."""
    of_path = [PATH_PARAMETERS[name] for name in path_names(call.path)]
    return [*of_path, *call.operation.parameters, REQUEST_ID, TRACEPARENT]


def problems_of(operation: Operation) -> list[ProblemType]:
    """All that the call may be refused with."""
    return [*EVERYWHERE, *operation.problems]


def path_names(path: str) -> list[str]:
    """The parameters of a path."""
    return re.findall(r"\{(\w+)\}", path)


def answered(examples: tuple[Example, ...], status: int) -> tuple[Example, ...]:
    """Those with that answer."""
    return tuple(one for one in examples if one.status == status)


def _shapes(operation: Operation) -> Iterator[Any]:
    if operation.body is not None:
        yield operation.body
    for reply in operation.replies.values():
        if reply.shape is not None:
            yield reply.shape
        yield from (shape for _, shape in reply.also)
        yield from (one.shape for one in reply.headers)
    yield from (one.shape for one in operation.parameters)


def _examples(examples: Iterable[Example], part: str) -> JSONObject:
    """By name; the same name in a request and in an answer belongs together."""
    shown = {
        one.name: ({"summary": one.text} if one.text else {}) | {"value": getattr(one, part)}
        for one in examples
        if getattr(one, part) is not None
    }
    return {"examples": shown} if shown else {}

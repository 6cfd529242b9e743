"""What a call is, for people and programs: the words of one entry of the table of routes."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from ingest.problems import ProblemType

JSON_TYPE = "application/json"


class Parameter(Struct, frozen=True):
    """One of a query, a head or a path; `shape` is a type, such as those of `shapes`."""

    name: str
    shape: Any
    text: str
    place: Literal["query", "header", "path"] = "query"


class Reply(Struct, frozen=True):
    """An answer that is no problem. `shape`: of its body, None without one; `headers`: those that
    only this answer has."""

    text: str
    shape: Any = None
    headers: tuple[Parameter, ...] = ()
    media: str = JSON_TYPE
    also: tuple[tuple[str, Any], ...] = ()  # other types of body, with their shapes
    links: tuple[str, ...] = ()  # operation ids that go on with what it names


class Example(Struct, frozen=True, kw_only=True):
    """A request and the answer it gets; tests send it. `given`: parameters by name."""

    name: str
    status: int
    text: str = ""
    given: dict[str, Any] = {}
    body: Any = None
    answer: Any = None


class Operation(Struct, frozen=True, kw_only=True):
    """A method of a path. `text`: CommonMark. `body`: its shape; `body_media`: its type."""

    name: str
    tag: str
    summary: str
    text: str = ""
    replies: dict[int, Reply]
    problems: tuple[ProblemType, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    body_media: str = JSON_TYPE
    examples: tuple[Example, ...] = ()

"""Every problem has a type, every type a section in the documents, and no type is idle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import problems
from ingest.answers import problem
from ingest.problems import PROBLEMS, ProblemType

ROOT = Path(__file__).resolve().parents[2]
CONSTRUCTORS = {"problem", "unavailable"}  # of answers.py
NAMES = {name for name, one in vars(problems).items() if isinstance(one, ProblemType)}


def constructions() -> Iterator[tuple[str, ast.Call]]:
    """Every call that makes a problem, with its place, but those of answers.py, which pass on."""
    for path in sorted((ROOT / "ingest").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in CONSTRUCTORS:
                yield f"{path.name}:{node.lineno}", node


def kind_of(call: ast.Call) -> str:
    assert call.args, "the type of a problem is the first argument"
    return ast.unparse(call.args[0])


def test_every_place_that_makes_a_problem_names_its_type() -> None:
    made = {place: kind_of(call) for place, call in constructions()}
    assert len(made) > 30
    passing_on = {"kind"}
    assert {place: name for place, name in made.items() if name not in NAMES | passing_on} == {}
    assert all(place.startswith("answers.py") for place in made if made[place] in passing_on)


def test_every_type_is_made_somewhere() -> None:
    assert {kind_of(call) for _, call in constructions()} >= NAMES


def test_the_page_in_the_documents_is_that_of_the_server() -> None:
    assert (ROOT / "docs/problems.md").read_text(encoding="utf-8") == problems.page()


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.name)
def test_a_type_leads_to_its_section(kind: ProblemType) -> None:
    path, _, fragment = kind.uri.partition("#")
    assert (path, fragment) == ("/docs/problems", kind.name)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", fragment)  # what a heading's anchor is made of
    assert problems.page().count(f"\n## {fragment}\n") == 1
    answer = problem(kind, "detail")
    assert answer.status == kind.status
    assert kind.uri.encode() in answer.body


def test_no_two_types_share_a_name_or_a_title() -> None:
    assert len({kind.name for kind in PROBLEMS}) == len({kind.title for kind in PROBLEMS})
    assert len({kind.name for kind in PROBLEMS}) == len(PROBLEMS) == len(NAMES)

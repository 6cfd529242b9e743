"""The rules of this house that a machine can check."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
LAYERS = ["ringbuf", "processors", "ingest", "supervisor"]  # each imports only those before it


def sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split()]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def too_long(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    found = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions(ast.parse(text))
        if node.end_lineno is not None and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    lines = text.count("\n")
    return found + ([f"{lines} lines"] if lines > MODULE_LINES_MAX else [])


def test_modules_and_functions_stay_small() -> None:
    found = {named(path): too_long(path) for path in sources()}
    assert len(found) > 100
    assert not {name: long for name, long in found.items() if long}


def test_nothing_is_left_for_later() -> None:
    marks = ["TO" + "DO", "FIX" + "ME", "X" * 3]
    texts = {named(path): path.read_text(encoding="utf-8") for path in sources()}
    assert len(texts) > 100
    assert not [(name, mark) for name, text in texts.items() for mark in marks if mark in text]


def imported_packages(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    own = [path for path in sources() if path.relative_to(ROOT).parts[0].split(".")[0] == layer]
    assert own, f"no source of {layer} found"
    wrong = {named(path): imported_packages(ast.parse(path.read_text())) & above for path in own}
    assert not {name: found for name, found in wrong.items() if found}

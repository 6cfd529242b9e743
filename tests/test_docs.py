"""What the documents say is what the program has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from processors.flags import FLAGS, Flag
from processors.settings import default_of
from supervisor import VERBS

ROOT = Path(__file__).resolve().parent.parent
OPERATING = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/README.md"]
DOCUMENTS += (ROOT / "docs").rglob("*.md")


def row_of(flag: Flag) -> str:
    """The line of the table in docs/operating.md that has the flag."""
    rows = [line for line in OPERATING.splitlines() if re.match(rf"\|[^|]*`{flag.option}`", line)]
    assert len(rows) == 1, f"{flag.option} stands in {len(rows)} rows"
    return rows[0]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_setting_is_documented_with_its_default(flag: Flag) -> None:
    row = row_of(flag)
    if not flag.default_text and flag.name not in ("processor", "database"):
        default = str(default_of(flag)).removesuffix(".0")
        assert re.search(rf"[| ]{re.escape(default)}[,| ]", row), f"{default} is not in {row}"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "version"])
def test_every_verb_is_documented(verb: str) -> None:
    assert f"`rasher {verb}" in OPERATING


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    missing = [
        link for link in links if not link.startswith("http") and not (path.parent / link).exists()
    ]
    assert not missing

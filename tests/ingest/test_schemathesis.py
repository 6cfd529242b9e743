"""The server against its own document: schemathesis makes the requests, good and bad, alone and in
sequences, and holds every answer to the document."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ingest.keyring import make_keys
from tests.ingest.schemathesis_hooks import RULES
from tests.program import ROOT, Rasher, Start, call, clean_environ, verb

# Requests of each call, beside those for every limit that the document states.
EXAMPLES_MAX = int(os.environ.get("TEST_SCHEMATHESIS_EXAMPLES", "2000"))
RUN_S_MAX = 3600

# Streams without an end, for which schemathesis would wait: test_events.py asks them.
ENDLESS = ("/events",)


def strict(document: Any) -> Any:
    """The document, as if clients had to refuse what it does not mention."""
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


def schemathesis(run: Rasher, token: str, folder: Path, *flags: str) -> str:
    """Runs it on every call; what it printed, if it found nothing."""
    status, document = call(run, "GET", "/openapi.json")
    assert status == 200
    path = folder / "openapi.json"
    path.write_text(json.dumps(strict(document)))
    command = Path(sys.executable).with_name("schemathesis")
    report = subprocess.run(
        [
            command,
            "run",
            path,
            "--url",
            f"http://127.0.0.1:{run.port}",
            "--header",
            f"Authorization: Bearer {token}",
            *(f"--exclude-path={endless}" for endless in ENDLESS),
            *flags,
        ],
        cwd=folder,
        env={
            **clean_environ(),
            "SCHEMATHESIS_HOOKS": "tests.ingest.schemathesis_hooks",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S_MAX,
    )
    assert report.returncode == 0, f"{report.stdout}\n{report.stderr}"
    tested = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", report.stdout)
    assert tested is not None, report.stdout
    calls = [path for path, methods in document["paths"].items() for _ in methods]
    ended = len([path for path in calls if path not in ENDLESS])
    assert [int(number) for number in tested.groups()] == [ended, len(calls), ended]
    return report.stdout


def started(rasher: Start, folder: Path) -> tuple[Rasher, str]:
    """A small ring, one worker, orders that end as dead letters; and a key that may everything."""
    tokens = make_keys(folder / "keys", operator="submit read admin")
    run = rasher(
        "--keys", str(folder / "keys"),
        "--capacity", "8", "--workers", "1", "--full-timeout", "5",
        "--processor", "tests.ingest.fickle:factory",
    )  # fmt: skip
    return run.ready(), tokens["operator"]


def test_answers_are_those_of_the_document(rasher: Start, tmp_path: Path) -> None:
    schemathesis(*started(rasher, tmp_path), tmp_path, "--max-examples", "2", "--seed", "7")


@pytest.mark.prove
@pytest.mark.timeout(RUN_S_MAX)
def test_answers_to_many_requests_are_those_of_the_document(rasher: Start, tmp_path: Path) -> None:
    run, token = started(rasher, tmp_path)
    said = schemathesis(run, token, tmp_path, "--max-examples", str(EXAMPLES_MAX))
    print(said[said.index("SUMMARY") :])
    audited = verb(run, "audit")
    assert audited.returncode == 0, audited.stdout
    print(audited.stdout)


@pytest.mark.parametrize("rule", RULES)
def test_what_the_document_can_not_say_stands_in_the_documentation(rule: str) -> None:
    text = (ROOT / "docs/openapi.md").read_text(encoding="utf-8")
    assert f"\n| {rule} |" in text

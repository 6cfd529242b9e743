"""Dead letters of the whole program: found by the command, replayed, in effect once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from ingest.dead_letter_verb import main
from processors.settings import load_settings
from processors.store import migrate
from tests.program import ROOT, Client, Rasher, Start, clean_environ, verb

FLAGS = ("--processor", "tests.crash.wicked:wicked", "--workers", "2", "--capacity", "50")


def post_all(run: Rasher, count: int, while_there: Path) -> None:
    client = Client(run)
    with closing(client.connection):
        client.stock(str(count))
        for number in range(count):
            order = {
                "customer": "Funky Foods",
                "reference": "sulk" if number % 2 else None,
                "metadata": {"while": str(while_there)},
                "lines": [{"sku": "BELLY", "quantity": "1"}],
            }
            assert client.call("POST", "/orders", order)[0] == 202


def dead(run: Rasher) -> int:
    return int(run.column("SELECT count(*) FROM orders WHERE status = 'dead'")[0])


def replay_all(run: Rasher) -> subprocess.Popen[str]:
    words = [sys.executable, "supervisor.py", "dead-letters", "replay", "--all"]
    words += ["--url", f"http://127.0.0.1:{run.port}", "--data-dir", str(run.data_dir)]
    return subprocess.Popen(
        words, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def through(rasher: Start, tmp_path: Path, count: int, kills: int) -> None:
    reason = tmp_path / "reason"
    reason.touch()
    run = rasher(*FLAGS).ready()
    post_all(run, count, reason)
    run.until(lambda: dead(run) == count // 2 and not run.left(), "half of them dead")
    listed = verb(run, "dead-letters", "list", "--json", "--limit", "100000").stdout.splitlines()
    assert len({json.loads(line)["order_id"] for line in listed}) == count // 2
    reason.unlink()
    replaying = replay_all(run)
    for number in range(kills):
        threading.Event().wait(0.2)
        victims = run.children(("worker", "front")[number % 2])
        for child in victims.values():
            child.kill()
    said, complaints = replaying.communicate(timeout=120)
    assert (replaying.returncode, said) == (0, f"dead letters: {count // 2} replayed, 0 not\n"), (
        complaints
    )
    deadline = time.monotonic() + 60
    while run.left() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert run.end(signal.SIGTERM) == 0
    assert run.column("SELECT DISTINCT status FROM orders") == ["allocated"]
    assert run.column("SELECT sum(available) FROM lots") == [0]
    assert run.rows("SELECT round, count(*) FROM orders GROUP BY round") == [
        (0, count // 2),
        (1, count // 2),
    ]
    audit = verb(run, "audit")
    assert audit.returncode == 0, audit.stdout


def test_all_that_died_is_replayed_and_in_effect_once(rasher: Start, tmp_path: Path) -> None:
    through(rasher, tmp_path, 80, 0)


@pytest.mark.prove
def test_a_thousand_are_replayed_once_while_fronts_and_workers_are_killed(
    rasher: Start, tmp_path: Path
) -> None:
    through(rasher, tmp_path, 2000, 6)


def test_the_command_shows_what_there_is_and_lets_it_go(rasher: Start, tmp_path: Path) -> None:
    reason = tmp_path / "reason"
    reason.touch()
    run = rasher(*FLAGS).ready()
    post_all(run, 4, reason)
    run.until(lambda: dead(run) == 2 and not run.left(), "two dead")
    listed = verb(run, "dead-letters", "list")
    assert "2 of 2 dead letters" in listed.stdout
    assert "processor_error" in listed.stdout
    query = "SELECT id FROM orders WHERE status = 'dead' ORDER BY committed_us, id"
    first, second = (str(uuid.UUID(bytes=key)) for key in run.column(query))
    shown = verb(run, "dead-letters", "show", first).stdout
    assert f'"order_id": "{first}"' in shown
    assert "RuntimeError: sulks" in shown
    url = ("--url", f"http://127.0.0.1:{run.port}")
    gone = verb(run, "dead-letters", "discard", first, *url)
    assert (gone.returncode, gone.stdout) == (0, "dead letters: 1 let go, 0 not\n")
    again = verb(run, "dead-letters", "replay", first, second, *url)
    assert (again.returncode, again.stdout) == (1, "dead letters: 1 replayed, 1 not\n")
    assert f"{first}: 404 no dead letter {first}" in again.stderr
    run.until(lambda: not run.left(), "all settled")
    assert run.end(signal.SIGTERM) == 0
    assert "1 of 1 dead letters" in verb(run, "dead-letters", "list").stdout  # it died again
    assert verb(run, "audit").returncode == 0


def test_without_a_service_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(f"sqlite:///{tmp_path}/rasher.db")
    settings = load_settings(["--data-dir", str(tmp_path)], {})[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(settings, ["replay", "--all", "--url", f"http://127.0.0.1:{port}"]) == 1
    assert "rasher dead-letters: Cannot connect" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(settings, ["list", "--limit", "0"])
    assert ended.value.code == 2

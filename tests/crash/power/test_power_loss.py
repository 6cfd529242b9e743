"""Power loss at every point of a run: what was answered is there afterwards, once.

A service is recorded under load: every write, size, name and sync of all of its processes, and
every answer. From that disks are rebuilt as a power loss could have left them, and the production
code starts on each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.power.proof import Task, prove, prove_in_parallel
from tests.crash.power.recording import build_recorder, environ, read_events
from tests.program import EXPIRY, PATIENCE_S, ROOT, Client, Rasher, clean_environ
from tests.supervisor.kit import kill_everything

Recorded = Callable[..., Task]

SKUS = ("BELLY", "LOIN", "HAM")
POSTERS = 4


@pytest.fixture
def recorded(launch: Callable[..., Rasher], tmp_path: Path, data_dir: Path) -> Recorded:
    """Records a run of so many orders -> what to judge."""

    def record(images: int, orders: int, *flags: str) -> Task:
        into = tmp_path / "recording"
        into.mkdir()
        data_dir.mkdir()
        preload = environ(build_recorder(tmp_path), data_dir, into)
        small = ("--segment-bytes", "65536", "--batch", "8")
        run = launch("supervisor.py", *small, *flags, **preload).ready()
        stock(run, orders)
        told = load(run, tmp_path / "ledger", orders)
        kill_everything(run)
        sent = {event.path for event in read_events(into) if event.kind == "sent"}
        assert len(told) >= orders
        assert told <= sent, "the recorder has not seen every answer"
        return Task(into, str(data_dir), images)

    return record


def stock(run: Rasher, orders: int) -> None:
    """Enough of one sku, too little of another, none of the third."""
    client = Client(run)
    with closing(client.connection):
        for sku, quantity in zip(SKUS, (orders, orders // 6), strict=False):
            for number in range(3):
                lot = {"sku": sku, "quantity": str(quantity), "expires_at": EXPIRY}
                assert client.call("POST", "/lots", {"lot_id": f"{sku}-{number}", **lot})[0] == 201


def load(run: Rasher, ledger: Path, orders: int) -> set[str]:
    """Half of them with ids of their own, some of those twice; the others without, meanwhile.
    -> what was answered 202."""
    told: set[str] = set()
    count = orders // 2 // POSTERS
    posters = [threading.Thread(target=post, args=(run, count, told)) for _ in range(POSTERS)]
    for poster in posters:
        poster.start()
    words = ["--rate", "300", "--duration", str(orders / 2 / 300), "--connections", "16"]
    url = f"http://127.0.0.1:{run.port}"
    subprocess.run(
        [sys.executable, "supervisor.py", "load", "--url", url, *words, "--skus", ",".join(SKUS),
         "--ledger", str(ledger)],
        cwd=ROOT, env=clean_environ(), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for poster in posters:
        poster.join(PATIENCE_S)
    lines = [line.split() for line in ledger.read_text().splitlines()]
    return told | {words[0] for words in lines if words[1] == "202"}


def post(run: Rasher, count: int, told: set[str]) -> None:
    client = Client(run)
    with closing(client.connection):
        for number in range(count):
            lines = [{"sku": SKUS[number % len(SKUS)], "quantity": 1}]
            status, answer = client.call("POST", "/orders", {"customer": "x", "lines": lines})
            assert status == 202
            told.add(answer["order_id"])
            if number % 5 == 0:
                told.add(client.order(client.order()))  # and once more


def test_no_image_of_the_disk_lacks_what_was_answered(recorded: Recorded) -> None:
    verdict = prove(recorded(250, 120))
    assert verdict.images >= 250
    assert verdict.answered > 5_000
    assert verdict.put_back > 25
    assert (verdict.lost, verdict.wrong) == ([], [])


def test_without_a_journal_images_lack_what_was_answered(recorded: Recorded) -> None:
    verdict = prove(recorded(60, 60, "--durability", "memory"))
    assert verdict.lost
    assert not verdict.wrong


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_no_image_of_the_disk_lacks_what_was_answered_of_many(
    recorded: Recorded, tmp_path: Path
) -> None:
    task = recorded(20_000, 400, "--fronts", "2", "--workers", "2")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    begun = time.monotonic()
    shares = os.cpu_count() or 1
    verdict = prove_in_parallel(Task(task.into, task.root, task.images, fresh=fresh), shares)
    shutil.rmtree(fresh)
    print(
        f"\nPower loss: {verdict.images:,} images in {time.monotonic() - begun:.0f} s, "
        f"{verdict.answered:,} answered orders looked for in them, {verdict.put_back:,} put back "
        f"from the journal, {verdict.fresh} started by the whole program; "
        f"lost in {len(verdict.lost)}, wrong in {len(verdict.wrong)}"
    )
    assert verdict.images >= 20_000
    assert verdict.fresh >= 100
    assert (verdict.lost, verdict.wrong) == ([], [])

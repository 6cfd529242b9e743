"""HUP, TTIN and TTOU on processes."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.crowd import Crowd
from tests.program import Client, Rasher, Start, verb

REPLACED = "; it is replaced"
OVER = "nobody is left to be replaced"


def pids(run: Rasher) -> dict[str, int]:
    return {title: process.pid for title, process in run.children().items()}


def reload(run: Rasher, rounds: int = 1) -> None:
    """Sends HUP and waits until the round is over, with workers at work."""
    run.signal(signal.SIGHUP)
    run.log.match(OVER, rounds)


def settled(run: Rasher, workers: int) -> None:
    run.until(lambda: len(run.children("worker")) == workers, f"{workers} workers")


# ---- over stand-ins ------------------------------------------------------------------------------


def test_hup_replaces_every_process_under_the_same_name(stand_in: Start) -> None:
    run = stand_in("--fronts", "2", "--workers", "2").ready()
    before = pids(run)
    reload(run)
    run.log.match("worker 1 is ready")
    after = pids(run)
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert run.log.count(REPLACED) == 4
    assert run.end(signal.SIGTERM) == 0
    assert run.log.match("no order is left")


def test_a_hand_goes_to_the_worker_that_replaces_its_owner(stand_in: Start) -> None:
    run = stand_in("--workers", "1", worker="hold").ready()
    run.put(3)
    run.until(lambda: run.held()[0] == 3, "three orders held")
    reload(run)
    run.log.match("worker 0 is ready")
    with run.ring() as ring:
        run.until(lambda: ring.held_count(0) == 3, "three orders held")
        pid = run.child("worker").pid
        assert [one.pid for one in ring.participants() if one.role == "reader"] == [pid]


def test_what_cannot_start_replaces_nobody(
    stand_in: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    run = stand_in("--workers", "1", broken=str(broken)).ready()
    before = pids(run)
    broken.touch()
    run.signal(signal.SIGHUP)
    assert run.log.match("error .* the replacement of front 0: pid .* ended with exit code 9")
    assert pids(run) == before
    broken.unlink()
    reload(run)
    assert not set(pids(run).values()) & set(before.values())


def test_hup_before_anybody_is_ready_is_no_end_and_no_leak(stand_in: Start) -> None:
    run = stand_in("--workers", "2")
    run.until(run.children, "a child")
    for _ in range(3):
        run.signal(signal.SIGHUP)
    run.ready()
    run.log.match(OVER)
    assert run.end(signal.SIGTERM) == 0
    assert run.log.match("no order is left")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hup_gives_way_to_the_end(stand_in: Start, number: int) -> None:
    run = stand_in("--fronts", "2", "--workers", "2").ready()
    run.signal(signal.SIGHUP)
    run.log.match("replacing 4 processes")
    assert run.end(number) == 0
    assert run.log.match("no order is left")


@pytest.mark.parametrize("role", ["front", "worker"])
def test_a_process_killed_while_its_replacement_starts_is_replaced_by_that_one(
    stand_in: Start, role: str
) -> None:
    run = stand_in("--workers", "1").ready()
    victim = run.child(role)
    run.signal(signal.SIGHUP)
    run.log.match("replacing 2 processes")  # a death that is heard first is just a death
    if role == "worker":
        run.log.match("front 0: .*" + REPLACED)
    victim.kill()
    run.log.match(f"{role} 0: pid {victim.pid} .*" + REPLACED)
    run.log.match("worker 0 is ready")
    run.until(lambda: sorted(run.children()) == ["rasher front 0", "rasher worker 0"], "both")
    assert not run.log.count("another starts")


def test_a_front_that_hangs_is_killed_and_replaced_all_the_same(stand_in: Start) -> None:
    run = stand_in("--graceful-timeout", "0", "--workers", "1", front="deaf").ready()
    before = run.child("front")
    run.signal(signal.SIGHUP)
    run.log.match("replacing 2 processes")
    run.until(lambda: len(run.process.children()) == 3, "a replacement")
    before.kill()  # its patience of 15 s is the policy's to test
    run.log.match(f"front 0: pid {before.pid} was ended by SIGKILL" + REPLACED)
    run.log.match(OVER)


def test_ttin_and_ttou_are_one_worker_more_and_fewer(stand_in: Start) -> None:
    run = stand_in("--workers", "1").ready()
    for count in (2, 3):
        run.signal(signal.SIGTTIN)
        run.log.match(f"worker {count - 1} is ready")
    for count in (2, 1):
        run.signal(signal.SIGTTOU)
        settled(run, count)
    run.signal(signal.SIGTTOU)
    run.log.match("workers: 1, and it stays so: one is the least")
    assert run.child("worker")
    run.put(20)
    assert run.end(signal.SIGTERM) == 0
    assert run.log.match("no order is left")


def test_more_workers_than_the_ring_has_readers_are_refused_in_words(stand_in: Start) -> None:
    run = stand_in("--workers", "7").ready()
    run.signal(signal.SIGTTIN)
    run.log.match("worker 7 is ready")
    run.signal(signal.SIGTTIN)
    run.log.match(r"workers: 8, and it stays so: .*\(--workers 9 at the start\)")


def test_what_a_worker_held_that_left_is_worked_off(stand_in: Start) -> None:
    run = stand_in("--workers", "2", worker="hold").ready()
    run.put(1)
    run.until(lambda: sum(run.held()) == 1, "one order held")
    while not run.held()[1]:
        run.put(1)
    run.signal(signal.SIGTTOU)
    run.log.match("worker 1: .*another starts now")
    run.until(lambda: run.held()[1] == 0, "an empty hand")
    settled(run, 1)


def test_a_replaced_worker_0_goes_on_with_hands_of_nobody(stand_in: Start) -> None:
    first = stand_in("--workers", "2", worker="hold").ready()
    first.put(1)
    while not first.held()[1]:
        first.put(1)
    assert first.end(signal.SIGINT) == 0
    second = stand_in("--workers", "1", worker="hold").ready()
    second.log.match(r"adopting \[1\]")
    reload(second)
    second.log.match(r"adopting \[1\]", 2)
    assert second.held()[1] > 0


# ---- the real program ----------------------------------------------------------------------------


def watched(
    run: Rasher, folder: Path, *, keepers: int = 12, newcomers: int = 4, idlers: int = 6
) -> Crowd:
    client = Client(run)
    client.stock("10000000")
    client.connection.close()
    return Crowd(run.port, folder / "ledger.txt", keepers, newcomers, idlers)


def audited(run: Rasher, crowd: Crowd) -> str:
    assert run.end(signal.SIGTERM) == 0
    audit = verb(run, "audit", "--ledger", str(crowd.ledger))
    assert (audit.returncode, audit.stdout.startswith("audit: ok")) == (0, True), audit
    assert re.search(rf"{crowd.accepted:,} ledger: answered", audit.stdout), audit.stdout
    return audit.stdout


def test_hup_under_load_costs_no_client_anything(rasher: Start, tmp_path: Path) -> None:
    run = rasher("--fronts", "2", "--workers", "2").ready()
    with watched(run, tmp_path) as crowd:
        reload(run)
        accepted = crowd.accepted
        run.until(lambda: crowd.accepted > accepted + 50, "more orders")
    assert crowd.trouble == {}
    assert run.log.count(REPLACED) == 4
    assert not run.log.count("killing|warning|error")
    audited(run, crowd)


def test_ttin_and_ttou_under_load_lose_nothing(rasher: Start, tmp_path: Path) -> None:
    run = rasher("--workers", "1").ready()
    with watched(run, tmp_path) as crowd:
        for _ in range(3):
            run.signal(signal.SIGTTIN)
            settled(run, 2)
            run.signal(signal.SIGTTOU)
            settled(run, 1)
    assert crowd.trouble == {}
    audited(run, crowd)


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("idlers", [0, 6])
def test_hup_every_second_for_a_minute_under_load(
    rasher: Start, tmp_path: Path, idlers: int
) -> None:
    run = rasher("--fronts", "2", "--workers", "2").ready()
    hups = 60
    with watched(run, tmp_path, keepers=24, newcomers=8, idlers=idlers) as crowd:
        begun = time.monotonic()
        for number in range(1, hups + 1):
            run.signal(signal.SIGHUP)
            threading.Event().wait(max(0.0, begun + number - time.monotonic()))
    replaced = {role: run.log.count(f"{role} .*{REPLACED}") for role in ("front", "worker")}
    sys.stdout.write(
        f"\nHUP every second, {hups} times, {idlers} clients mostly idle: "
        f"{replaced['front']} fronts and {replaced['worker']} workers replaced, "
        f"{crowd.counts['connections']:,} connections, {crowd.accepted:,} orders answered 202, "
        f"longest {crowd.longest_s * 1000:.0f} ms, anything else: {crowd.trouble}\n"
    )
    assert crowd.trouble == {}
    assert min(replaced.values()) >= 4
    sys.stdout.write(audited(run, crowd))

"""Whoever is killed, however often: every order that was answered takes effect exactly once."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

import pytest

from tests.crash.storm import Plan, Storm
from tests.program import Start, verb

TAKEN_AGAIN_MEDIAN_S, TAKEN_AGAIN_S_MAX, ACCEPTING_S_MAX = 1.0, 3.0, 5.0
# In the suite other tests' processes may have the cores: there the figures are bounds, not claims.
BUSY = 5

SHORT = Plan(
    kills={"worker": 4, "front": 2, "supervisor": 1, "all": 1},
    stops={"worker": 1, "front": 1, "all": 1},
    hups=1,
    fronts=2,
    workers=2,
    rate=100,
    pause_s=0.1,
)
LONG = Plan(
    kills={"worker": 140, "front": 80, "supervisor": 45, "all": 35},
    stops={"worker": 14, "front": 6, "supervisor": 5, "all": 5},
    hups=20,
    fronts=2,
    workers=3,
    rate=150,
    pause_s=0.5,
    relapses=0.2,
)


def a_seed() -> int:
    """Another one each time, or TEST_STORM_SEED, to deal the same blows again."""
    return int(os.environ.get("TEST_STORM_SEED", random.randrange(10**6)))


def weather(start: Start, folder: Path, plan: Plan, busy: float = 1) -> None:
    """Carries the plan out, tells what there was to count, and checks everything."""
    seed = a_seed()
    say(f"\nTEST_STORM_SEED={seed}")
    with ExitStack() as stack:
        storm = Storm(start, folder, plan, seed, stack)
        storm.rage()
        storm.calm()
        repairs, rescues = storm.ring.repairs, storm.ring.rescues
        cleared = storm.ring.mapping.cleared
    assert storm.run.end(signal.SIGTERM) == 0
    check_nothing_left(storm)
    say_blows(storm)
    say(f"locks of dead holders repaired {repairs}, cells cleared {cleared}, rescues {rescues}")
    check_redelivered(storm)
    check_corrections(storm)
    check_audit(storm)
    check_times(storm, busy)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def check_nothing_left(storm: Storm) -> None:
    assert storm.left_processes() == []
    ring = Path(storm.ring.path or "")
    assert list(ring.parent.iterdir()) == []
    left = sorted(path.name for path in storm.run.data_dir.iterdir())
    assert left == ["journal", "rasher.db", "rasher.pid"]
    assert list((storm.run.data_dir / "journal").iterdir()) == []


def say_blows(storm: Storm) -> None:
    blows = ", ".join(f"{count} x {blow}" for blow, count in sorted(storm.done.items()))
    kills = sum(count for blow, count in storm.done.items() if blow.startswith("kill"))
    say(f"{kills} kills in {storm.seconds:.0f} s: {blows}")
    say(f"the machine's load afterwards {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    say(f"load {storm.report['sent']} orders, answers {storm.report['statuses']}")
    assert set(storm.report["statuses"]) <= {"202", "503"}


def check_redelivered(storm: Storm) -> None:
    """What the dead held uncommitted is exactly what the database knows as tried before."""
    found = storm.findings
    say(
        f"filled hands found {found.filled_hands}, with {len(found.filled)} orders; committed and"
        f" not released {found.committed}; takes cut off {found.in_doubt}"
    )
    again = set(storm.run.column("SELECT id FROM orders WHERE attempts > 1"))
    assert again == found.filled


def check_corrections(storm: Storm) -> None:
    query = "SELECT reason, delta FROM movements WHERE kind = 'adjust'"
    with closing(sqlite3.connect(storm.run.data_dir / "rasher.db")) as database:
        rows = [(str(reason), int(delta)) for reason, delta in database.execute(query)]
    told = ", ".join(f"{count} x {what}" for what, count in storm.adjuster.check(rows).items())
    say(f"corrections {told}")


def check_audit(storm: Storm) -> None:
    audit = verb(storm.run, "audit", "--ledger", str(storm.ledger))
    say(audit.stdout.rstrip())
    assert (audit.returncode, audit.stdout[:9]) == (0, "audit: ok")
    answered = re.search(r"(\S+) ledger: answered", audit.stdout)
    assert answered is not None
    assert int(answered[1].replace(",", "")) >= storm.report["accepted"] > 0


def check_times(storm: Storm, busy: float) -> None:
    taken, cut, times = storm.recoveries.seconds, storm.recoveries.cut_short, storm.times
    say(
        f"a killed worker's next order: median {median(taken):.2f} s, worst {max(taken):.2f} s"
        f" of {len(taken)}; {len(cut)} more met the next blow first"
    )
    say(
        f"a supervisor's start to accepting: median {median(times.accepting):.2f} s, worst"
        f" {max(times.accepting):.2f} s of {len(times.accepting)}; from the kill: worst"
        f" {max(times.outage):.2f} s"
    )
    assert median(taken) <= TAKEN_AGAIN_MEDIAN_S * busy
    assert max(taken + cut) <= TAKEN_AGAIN_S_MAX * busy
    assert max(times.accepting) <= ACCEPTING_S_MAX * busy


def test_a_storm_of_kills_loses_nothing_and_doubles_nothing(rasher: Start, tmp_path: Path) -> None:
    weather(rasher, tmp_path, SHORT, BUSY)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_three_hundred_kills_lose_nothing_and_double_nothing(rasher: Start, tmp_path: Path) -> None:
    weather(rasher, tmp_path, LONG)

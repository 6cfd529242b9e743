"""Mistakes that the suite must find: each a few words changed in a copy of the tree.

A row names the words, so that it goes stale aloud: a text that is found no more, or twice, fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.crash.bugs import Bug, Edit
from tests.crash.seeded_journal import JOURNAL_BUGS
from tests.program import ROOT, clean_environ

NOT_COPIED = (".*", "var", "build", "dist", "*.egg-info", "__pycache__", "results")
SUBSET_S_MAX = 300
HUNG_S = 60  # a test that hangs has found the mistake, too


KERNEL, BINDING, WORKER = "ringbuf/kernel.h", "ringbuf/_kernel.c", "processors/worker.py"
DECIDE = "settled = self._store.commit(self._decide, jobs, share)"
RELEASE = "jobs[0].reader.release([job.item for job in jobs])"
KILLS, DEAD = "tests/ringbuf/test_kills.py", "tests/ringbuf/test_dead_holders.py"
ONCE = "tests/processors/test_worker.py"

BUGS = (
    Bug(
        "no repair",
        (Edit(KERNEL, "if (owner && owner <= r->readers) {", "if (0) {"),),
        (DEAD,),
    ),
    Bug(
        "head before copy",
        (
            Edit(
                KERNEL,
                "uint32_t count = share < max ? (uint32_t)share : max;",
                "uint32_t count = share < max ? (uint32_t)share : max;\n"
                "    atomic_store_explicit(&side->cursor, head + count, memory_order_release);",
            ),
        ),
        (f"{KILLS}::test_killed_holders_of_the_locks_are_repaired_and_counted",),
    ),
    Bug(
        "tail before copy",
        (
            Edit(
                KERNEL,
                "uint32_t fits = room < count ? (uint32_t)room : count;",
                "uint32_t fits = room < count ? (uint32_t)room : count;\n"
                "    atomic_store_explicit(&side->cursor, tail + fits, memory_order_release);",
            ),
        ),
        (
            "tests/ringbuf/test_exchange.py"
            "::test_each_item_is_taken_exactly_once_and_in_its_writers_order",
            f"{KILLS}::test_killed_holders_of_the_locks_are_repaired_and_counted",
        ),
    ),
    Bug(
        "release before commit",
        (
            Edit(
                WORKER,
                f"{DECIDE}\n",
                f"{RELEASE}\n                {DECIDE}\n",
            ),
            Edit(WORKER, f"self._ring.bump_commits()\n        {RELEASE}", "pass"),
        ),
        (f"{ONCE}::test_a_batch_lies_in_the_hand_until_its_commit_has_returned",),
    ),
    Bug(
        "no unique id",
        (
            Edit(WORKER, "if follows(job.item, known):", "if True:"),
            Edit(
                "processors/recording.py",
                "sa.insert(orders),",
                'sa.insert(orders).prefix_with("OR IGNORE"),',
            ),
        ),
        (f"{ONCE}::test_a_redelivered_order_takes_no_effect_again",),
    ),
    Bug(
        "hand given away while its owner lives, by the ring",
        (Edit("ringbuf/ring.py", "if before.pid and before.alive():", "if False:"),),
        (
            "tests/ringbuf/test_participants.py"
            "::test_an_index_goes_on_only_from_an_owner_that_is_gone",
        ),
    ),
    Bug(
        "hand given away while its owner lives, by the next supervisor",
        (Edit("processors/datadir.py", "                end_participants(ring)\n", ""),),
        (
            "tests/supervisor/test_tree.py"
            "::test_whoever_of_a_killed_run_still_lives_is_ended_before_a_hand_is_given_out",
        ),
    ),
    Bug(
        "wake left out",
        (Edit(KERNEL, "if (fits) rb_signal(&r->shared->readers.event);", ""),),
        (f"{KILLS}::test_a_sleeping_reader_that_is_killed_swallows_no_wake",),
    ),
    Bug(
        "answer before put",
        (
            Edit(
                "ingest/accept.py",
                "            sequence = await self._put_when_fits(pending)\n"
                "        return self._accepted(pending.key, sequence, ",
                "            self._late = asyncio.ensure_future(self._put_when_fits(pending))\n"
                "        return self._accepted(pending.key, self._ring.tail, ",
            ),
        ),
        ("tests/ingest/test_waiting.py",),
    ),
    Bug(
        "adoption without the lock",
        (
            Edit(
                BINDING,
                "status = rb_lock(&guard, r, &r->shared->readers, (int64_t)(patience_s * 1e9));",
                "guard = (rb_guard){0}, status = patience_s < 0 ? RB_BUSY : RB_OK;",
            ),
            Edit(BINDING, "        rb_unlock(&guard);\n    }\n    Py_END", "    }\n    Py_END"),
        ),
        (DEAD,),
    ),
    Bug(
        "attempts not counted",
        (
            Edit(
                BINDING,
                "        atomic_fetch_add(&cell->attempts, 1);",
                "",
            ),
        ),
        ("tests/ringbuf/test_participants.py::test_only_deaths_are_counted_as_attempts",),
    ),
    *JOURNAL_BUGS,
)


def copy_tree(to: Path) -> Path:
    """The tree as it stands, kernel included."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return to


def plant(bug: Bug, tree: Path) -> None:
    """Makes the mistake in that tree."""
    for edit in bug.edits:
        path = tree / edit.file
        text = path.read_text(encoding="utf-8")
        assert text.count(edit.old) == 1, f"{bug.name}: not once in {edit.file}: {edit.old!r}"
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    if bug.in_kernel:
        build = ["-W", "ignore", "setup.py", "-q", "build_ext", "--inplace"]  # what has changed
        built = in_tree(tree, build)
        assert built.returncode == 0, built.stderr


def in_tree(tree: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in clean_environ().items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=SUBSET_S_MAX,
    )


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a tree: exit code of pytest, the tests that failed, all its words."""

    code: int
    failed: list[str]
    seconds: float
    said: str


def judge(tree: Path, tests: tuple[str, ...]) -> Verdict:
    """Runs those tests there, up to the first that fails."""
    since = time.monotonic()
    words = ["-m", "pytest", "-x", "-q", "-rf", "--tb=line", "-p", "no:cacheprovider"]
    words += ["-m", "not prove"]
    words += [f"--timeout={HUNG_S}", f"--basetemp={tree.parent / f'{tree.name}.tmp'}", *tests]
    ran = in_tree(tree, words)
    failed = re.findall(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    return Verdict(ran.returncode, failed, time.monotonic() - since, ran.stdout + ran.stderr)

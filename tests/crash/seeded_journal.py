"""Mistakes in the journal, and in what a start makes of it; see seeded.py."""

from __future__ import annotations

from tests.crash.bugs import Bug, Edit

JOURNAL, SYNCER = "ringbuf/journal.py", "ringbuf/_journal.c"
UPKEEP = "tests/processors/test_journal.py"
SEGMENT, RECOVERY = "ringbuf/segment.py", "processors/recovery.py"
ANSWERS, START = "tests/ingest/test_journaled.py", "tests/processors/test_recovery.py"
POWER = "tests/crash/power/test_power_loss.py::test_no_image_of_the_disk_lacks_what_was_answered"

APPEND_TO_WHAT_IS_THERE = """
        for left in segment_paths(rules.directory):
            fd = os.open(left, os.O_RDWR | os.O_CLOEXEC)
            data = os.pread(fd, size, 0).rstrip(b"\\0")
            end = -(-len(data) // PAGE_BYTES) * PAGE_BYTES
            return Open(fd, left, int(left.stem, 16), size, end, end)
        fd, path ="""

JOURNAL_BUGS = (
    Bug(
        "answer before the sync",
        (
            Edit(
                JOURNAL,
                "self._callbacks[-1] = callback\n",
                "self._loop.call_soon(callback)\n",
            ),
        ),
        (f"{ANSWERS}::test_no_answer_before_the_sync_has_returned",),
    ),
    Bug(
        "skip the sync",
        (Edit(SYNCER, "if (!error && fdatasync(self->fd)) error = errno;", ""),),
        (POWER,),
    ),
    Bug(
        "retry after EIO",
        (
            Edit(
                SYNCER,
                "if (!error && fdatasync(self->fd)) error = errno;",
                "if (!error && fdatasync(self->fd) && fdatasync(self->fd)) error = errno;",
            ),
        ),
        ("tests/crash/test_sync_faults.py",),
    ),
    Bug(
        "segment recycled too early",
        (
            Edit(
                "processors/recycling.py",
                "if not self._all_known(identities):",
                "if not identities:",
            ),
        ),
        (f"{UPKEEP}::test_a_segment_goes_when_all_of_it_is_known_and_not_before",),
    ),
    Bug(
        "no crc check",
        (Edit(SEGMENT, "if crc32c(body, crc32c(head[: -SUM.size])) != total:", "if False:"),),
        (f"{START}::test_damage_refuses_the_start_and_says_where",),
    ),
    Bug(
        "recovery ignores the ring",
        (Edit(RECOVERY, "for one in found.keys() - there]", "for one in found]"),),
        (f"{START}::test_a_recovery_that_was_cut_off_is_begun_anew",),
    ),
    Bug(
        "recovery ignores the database",
        (Edit(RECOVERY, "if one not in settled", "if one"),),
        (f"{START}::test_what_is_settled_already_is_not_put_back",),
    ),
    Bug(
        "append behind a torn record",
        (Edit(JOURNAL, "\n        fd, path =", APPEND_TO_WHAT_IS_THERE),),
        (f"{START}::test_a_new_front_does_not_append_to_what_a_dead_one_left",),
    ),
)

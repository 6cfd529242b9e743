"""A journal that can't be read refuses the start, in words."""

from __future__ import annotations

import signal

from tests.program import Start


def test_a_segment_that_can_not_be_read_is_named(rasher: Start) -> None:
    run = rasher().ready()
    assert run.end(signal.SIGTERM) == 0
    odd = run.data_dir / "journal/0000000000000001.journal"
    odd.mkdir()
    again = rasher()
    assert again.end() == 3
    assert again.log.said == [f"rasher: the journal can't be read: Is a directory: {odd}"]

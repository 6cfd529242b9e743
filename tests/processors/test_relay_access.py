"""The relay at the database: how long it has it, and that nothing of it stands in between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Connection

from processors.relay_access import PAUSE_S_MAX, SHARE, Urgent
from tests.processors.kit import House, on_sqlite

pytestmark = [pytest.mark.anyio, on_sqlite]
HELD_S = 0.005


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def urgent(house: House) -> Iterator[Urgent]:
    one = Urgent(house.store, house.ring)
    yield one
    one.close()


async def test_nothing_else_of_the_process_runs_while_it_writes(urgent: Urgent) -> None:
    ran: list[str] = []
    free = threading.Event()

    def question() -> None:
        assert free.wait(20)
        ran.append("question")

    def work(_connection: Connection) -> list[str]:
        time.sleep(HELD_S)  # time enough for others
        return list(ran)

    asking = asyncio.create_task(urgent.ask(question))
    await asyncio.sleep(0)
    writing = asyncio.create_task(urgent.write(work))
    await asyncio.sleep(0)
    assert not writing.done()
    free.set()
    await asking
    asyncio.get_running_loop().call_later(0, ran.append, "loop")
    assert await writing == ["question"]


async def test_while_others_commit_it_has_the_write_lock_for_a_share_of_the_time(
    house: House, urgent: Urgent
) -> None:
    def work(_connection: Connection) -> None:
        time.sleep(HELD_S)

    await urgent.write(work)
    assert urgent.pause_s() == 0  # nobody else was there
    house.ring.bump_commits()
    await urgent.write(work)
    assert (SHARE - 1) * HELD_S <= urgent.pause_s() <= PAUSE_S_MAX
    await urgent.write(work)
    assert urgent.pause_s() == 0


async def test_no_pause_is_endless(house: House, urgent: Urgent) -> None:
    house.ring.bump_commits()
    await urgent.write(lambda _connection: time.sleep(2 * PAUSE_S_MAX / SHARE))
    assert urgent.pause_s() == PAUSE_S_MAX


async def test_what_work_raises_is_raised_and_nothing_is_committed(
    house: House, urgent: Urgent
) -> None:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('x', x'00')")
        raise KeyError("no")

    with pytest.raises(KeyError):
        await urgent.write(work)
    assert house.rows("SELECT name FROM meta WHERE name = 'x'") == []

"""The front as the process that it is."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from processors.child import Launch, write_launch
from processors.settings import RingSettings, Settings
from processors.store import migrate
from ringbuf import Ring

pytestmark = pytest.mark.anyio

BODY = b'{"customer":"c","lines":[{"sku":"A","quantity":"1"}]}'
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Front:
    process: asyncio.subprocess.Process
    ring: Ring
    url: str
    alive_fd: int


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    settings = Settings(
        data_dir=str(tmp_path),
        database=f"sqlite:///{tmp_path}/rasher.db",
        ring=RingSettings(capacity=1),
    )
    migrate(settings.database)
    theirs, alive_fd = os.pipe()
    status_fd, their_status = os.pipe()
    with (
        Ring.create(tmp_path / "ring", 1) as ring,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        launch_fd = write_launch(
            Launch(
                "front", 0, settings, ring.fd, listener.fileno(), theirs, their_status, os.getpid()
            )
        )
        fds = [launch_fd, ring.fd, listener.fileno(), theirs, their_status]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ingest.front", "--launch-fd", str(launch_fd),
            pass_fds=fds, cwd=ROOT,
        )  # fmt: skip
        for fd in (launch_fd, theirs, their_status):
            os.close(fd)
        ready = await asyncio.to_thread(os.read, status_fd, 100)
        assert ready == b"ready\n"
        try:
            yield Front(process, ring, f"http://127.0.0.1:{listener.getsockname()[1]}", alive_fd)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(alive_fd)
            os.close(status_fd)


async def test_term_drains_and_ends_with_0(front: Front) -> None:
    async with httpx.AsyncClient(base_url=front.url, timeout=20, trust_env=False) as client:
        headers = {"content-type": "application/json"}
        first = await client.post("/orders", content=BODY, headers=headers)
        waiting = asyncio.create_task(client.post("/orders", content=BODY, headers=headers))
        async with asyncio.timeout(20):
            while (await client.get("/readyz?verbose")).json()["waiting"] == 0:
                pass
        idle, _writer = await asyncio.open_connection("127.0.0.1", httpx.URL(front.url).port)
        front.process.send_signal(signal.SIGTERM)
        assert await idle.read() == b""
        _writer.close()
        with front.ring.reader(0) as reader:
            reader.release(reader.take(timeout=5))
        second = await waiting
        assert [first.status_code, second.status_code] == [202, 202]
        assert second.headers["connection"] == "close"
    assert await asyncio.wait_for(front.process.wait(), 20) == 0
    assert front.ring.depth == 1


async def test_a_front_ends_with_its_supervisor(front: Front) -> None:
    replacement = os.open(os.devnull, os.O_RDONLY)
    os.dup2(replacement, front.alive_fd)
    os.close(replacement)
    assert await asyncio.wait_for(front.process.wait(), 20) == -signal.SIGKILL


async def test_ctrl_c_at_the_terminal_is_the_supervisors_to_answer(front: Front) -> None:
    front.process.send_signal(signal.SIGINT)
    async with httpx.AsyncClient(base_url=front.url, trust_env=False) as client:
        assert (await client.get("/livez")).status_code == 200
    assert front.process.returncode is None

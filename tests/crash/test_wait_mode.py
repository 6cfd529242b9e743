"""A full ring makes clients wait, and waiting costs next to nothing."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack

from tests.program import Rasher, Start, call, verb
from tests.wire import post, status

CAPACITY = 100
CLIENTS = 1_000
# A connection's buffers, its request and its coroutine; a thread's stack would be a hundredfold.
BYTES_PER_WAITING_CLIENT = 32 * 1024
# Pools start a thread when all that they have are busy, which is a matter of chance: 4 of the
# database, 32 of the loop at most.
THREADS_OF_POOLS = 36


def waiting(run: Rasher) -> int:
    return int(call(run, "GET", "/readyz?verbose")[1]["waiting"])


class Crowd:
    """Clients that post one after the other, each when the one before is in the ring or in line."""

    def __init__(self, run: Rasher, stack: ExitStack) -> None:
        self.run = run
        self.stack = stack
        self.ring = stack.enter_context(run.ring())
        self.clients: list[socket.socket] = []

    def grow_to(self, count: int) -> None:
        while len(self.clients) < count:
            self.clients.append(self.stack.enter_context(post(self.run, len(self.clients))))
            self.run.until(self.all_in, f"client {len(self.clients)} in the ring or in line")

    def all_in(self) -> bool:
        in_ring = min(len(self.clients), CAPACITY)
        if self.ring.depth != in_ring:
            return False
        return len(self.clients) <= CAPACITY or waiting(self.run) == len(self.clients) - in_ring


def test_a_thousand_clients_wait_in_order_and_one_that_hangs_up_leaves_nothing(
    rasher: Start,
) -> None:
    run = rasher("--workers", "1", "--capacity", str(CAPACITY), "--full-timeout", "100").ready()
    lot = {"sku": "BELLY", "quantity": "100000", "expires_at": "2126-01-01T00:00:00Z"}
    assert call(run, "POST", "/lots", lot)[0] == 201
    worker, front = run.child("worker"), run.child("front")
    worker.send_signal(signal.SIGSTOP)
    with ExitStack() as stack:
        crowd = Crowd(run, stack)
        crowd.grow_to(CAPACITY + 1)
        one_waits = front.memory_info().rss, front.num_threads()
        crowd.grow_to(CLIENTS)
        assert front.memory_info().rss - one_waits[0] < CLIENTS * BYTES_PER_WAITING_CLIENT
        assert front.num_threads() - one_waits[1] <= THREADS_OF_POOLS
        clients = crowd.clients
        assert [status(client) for client in clients[:CAPACITY]] == [202] * CAPACITY
        gone = CLIENTS // 2
        clients[gone].close()
        run.until(lambda: waiting(run) == CLIENTS - CAPACITY - 1, "the line one shorter")
        worker.send_signal(signal.SIGCONT)
        left = [number for number in range(CAPACITY, CLIENTS) if number != gone]
        assert {status(clients[number]) for number in left} == {202}
    assert run.end(signal.SIGTERM) == 0
    arrived = run.column("SELECT reference FROM orders ORDER BY ring_sequence")
    assert arrived == [str(number) for number in range(CLIENTS) if number != gone]
    assert verb(run, "audit").returncode == 0

"""HTTP by hand, for clients that send now and read later."""

from __future__ import annotations

import json
import socket

from tests.program import PATIENCE_S, Rasher


def post(run: Rasher, number: int, sku: str = "BELLY", pounds: int = 1) -> socket.socket:
    """Sends a whole order, `number` its reference, on a connection of its own."""
    order = {
        "customer": "Funky Foods",
        "reference": str(number),
        "lines": [{"sku": sku, "quantity": str(pounds)}],
    }
    body = json.dumps(order).encode()
    head = f"POST /orders HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n"
    client = socket.create_connection(("127.0.0.1", run.port), timeout=PATIENCE_S)
    client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    return client


def status(client: socket.socket) -> int:
    """The status of the answer, once it is there."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = client.recv(65536)
        assert chunk, "closed without an answer"
        answer += chunk
    return int(answer.split(b" ", 2)[1])

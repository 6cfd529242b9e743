"""The supervisor over stand-in children."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from tests.program import ROOT, Rasher, Start


@pytest.fixture
def stand_in(launch: Callable[..., Rasher]) -> Start:
    """The supervisor over stand-in children; keyword arguments: what they do."""

    def start(*argv: str, **manners: str) -> Rasher:
        environ = {f"STAND_IN_{role.upper()}": manner for role, manner in manners.items()}
        return launch(str(ROOT / "tests/supervisor/stand_in.py"), *argv, **environ)

    return start


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]

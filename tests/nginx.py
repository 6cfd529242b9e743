"""nginx for tests: a private one with the configuration that docs/operating.md shows."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.program import ROOT

INSTALL = "needs nginx: apt-get install nginx-light"
# Below the ports that the kernel gives to outgoing connections.
PORTS = range(15_000, 32_000)
STARTS_MAX = 5
PATIENCE_S = 20.0
# Around what the documents show, all of it in a folder of its own.
FRAME = """
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {shown}
}}
"""


def documented() -> str:
    """The example of docs/operating.md."""
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```nginx\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(shown)


def replaced(text: str, changes: dict[str, str]) -> str:
    """Each of them must be there, once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the example"
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, changes: dict[str, str]) -> Iterator[int]:
    """-> the port of TLS; `changes`: what the example has otherwise here, the port not among it."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip(INSTALL)
    folder.mkdir()
    for _ in range(STARTS_MAX):
        port = random.choice(PORTS)
        shown = replaced(
            documented(), {"listen 443 ssl": f"listen 127.0.0.1:{port} ssl", **changes}
        )
        user = "user root;" if os.geteuid() == 0 else ""
        config = folder / "nginx.conf"
        config.write_text(FRAME.format(folder=folder, shown=shown, user=user))
        command = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            if _listens(process, port):
                yield port
                return
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    raise AssertionError((folder / "error.log").read_text())


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits for it; False when it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        threading.Event().wait(0.01)
    return False

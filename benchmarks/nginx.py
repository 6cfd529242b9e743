"""nginx that answers every request with 202 and nothing else: as little as a real server can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cores import on_core, server_core
from benchmarks.measure import descendants, find_program, missing_program
from benchmarks.servers import Server, free_port, listens

# One worker on one core; connections stay for as many requests as come.
CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ return 202; }}
    }}
}}
"""


def missing_nginx() -> str:
    """The command that installs it, or nothing when it is there."""
    return missing_program("nginx", "nginx")


class Nginx:
    """`port`: HTTP on loopback. `pids`: master and worker."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port

    @property
    def pids(self) -> list[int]:
        return [self.server.pid, *descendants(self.server.pid)]


@contextmanager
def nginx(folder: Path) -> Iterator[Nginx]:
    """A private one on the server's core."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port))
    command = [str(find_program("nginx")), "-p", str(folder), "-c", str(config)]
    # Before it has read its configuration it would complain about the system's log.
    command += ["-e", str(folder / "error.log")]
    server = Server(on_core(server_core(), command), folder / "nginx.log")
    try:
        server.wait_for(lambda: listens(port))
        yield Nginx(server, port)
    finally:
        server.end()

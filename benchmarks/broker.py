"""A RabbitMQ node of its own, from Debian's package: own folder, ports, cookie and port mapper."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from benchmarks.measure import find_program
from benchmarks.servers import Server, free_port, listens

# The wrapper on the path insists on the user and the folders of the system's node.
SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
INSTALL = "apt-get install rabbitmq-server"

# What a node waits for and shows is of no interest; its data is as durable as by default.
CONFIG = """
loopback_users.guest = true
log.console = true
log.console.level = warning
log.file = false
"""


def missing_broker() -> str:
    """The command that installs it, or nothing when it is there."""
    return "" if SCRIPT.exists() and find_program("epmd") else INSTALL


def broker_version() -> str:
    """What its folder says: asking rabbitmqctl would start a port mapper for the whole machine."""
    found = [path.name for path in Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")]
    return found[0].partition("-")[2] if found else "not installed"


class Broker:
    """`port`: AMQP on loopback. `pids`: what CPU is counted of."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        environ = self._environ(folder)
        epmd = str(find_program("epmd"))
        mapper = [epmd, "-address", "127.0.0.1", "-port", environ["ERL_EPMD_PORT"]]
        self._mapper = Server(mapper, folder / "epmd.log", environ)
        try:
            self._mapper.wait_for(lambda: listens(int(environ["ERL_EPMD_PORT"])))
            self._node = Server([str(SCRIPT)], folder / "rabbitmq.log", environ)
            try:
                self._node.wait_for(lambda: listens(self.port))
            except BaseException:
                self._node.end()
                raise
        except BaseException:
            self._mapper.end()
            raise
        self.pids = [self._node.pid]

    def end(self) -> None:
        """The node, then the mapper."""
        self._node.end()
        self._mapper.end()

    def _environ(self, folder: Path) -> dict[str, str]:
        home = folder / "rabbitmq"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (home / "rabbitmq.conf").write_text(CONFIG)
        (home / "plugins").write_text("[].\n")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(home),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"bench-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
        }

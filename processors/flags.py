"""The table of flags: every setting's name, place, type, range and help. Defaults: settings.py.

Help, errors, the variables, the keys of the file and the docs are all made from these rows.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Kind = Literal["int", "seconds", "bytes", "text", "path", "choice"]
NUMBERS = ("int", "seconds", "bytes")


class Flag(Struct, frozen=True):
    """One row. `place`: the field of Settings that it fills, `section.field` or `field`.

    `unit`: of a number, or what else the text must be. `group`: begins a group in --help.
    """

    name: str
    place: str
    kind: Kind
    help: str
    low: float = 0
    high: float = 0
    unit: str = ""
    choices: tuple[str, ...] = ()
    default_text: str = ""
    group: str = ""

    @property
    def option(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return "RASHER_" + self.name.upper().replace("-", "_")

    @property
    def range_text(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        if self.kind in NUMBERS:
            return f"{self.low:,} to {self.high:,} {self.unit}".rstrip()
        return self.unit


FLAGS: tuple[Flag, ...] = (
    Flag(
        "host",
        "http.host",
        "text",
        "address to listen on; any but loopback needs --keys",
        unit="an IP address or localhost",
        group="HTTP",
    ),
    Flag("port", "http.port", "int", "port to listen on; 0 takes any free one", 0, 65535),
    Flag("fronts", "http.fronts", "int", "processes that answer HTTP", 1, 64, "processes"),
    Flag(
        "max-connections",
        "http.max_connections",
        "int",
        "open connections per front; more wait in the listen backlog",
        1,
        100_000,
        "connections",
    ),
    Flag(
        "max-body-bytes",
        "http.max_body_bytes",
        "bytes",
        "longest body of one request",
        1024,
        16 * 1024 * 1024,
        "bytes",
    ),
    Flag(
        "lane",
        "http.lane",
        "choice",
        "the short way of POST /orders; off: through the application, as all else",
        choices=("on", "off"),
    ),
    Flag(
        "keys",
        "http.keys",
        "text",
        "the file of API keys; `rasher keys add` makes it",
        unit="a file",
        default_text="none, no key is asked for",
    ),
    Flag(
        "ssl-certfile",
        "http.ssl_certfile",
        "text",
        "TLS with this certificate and those that vouch for it, PEM",
        unit="a file",
        default_text="none, no TLS",
    ),
    Flag(
        "ssl-keyfile",
        "http.ssl_keyfile",
        "text",
        "its private key, PEM, not encrypted",
        unit="a file",
        default_text="the certificate's file",
    ),
    Flag(
        "proxy-headers",
        "http.proxy_headers",
        "choice",
        "on: X-Forwarded-For and -Proto of trusted proxies count",
        choices=("on", "off"),
    ),
    Flag(
        "forwarded-allow-ips",
        "http.forwarded_allow_ips",
        "text",
        "the proxies that are trusted",
        unit="IP addresses, networks, or *",
    ),
    Flag(
        "ring-dir",
        "ring.ring_dir",
        "path",
        "where the ring file lies; a tmpfs",
        unit="a directory",
        group="Ring",
    ),
    Flag("capacity", "ring.capacity", "int", "orders that may wait", 1, 1_000_000, "slots"),
    Flag(
        "slot-bytes",
        "ring.slot_bytes",
        "bytes",
        "room for one order, a multiple of 64",
        256,
        1024 * 1024,
        "bytes",
    ),
    Flag(
        "full-timeout",
        "ring.full_timeout_s",
        "seconds",
        "how long an order waits at a full ring before 503",
        0,
        3600,
        "seconds",
    ),
    Flag(
        "workers",
        "work.workers",
        "int",
        "processes that allocate",
        1,
        128,
        "processes",
        default_text="cores - 1, at least 1",
        group="Work",
    ),
    Flag("batch", "work.batch", "int", "most orders in one transaction", 1, 1024, "orders"),
    Flag(
        "attempts",
        "work.attempts",
        "int",
        "tries of an order that its processor wants retried, or that ends its worker",
        1,
        100,
        "attempts",
    ),
    Flag(
        "order-timeout",
        "work.order_timeout_s",
        "seconds",
        "longest time for one order in a worker; then another worker tries",
        1,
        3600,
        "seconds",
    ),
    Flag(
        "processor",
        "work.processor",
        "text",
        "what works on the orders",
        unit="package.module:factory",
    ),
    Flag(
        "low-stock",
        "stock.low",
        "text",
        "below that, stock.low is told; sku by sku: [low-stock-of] in the file",
        unit="a quantity, as in 12.5",
        default_text="none, no event stock.low",
    ),
    Flag(
        "webhook-url",
        "webhooks.url",
        "text",
        "where outcomes are sent; several, with filters: [[webhooks]] in the file",
        unit="http:// or https://",
        default_text="none, nobody is told",
        group="Webhooks",
    ),
    Flag(
        "webhook-secret",
        "webhooks.secret",
        "text",
        "signs them; behind a comma the one that it replaces",
        unit="whsec_ and base64, or @FILE",
        default_text="none",
    ),
    Flag(
        "data-dir",
        "data_dir",
        "path",
        "database, journal, pid file and ring.path",
        unit="a directory",
        group="Data",
    ),
    Flag(
        "database",
        "database",
        "text",
        "SQLAlchemy URL of the database, or postgresql://USER@HOST/NAME",
        unit="sqlite:///PATH",
    ),
    Flag(
        "durability",
        "durability",
        "choice",
        "disk: 202 survives power loss; memory: the death of every process",
        choices=("disk", "memory"),
    ),
    Flag(
        "segment-bytes",
        "journal.segment_bytes",
        "bytes",
        "size of a file of the journal, a multiple of 4,096",
        65_536,
        2**28,
        "bytes",
    ),
    Flag(
        "journal-bytes",
        "journal.total_bytes",
        "bytes",
        "most space that the journal takes",
        2**27,
        2**36,
        "bytes",
    ),
    Flag(
        "damaged-journal",
        "journal.damaged",
        "choice",
        "refuse: no start when synced orders can't be read; skip: go on",
        choices=("refuse", "skip"),
    ),
    Flag(
        "retain-days",
        "retain_days",
        "int",
        "how long finished orders are kept; 0: for ever",
        0,
        36_500,
        "days",
    ),
    Flag(
        "graceful-timeout",
        "graceful_timeout_s",
        "seconds",
        "longest drain at TERM",
        0,
        86_400,
        "seconds",
        group="Process",
    ),
    Flag(
        "log-level",
        "log.level",
        "choice",
        "least level that is logged",
        choices=("debug", "info", "warning", "error"),
    ),
    Flag("log-format", "log.format", "choice", "form of a log line", choices=("text", "json")),
)
BY_NAME = {flag.name: flag for flag in FLAGS}
BY_VARIABLE = {flag.variable: flag for flag in FLAGS}

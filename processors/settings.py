"""Every setting of Rasher, read by the table in flags.py into frozen structs, passed down.

A setting is taken from the first place that has it:

    --capacity 200   >   RASHER_CAPACITY=200   >   capacity = 200 in rasher.toml   >   default

The same word names it everywhere: the variable is the flag in capitals with `_` for `-`, the key in
the file is the flag without its dashes. The file is `rasher.toml` in the working directory, or the
one that `--config` (RASHER_CONFIG) names. What nobody knows is refused in all three places, a
misspelt RASHER_ variable too: a setting that silently does nothing is worse than a failed start.
Bare numbers are seconds or bytes. Relative paths are taken from the working directory.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from processors.flags import BY_NAME, BY_VARIABLE, Flag
from processors.setting_checks import Given, Value, check, is_loopback
from processors.setting_checks import SettingsError as SettingsError  # noqa: PLC0414 - its home
from processors.thresholds import ALL_OTHERS, ThresholdError, read_thresholds, threshold
from processors.webhooks import (
    DEFAULT_NAME,
    Endpoint,
    WebhookError,
    make_endpoint,
    read_endpoints,
)

log = logging.getLogger(__name__)

# Names a database that could not be asked yet what it is called.
UNKNOWN_DATABASE = bytes(16)
DEFAULT_FILE = "rasher.toml"
# RASHER_ variables that are no settings of a running Rasher: where the file is, the key that verbs
# show a service, and the build's.
TOKEN_VARIABLE = "RASHER_TOKEN"  # noqa: S105 - its name
OTHER_VARIABLES = frozenset({"RASHER_CONFIG", TOKEN_VARIABLE, "RASHER_SANITIZE"})
HELP_FLAGS = ("-h", "--help")


CONFIG = "config"
# The keys of the file that are no flags: tables, one for each endpoint; quantities by sku.
WEBHOOKS, LOW_STOCK_OF = "webhooks", "low-stock-of"


def cores() -> int:
    """CPUs that this process may run on (fewer than the machine's in a container)."""
    return len(os.sched_getaffinity(0))


def default_workers() -> int:
    return max(1, cores() - 1)


class RingSettings(Struct, frozen=True):
    ring_dir: str = "/dev/shm"  # noqa: S108 - tmpfs is what the ring is made for
    capacity: int = 100
    slot_bytes: int = 16384
    full_timeout_s: float = 10.0


class HttpSettings(Struct, frozen=True):
    """keys, ssl_certfile, ssl_keyfile: absolute paths, "" for none; not resolved, for a link may
    lead elsewhere at the next HUP."""

    host: str = "127.0.0.1"
    port: int = 8000
    fronts: int = 1
    max_connections: int = 4096
    max_body_bytes: int = 65536
    lane: str = "on"
    keys: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    proxy_headers: str = "on"
    forwarded_allow_ips: str = "127.0.0.1"


class WorkSettings(Struct, frozen=True):
    workers: int = msgspec.field(default_factory=default_workers)
    batch: int = 64
    attempts: int = 3
    order_timeout_s: float = 30.0
    processor: str = "processors.pipeline:fefo"


class StockSettings(Struct, frozen=True):
    """low: as given, "" for none; of: thousandths by sku."""

    low: str = ""
    of: dict[str, int] = {}

    @property
    def thresholds(self) -> dict[str, int]:
        """Thousandths by sku, "" for all others."""
        return {**({ALL_OTHERS: threshold(self.low)} if self.low else {}), **self.of}


class JournalSettings(Struct, frozen=True):
    """total_bytes: of all segments together; damaged: what a start does about damage."""

    segment_bytes: int = 16 * 2**20
    total_bytes: int = 2**32
    damaged: str = "refuse"

    @property
    def segments_max(self) -> int:
        return self.total_bytes // self.segment_bytes


class WebhookSettings(Struct, frozen=True):
    """url, secret: as given, "" for none; endpoints: all there are, that one first."""

    url: str = ""
    secret: str = ""
    endpoints: tuple[Endpoint, ...] = ()

    def __repr__(self) -> str:
        return f"WebhookSettings(endpoints={self.endpoints!r})"


class LogSettings(Struct, frozen=True):
    level: str = "info"
    format: str = "text"


class Settings(Struct, frozen=True):
    """data_dir is absolute, database a SQLAlchemy URL whose path is absolute; retain_days: of
    finished orders, 0 for ever; config: the absolute path of the toml file, there or not."""

    data_dir: str
    database: str
    durability: str = "disk"
    retain_days: int = 90
    graceful_timeout_s: float = 30.0
    ring: RingSettings = RingSettings()
    http: HttpSettings = HttpSettings()
    work: WorkSettings = msgspec.field(default_factory=WorkSettings)
    stock: StockSettings = StockSettings()
    journal: JournalSettings = JournalSettings()
    webhooks: WebhookSettings = WebhookSettings()
    config: str = ""
    log: LogSettings = LogSettings()


# The structs' defaults in one place; data-dir and database are made absolute by build().
BARE = Settings(data_dir="./var", database="sqlite:///DATA_DIR/rasher.db")


def load_settings(
    argv: Sequence[str], environ: Mapping[str, str] | None = None
) -> tuple[Settings, list[str]]:
    """-> the settings, and what of argv is no setting: the verb and its own arguments.

    argv is without the program's name. Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    flags, rest = split_flags(argv)
    path = flags.pop(CONFIG, None) or environ.get("RASHER_CONFIG")
    table = read_table(path)
    endpoints = read_webhooks(path, table.pop(WEBHOOKS, []))
    low_stock_of = read_low_stock_of(path, table.pop(LOW_STOCK_OF, {}))
    given = {
        **read_file(path, table),
        **read_variables(environ),
        **{name: Given(text, f"--{name} {text}") for name, text in flags.items()},
    }
    values = {name: check(BY_NAME[name], one) for name, one in given.items()}
    settings = replace(build(values), config=str(Path(path or DEFAULT_FILE).absolute()))
    settings = replace(settings, stock=replace(settings.stock, of=low_stock_of))
    return with_endpoints(settings, endpoints), rest


def split_flags(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Takes the settings' flags out of argv, wherever they stand; the last of two counts."""
    flags: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (name not in BY_NAME and name != CONFIG):
            rest.append(word)
            continue
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise SettingsError(f"--{name} needs a value: {describe(name)}")
        flags[name] = value
    return flags, rest


def describe(name: str) -> str:
    return f"{BY_NAME[name].range_text} (--{name})" if name in BY_NAME else "a file (--config)"


def unknown_flag(word: str) -> SettingsError:
    name = word.lstrip("-").partition("=")[0]
    return SettingsError(f"{word}: no such flag{guess(name, BY_NAME, '--')}; --help lists them all")


def guess(word: str, known: Mapping[str, object], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {prefix}{near[0]}?" if near else ""


def read_variables(environ: Mapping[str, str]) -> dict[str, Given]:
    given = {}
    for variable, text in environ.items():
        if not variable.startswith("RASHER_") or variable in OTHER_VARIABLES:
            continue
        if variable not in BY_VARIABLE:
            raise SettingsError(
                f"{variable}: no such variable{guess(variable, BY_VARIABLE)}; --help lists them all"
            )
        name = BY_VARIABLE[variable].name
        given[name] = Given(text, f"{variable}={text} (--{name})")
    return given


def read_table(path: str | None) -> dict[str, Any]:
    """What is in the toml file; without `path`, in rasher.toml if there is one here."""
    file = Path(path or DEFAULT_FILE)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise SettingsError(f"--config {file}: there is no such file") from error
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} (--config): {error}") from error


def read_webhooks(path: str | None, tables: Any) -> tuple[Endpoint, ...]:
    try:
        return read_endpoints(tables, path or DEFAULT_FILE)
    except WebhookError as error:
        raise SettingsError(str(error)) from error


def read_low_stock_of(path: str | None, table: Any) -> dict[str, int]:
    try:
        return read_thresholds(table, path or DEFAULT_FILE)
    except ThresholdError as error:
        raise SettingsError(str(error)) from error


def with_endpoints(settings: Settings, endpoints: tuple[Endpoint, ...]) -> Settings:
    """With those of the file behind the one that the flags name."""
    given = settings.webhooks
    if given.url:
        if not given.secret:
            raise SettingsError("--webhook-url needs --webhook-secret, which signs what it is told")
        if any(one.name == DEFAULT_NAME for one in endpoints):
            raise SettingsError(
                f"--webhook-url makes an endpoint called {DEFAULT_NAME}: [[webhooks]] has one, too"
            )
        secrets = given.secret.split(",")
        try:
            own = make_endpoint(DEFAULT_NAME, given.url, secrets, "--webhook-url, --webhook-secret")
        except WebhookError as error:
            raise SettingsError(str(error)) from error
        endpoints = (own, *endpoints)
    elif given.secret:
        raise SettingsError("--webhook-secret needs --webhook-url")
    if not endpoints:
        return settings
    return replace(settings, webhooks=replace(given, endpoints=endpoints))


def reload_webhooks(settings: Settings) -> Settings:
    """With the endpoints that the file has now, and secrets read again; as they are, if there is
    something wrong with that."""
    try:
        path = settings.config
        table = read_table(path) if Path(path).exists() else {}
        endpoints = read_webhooks(path, table.get(WEBHOOKS, []))
        bare = replace(settings, webhooks=replace(settings.webhooks, endpoints=()))
        return with_endpoints(bare, endpoints)
    except SettingsError as error:
        log.error("webhooks stay as they are: %s", error)
        return settings


def read_file(path: str | None, table: dict[str, Any]) -> dict[str, Given]:
    """The values of its flags."""
    file = Path(path or DEFAULT_FILE)
    given = {}
    for key, value in table.items():
        if key not in BY_NAME:
            raise SettingsError(f"{file}: no such key: {key}{guess(key, BY_NAME)}")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SettingsError(f"{key} in {file} must be {describe(key)}")
        # Python refuses to write very long numbers out.
        shown = "…" if isinstance(value, int) and abs(value) >= 10**18 else value
        given[key] = Given(value, f"{key} = {shown} in {file} (--{key})")
    return given


def build(values: dict[str, Value]) -> Settings:
    """The structs from checked values by flag name."""
    values.setdefault("data-dir", str(Path(BARE.data_dir).resolve()))
    values.setdefault("database", f"sqlite:///{values['data-dir']}/rasher.db")
    sections: dict[str, dict[str, Value]] = {"": {}}
    for name, value in values.items():
        section, _, field = BY_NAME[name].place.rpartition(".")
        sections.setdefault(section, {})[field] = value
    own: dict[str, Any] = sections.pop("")
    for section, fields in sections.items():
        own[section] = replace(getattr(BARE, section), **fields)
    settings = Settings(**own)
    check_http(settings.http)
    check_journal(settings)
    return settings


def check_http(http: HttpSettings) -> None:
    if not http.keys and not is_loopback(http.host):
        raise SettingsError(
            f"--host {http.host}: needs --keys FILE, for without keys anybody on the network could "
            "order; `rasher keys add` makes the file"
        )
    if http.ssl_keyfile and not http.ssl_certfile:
        raise SettingsError(f"--ssl-keyfile {http.ssl_keyfile}: needs --ssl-certfile")


def check_journal(settings: Settings) -> None:
    """Room for two segments of each front, of as many that replace them, and for some to wait for
    their commits; and each must hold more than the largest order."""
    journal, ring = settings.journal, settings.ring
    least = (2 * (settings.http.fronts + 1) + 2) * journal.segment_bytes
    if journal.total_bytes < least:
        raise SettingsError(
            f"--journal-bytes {journal.total_bytes}: must be at least {least}, with "
            f"--segment-bytes {journal.segment_bytes} and --fronts {settings.http.fronts}"
        )
    if journal.segment_bytes < 4 * ring.slot_bytes:
        raise SettingsError(
            f"--segment-bytes {journal.segment_bytes}: must be at least four times --slot-bytes "
            f"{ring.slot_bytes}"
        )


def default_of(flag: Flag) -> Value:
    section, _, field = flag.place.rpartition(".")
    value: Value = getattr(getattr(BARE, section) if section else BARE, field)
    return value

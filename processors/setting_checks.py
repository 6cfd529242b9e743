"""What a value of a setting must be, flag by flag."""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from processors.flags import BY_NAME, NUMBERS, Flag
from processors.quantity import QuantityError, format_quantity
from processors.thresholds import threshold

MULTIPLES = {"slot-bytes": 64, "segment-bytes": 4096}
SQLITE_PREFIXES = ("sqlite:///", "sqlite+pysqlite:///")
POSTGRESQL_PREFIXES = ("postgresql://", "postgresql+psycopg://")
FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", re.ASCII)
# Flags whose values no error repeats.
SECRET = ("webhook-secret",)

Value = str | int | float


class SettingsError(Exception):
    """A setting that can't be used; the text names value, limit and flag. Exit code 2."""


class Given(Struct, frozen=True):
    """A value as it was written, and where: `--port 0`, `RASHER_PORT=0`, `port = 0 in a.toml`."""

    value: Value
    where: str


def check(flag: Flag, given: Given) -> Value:
    """-> the value in its type and range, or SettingsError."""
    if flag.kind in NUMBERS:
        return check_number(flag, given)
    if flag.name == "low-stock":
        return check_low_stock(given)
    text = given.value
    if not isinstance(text, str) or not text or "\0" in text:
        where = f"--{flag.name}" if flag.name in SECRET else given.where
        raise SettingsError(f"{where}: must be {flag.range_text}")
    if flag.choices and text not in flag.choices:
        raise SettingsError(f"{given.where}: must be {flag.range_text}")
    if flag.kind == "path":
        return check_path(given, text)
    own = CHECKS.get(flag.name)
    return own(given, text) if own else text


def check_number(flag: Flag, given: Given) -> int | float:
    whole = flag.kind != "seconds"
    number = parse_number(given.value, whole)
    if number is None:
        word = "a whole number" if whole else "a number"
        raise SettingsError(f"{given.where}: must be {word}, {flag.range_text}")
    if not flag.low <= number <= flag.high:
        raise SettingsError(f"{given.where}: out of range, must be {flag.range_text}")
    unit = MULTIPLES.get(flag.name)
    if unit is not None and number % unit:
        raise SettingsError(
            f"{given.where}: must be a multiple of {unit}, {flag.range_text}; "
            f"the next one is {number + -number % unit}"
        )
    return number


def parse_number(value: Value, whole: bool) -> int | float | None:
    """None for what is no finite number; ASCII digits only, no `1_000` and no blanks."""
    if isinstance(value, str):
        pattern = r"-?[0-9]{1,18}" if whole else r"-?[0-9]{1,18}(\.[0-9]{1,9})?"
        if not re.fullmatch(pattern, value):
            return None
        return int(value) if whole else float(value)
    if whole:
        return value if isinstance(value, int) else None
    return float(value) if math.isfinite(value) and abs(value) < 10**18 else None


def check_path(given: Given, text: str) -> str:
    if "?" in text:  # in the database's URL it would begin the options
        raise SettingsError(f"{given.where}: must be {BY_NAME['data-dir'].range_text} without `?`")
    # Resolved, for it is the ring's label too: one directory, one name.
    return str(Path(text).resolve())


def check_host(given: Given, text: str) -> str:
    if text != "localhost" and not is_address(text):
        raise SettingsError(f"{given.where}: must be {BY_NAME['host'].range_text}")
    return text


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def is_address(text: str, *, or_network: bool = False) -> bool:
    read = ipaddress.ip_network if or_network else ipaddress.ip_address
    try:
        read(text)
    except ValueError:
        return False
    return True


def check_file(_given: Given, text: str) -> str:
    return str(Path(text).absolute())


def check_proxies(given: Given, text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    if text != "*" and not all(is_address(part, or_network="/" in part) for part in parts):
        raise SettingsError(f"{given.where}: must be {BY_NAME['forwarded-allow-ips'].range_text}")
    return text


def check_database(given: Given, text: str) -> str:
    """-> the URL, SQLite's with an absolute path. No value is repeated: it may hold a password."""
    if text.startswith(POSTGRESQL_PREFIXES):
        return check_postgresql(text)
    prefix = next((one for one in SQLITE_PREFIXES if text.startswith(one)), None)
    if prefix is None:
        scheme = text.partition(":")[0]
        raise SettingsError(
            f"--database {scheme}: must be sqlite:///PATH or postgresql://USER@HOST/NAME"
        )
    path, mark, options = text.removeprefix(prefix).partition("?")
    if not path or path == ":memory:" or path.startswith("file:"):
        raise SettingsError(
            f"{given.where}: must be a file, sqlite:///PATH: fronts and workers are processes of "
            "their own and would each see another database in memory"
        )
    return f"{prefix}{Path(path).absolute()}{mark}{options}"


def check_postgresql(text: str) -> str:
    """-> the URL as it is, if it can be read and names a database."""
    try:
        parts = urlsplit(text)
        readable = parts.port is None or parts.port > 0
    except ValueError:
        readable = False
    if not readable or not parts.path.strip("/"):
        raise SettingsError(
            "--database postgresql: must be postgresql://USER:PASSWORD@HOST:PORT/NAME, with "
            "characters like @ : / ? # % in a password percent-encoded"
        )
    return text


def check_processor(given: Given, text: str) -> str:
    if not FACTORY.fullmatch(text):
        raise SettingsError(
            f"{given.where}: must be package.module:factory, "
            "as in processors.pipeline:fefo (--processor)"
        )
    return text


def check_low_stock(given: Given) -> str:
    """A file may have it as a number, too."""
    try:
        return format_quantity(threshold(given.value))
    except QuantityError as error:
        raise SettingsError(f"{given.where}: {error.detail}") from error


CHECKS = {
    "host": check_host,
    "keys": check_file,
    "ssl-certfile": check_file,
    "ssl-keyfile": check_file,
    "forwarded-allow-ips": check_proxies,
    "database": check_database,
    "processor": check_processor,
}

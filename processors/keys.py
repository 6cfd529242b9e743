"""The file of API keys (`--keys`): names, scopes and hashes, never a key itself.

A key is `rsk_`, eight hex digits that name it, and 256 random bits that we made. So its hash is a
plain SHA-256: slow hashes are for secrets that somebody could guess, and here there is nothing to
guess, while every request has to be checked. `printf %s KEY | sha256sum` says the same.

    {"keys": [{"id": "0f3a…", "name": "shop", "scopes": ["submit"], "created": "2026-…Z",
               "sha256": "…"}]}

Several keys may bear one name: what is posted with any of them has the same owner, so that a key
can be replaced. The file is replaced whole, by one writer at a time, and never half written.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from processors.instants import now_us
from processors.schema import format_instant
from processors.settings import Settings, SettingsError

Scope: TypeAlias = Literal["submit", "read", "admin"]

# Both far beyond any use: each request looks its key up in a dict of these.
KEYS_MAX = 10_000
FILE_BYTES_MAX = 4 * 2**20
NAME = r"[A-Za-z0-9._-]{1,64}"  # it is the key of a hash, which takes 64 bytes
ID = r"[0-9a-f]{8}"
MODE = 0o600

log = logging.getLogger(__name__)


class KeysError(Exception):
    """The file can't be used; the text names it and the reason."""


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """One key. `created`: RFC 3339; `sha256`: of the whole token, in hex."""

    id: Annotated[str, Meta(pattern=rf"\A{ID}\Z")]
    name: Annotated[str, Meta(pattern=rf"\A{NAME}\Z")]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    created: Annotated[str, Meta(max_length=40)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[list[Key], Meta(max_length=KEYS_MAX)]


def new_key(name: str, scopes: Sequence[Scope]) -> tuple[Key, str]:
    """-> the key to be stored, and the token, which nobody can make of it again."""
    key_id = secrets.token_hex(4)
    token = f"rsk_{key_id}_{secrets.token_urlsafe(32)}"
    hashed = sha256(token.encode()).hexdigest()
    return Key(key_id, name, sorted(set(scopes)), format_instant(now_us()), hashed), token


def read_keys(path: Path) -> list[Key]:
    """What the file holds, perhaps nothing. Raises KeysError."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise KeysError(f"{path}: longer than {FILE_BYTES_MAX} bytes")
    try:
        keys = msgspec.json.decode(text, type=_File).keys
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise KeysError(f"{path}: {error}") from error
    twice = [key_id for key_id, count in Counter(key.id for key in keys).items() if count > 1]
    if twice:
        raise KeysError(f"{path}: two keys have the id {twice[0]}")
    return keys


def change_keys(path: Path, change: Callable[[list[Key]], list[Key]]) -> None:
    """Replaces the file by what `change` makes of its keys; one that is not there holds none.

    One process at a time. Killed at any moment it leaves the old file or the new one. Raises
    KeysError, and what `change` raises, then nothing is changed.
    """
    path = path.resolve()  # a link stays a link
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = change(read_keys(path) if path.exists() else [])
        if len(keys) > KEYS_MAX:
            raise KeysError(f"{path}: {len(keys)} keys, at most {KEYS_MAX} fit")
        try:
            _replace(path, _render(keys), folder)
        except OSError as error:
            raise KeysError(f"{path}: {error.strerror}") from error


def _render(keys: list[Key]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(_File(keys)), indent=1) + b"\n"


def _replace(path: Path, text: bytes, folder: int) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)  # of one that was killed here
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, MODE)
        _keep_owner(path, fd)
        file.write(text)
        file.flush()
        os.fsync(fd)
    fresh.replace(path)
    os.fsync(folder)


def _keep_owner(path: Path, fd: int) -> None:
    """So that root may change what another account's service reads."""
    with contextlib.suppress(FileNotFoundError):
        earlier = path.stat()
        if stat.S_ISREG(earlier.st_mode) and earlier.st_uid != os.geteuid():
            os.fchown(fd, earlier.st_uid, earlier.st_gid)


def load_keys(settings: Settings) -> list[Key] | None:
    """At a start: those of `--keys`, None without. Raises SettingsError."""
    path = settings.http.keys
    if not path:
        return None
    try:
        keys = read_keys(Path(path))
    except KeysError as error:
        raise SettingsError(f"--keys {error}; `rasher keys add` makes the file") from error
    if not keys:
        log.warning("--keys %s: there is no key in it, so nobody is let in", path)
    return keys


def reload_keys(settings: Settings, keys: list[Key] | None) -> list[Key] | None:
    """At HUP: the file's; while that can't be used those of before, and it is said."""
    try:
        found = load_keys(settings)
    except SettingsError as error:
        log.error("the keys stay as they are: %s", error)
        return keys
    if found is not None:
        log.info("--keys %s: %d keys count from now on", settings.http.keys, len(found))
    return found

"""`rasher keys add|list|revoke`: the file of API keys that `--keys` names.

Needs nothing running. What runs reads the file at HUP. `add` prints the token, once: the file has
its hash alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from processors.keys import ID, NAME, Key, KeysError, Scope, change_keys, new_key, read_keys
from processors.settings import Settings, SettingsError

EXIT_FAILED = 1
SCOPES: tuple[Scope, ...] = get_args(Scope)
AT_HUP = "it counts from the next start or HUP on"


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0, 1 when it could not be done, 2 for wrong usage."""
    options = _parser().parse_args(args)
    if not settings.http.keys:
        raise SettingsError("keys: needs --keys FILE, or RASHER_KEYS, or keys in rasher.toml")
    try:
        code: int = options.act(Path(settings.http.keys), options)
    except KeysError as error:
        sys.stderr.write(f"rasher keys: {error}\n")
        return EXIT_FAILED
    return code


def add(path: Path, options: argparse.Namespace) -> int:
    """Makes a key; nothing but its token goes to stdout."""
    name: str = options.name
    token = ""

    def change(keys: list[Key]) -> list[Key]:
        nonlocal token
        if any(key.name == name for key in keys) and not options.another:
            raise KeysError(
                f"{path}: there is a key of {name}; --another makes one more, which posts and sees "
                "the same orders"
            )
        while True:
            key, token = new_key(name, options.scope)
            if key.id not in {one.id for one in keys}:
                return [*keys, key]

    change_keys(path, change)
    sys.stdout.write(f"{token}\n")
    sys.stderr.write(f"a key of {name}: it is shown this once; {AT_HUP}\n")
    return 0


def show(path: Path, options: argparse.Namespace) -> int:
    """Everything but the hashes."""
    for key in read_keys(path):
        shown = {"id": key.id, "name": key.name, "scopes": key.scopes, "created": key.created}
        if options.json:
            sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
        else:
            sys.stdout.write(f"{key.id}  {key.created}  {','.join(key.scopes):<17}  {key.name}\n")
    return 0


def revoke(path: Path, options: argparse.Namespace) -> int:
    """Takes out the key of that id, or all keys of that name."""
    gone: list[Key] = []

    def change(keys: list[Key]) -> list[Key]:
        gone.extend(key for key in keys if options.which in (key.id, key.name))
        if not gone:
            raise KeysError(f"{path}: no key has the id or the name {options.which}")
        return [key for key in keys if key not in gone]

    change_keys(path, change)
    for key in gone:
        sys.stderr.write(f"revoked {key.id}, a key of {key.name}; {AT_HUP}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rasher keys", description="API keys: the file of --keys.")
    verbs = parser.add_subparsers(required=True, metavar="add|list|revoke")
    one = verbs.add_parser("add", help="a new key; its token is printed, once")
    one.add_argument("name", type=_name, help="of its owner: whose orders are posted with it")
    one.add_argument(
        "--scope", action="append", choices=SCOPES, required=True, help="may be given again"
    )
    one.add_argument("--another", action="store_true", help="although the name has one")
    one.set_defaults(act=add)
    one = verbs.add_parser("list", help="all keys, without what they are")
    one.add_argument("--json", action="store_true", help="a line of JSON for each")
    one.set_defaults(act=show)
    one = verbs.add_parser("revoke", help="take a key out, or all of a name")
    one.add_argument("which", metavar="ID|NAME")
    one.set_defaults(act=revoke)
    return parser


def _name(text: str) -> str:
    if re.fullmatch(NAME, text) is None:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 64 of A-Z a-z 0-9 . _ -")
    if re.fullmatch(ID, text):
        raise argparse.ArgumentTypeError(f"{text}: would pass for the id of a key")
    return text

"""`rasher lots add|list|adjust`: lots are entered, looked at and corrected as over HTTP.

Works on the database, whether Rasher runs or not.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from processors.inventory import STATES, LotView, adjust_lot, list_lots
from processors.lots import add
from processors.paging import LIMIT_MAX
from processors.quantity import QuantityError
from processors.refusal import CODE, Check, Wrong, code
from processors.requests import KeyTaken, Request
from processors.schema import ADJUSTMENT, Adjustment
from processors.settings import Settings
from processors.store import Store, StoreError, StoreUnavailable, existing_store

EXIT_FAILED = 1
# Those of an Idempotency-Key, without the quotes that a header may need.
KEY = re.compile(r"[\x20-\x7e]{1,255}")
COLUMNS = ("lot", "sku", "state", "available", "expires", "of", "received", "supplier")
NUMBERS = ("available", "of")

Row = tuple[str, ...]


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0, 1 when something was refused or could not be done, 2 for wrong usage."""
    options = _parser().parse_args(args)
    try:
        code: int = options.act(settings, options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has enough; what is still to be flushed goes nowhere.
        with Path(os.devnull).open("w", encoding="ascii") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 0
    except (OSError, StoreError, StoreUnavailable) as error:
        return _failed(options.word, str(error))
    return code


def show(settings: Settings, options: argparse.Namespace) -> int:
    """All lots, page by page: a table for people, aligned text for files, JSON for programs."""
    for_people = sys.stdout.isatty() and not options.json
    say = _say_to_people() if for_people else _say_to_file
    write = _write_json if options.json else _table(say)
    count = 0
    with existing_store(settings.database) as store:
        for page in _pages(store, options.sku, options.state):
            write(page)
            count += len(page)
    if for_people:
        sys.stdout.write(f"{count:,} lots\n")
    return 0


def adjust(settings: Settings, options: argparse.Namespace) -> int:
    """One lot, as `POST /lots/{id}/adjustments` to a service without keys does it."""
    lot_id, key = options.lot_id, options.key
    adjustment = Adjustment(options.delta, options.reason)
    asked = None if key is None else Request.of(None, key.encode(), (lot_id, adjustment))
    if CODE.fullmatch(lot_id) is None:
        return _failed("adjust", f"no lot {lot_id[:100]}")
    try:
        with existing_store(settings.database) as store:
            result = adjust_lot(store, lot_id, adjustment, asked)
    except KeyTaken:
        return _failed("adjust", f"--key {key}: another adjustment was made with it before")
    if result.outcome == "unknown_lot":
        return _failed("adjust", f"no lot {lot_id}")
    available = result.to_json_dict()["available"]
    if result.outcome == "below_zero":
        return _failed("adjust", f"lot {lot_id} has {available}: it would go below zero")
    done = "had, as this was done before," if result.replayed else "has now"
    sys.stdout.write(f"lots adjust: lot {lot_id} {done} {available}\n")
    return 0


def _pages(store: Store, sku: str | None, state: Any) -> Iterator[list[LotView]]:
    """Each in a transaction of its own; at least one, which may be empty."""
    cursor = None
    while True:
        page = list_lots(store, sku=sku, state=state, limit=LIMIT_MAX, cursor=cursor)
        yield page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def _write_json(lots: list[LotView]) -> None:
    for lot in lots:
        sys.stdout.write(msgspec.json.encode(lot).decode() + "\n")


def _table(say: Callable[[str], None]) -> Callable[[list[LotView]], None]:
    """A column is as wide as its widest value so far: a long list is never in memory whole."""
    widths = [0] * len(COLUMNS)
    rows: list[Row] = [COLUMNS]

    def write(lots: list[LotView]) -> None:
        rows.extend(map(_row, lots))
        for row in rows:
            widths[:] = map(max, widths, map(len, row))
        for row in rows:
            say("  ".join(map(_aligned, row, COLUMNS, widths)).rstrip())
        rows.clear()

    return write


def _aligned(value: str, name: str, width: int) -> str:
    return value.rjust(width) if name in NUMBERS else value.ljust(width)


def _say_to_people() -> Callable[[str], None]:
    """A narrow terminal cuts the last columns."""
    console = Console(highlight=False)
    return lambda line: console.print(Text(line), no_wrap=True, overflow="ellipsis")


def _say_to_file(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _row(lot: LotView) -> Row:
    supplier = "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in lot.supplier or ""
    )
    return (
        lot.lot_id, lot.sku, lot.state, lot.available, lot.expires_at, lot.quantity,
        lot.received_at, supplier,
    )  # fmt: skip


def _failed(word: str, text: str) -> int:
    sys.stderr.write(f"lots {word}: {text}\n")
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rasher lots", description="The stock, lot by lot.")
    words = parser.add_subparsers(required=True, metavar="add|list|adjust", dest="word")
    one = words.add_parser("add", help="enters lots from a file")
    one.add_argument("--file", required=True, help="one lot a line as JSON; - is standard input")
    one.set_defaults(act=add)
    one = words.add_parser("list", help="all lots, sku by sku in the order of use")
    one.add_argument("--sku", type=_checked(code), help="only lots of this sku")
    one.add_argument("--state", choices=STATES, help="only lots in this state")
    one.add_argument("--json", action="store_true", help="a line of JSON for each")
    one.set_defaults(act=show)
    one = words.add_parser("adjust", help="corrects what there is of a lot")
    one.add_argument("lot_id", metavar="LOT_ID")
    one.add_argument("delta", metavar="DELTA", type=_checked(ADJUSTMENT["delta"]), help="-30, 12.5")
    one.add_argument("--reason", required=True, type=_checked(ADJUSTMENT["reason"]))
    one.add_argument("--key", type=_key, help="with the same key again nothing is done twice")
    one.set_defaults(act=adjust)
    return parser


def _checked(check: Check) -> Callable[[str], Any]:
    """An argument by the rules of the API."""

    def read(text: str) -> Any:
        try:
            text.encode()
            return check(text)
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError("must be UTF-8") from None
        except (Wrong, QuantityError) as wrong:
            raise argparse.ArgumentTypeError(f"{wrong}, is {text[:100]}") from None

    return read


def _key(text: str) -> str:
    if KEY.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"must be 1 to 255 characters of ASCII, this one has {len(text)}"
        )
    return text

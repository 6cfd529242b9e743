"""`rasher dead-letters list|show|replay|discard`.

`list` and `show` read the database, so they work whether or not the service runs. `replay` and
`discard` ask the running service: a replay goes through its ring like any order.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import aiohttp
import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ingest.caller import key_headers, service_url
from processors.dead_letters import (
    DeadLetter,
    count_dead_letters,
    find_dead_letter,
    list_dead_letters,
)
from processors.paging import LIMIT_MAX
from processors.schema import format_instant, format_uuid, parse_uuid
from processors.settings import Settings
from processors.store import Store, StoreError, StoreUnavailable, existing_store

EXIT_FAILED = 1
AT_ONCE = 32
ANSWER_S_MAX = 60.0
# A service that is full or draining is asked again, so many times, after growing pauses.
TRIES = 6
PAUSE_S, PAUSE_S_MAX = 0.5, 8.0
CAUSE_CHARACTERS = 60
# A line in a file is as long as it has to be.
FILE_CHARACTERS = 400
BUSY = 503


def main(settings: Settings, args: list[str]) -> int:
    """The verb. Exit 0 when all was done, 1 when something was not, 2 for wrong usage."""
    options = _parser(settings).parse_args(args)
    try:
        code: int = options.act(settings, options)
    except (StoreError, StoreUnavailable, aiohttp.ClientError, TimeoutError, OSError) as error:
        sys.stderr.write(f"rasher dead-letters: {error}\n")
        return EXIT_FAILED
    return code


# ---- looking ------------------------------------------------------------------------------------


def show_list(settings: Settings, options: argparse.Namespace) -> int:
    """A table for people, the oldest first; with --json a line of JSON for each."""
    with existing_store(settings.database) as store:
        letters = _all(store, options.reason, options.limit)
        if options.json:
            for one in letters:
                sys.stdout.write(_json(one) + "\n")
            return 0
        table = _table()
        shown = 0
        for one in letters:
            shown += 1
            cause = (one.cause or "").strip().splitlines()
            table.add_row(
                format_uuid(one.order_id), format_instant(one.died_us), one.reason,
                str(one.attempts), one.customer or "", (cause or [""])[-1][:CAUSE_CHARACTERS],
            )  # fmt: skip
        count = count_dead_letters(store)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = FILE_CHARACTERS
    console.print(table)
    sys.stdout.write(f"{shown} of {count} dead letters\n")
    return 0


def show_one(settings: Settings, options: argparse.Namespace) -> int:
    """Everything about one."""
    key = parse_uuid(options.id)
    with existing_store(settings.database) as store:
        found = find_dead_letter(store, key) if key is not None else None
    if found is None:
        sys.stderr.write(f"rasher dead-letters: {options.id} is no dead letter\n")
        return EXIT_FAILED
    content = found.to_json_dict()
    cause = content.pop("cause") or ""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(content)).decode() + "\n")
    sys.stdout.write(f"\n{cause.rstrip()}\n")
    return 0


def _table() -> Table:
    """Of which a narrow terminal cuts the last columns first."""
    table = Table(box=None)
    for name, width in (("order", 36), ("died", 27), ("reason", 16), ("tries", 5)):
        table.add_column(name, no_wrap=True, min_width=width)
    for name in ("customer", "cause"):
        table.add_column(name, no_wrap=True)
    return table


def _all(store: Store, reason: str | None, limit: int) -> Iterator[DeadLetter]:
    cursor: str | None = None
    while limit > 0:
        page = list_dead_letters(store, limit=min(limit, LIMIT_MAX), cursor=cursor, reason=reason)
        yield from page.items
        limit, cursor = limit - len(page.items), page.next_cursor
        if cursor is None:
            return


def _json(one: DeadLetter) -> str:
    return msgspec.json.encode(one.to_json_dict()).decode()


# ---- doing --------------------------------------------------------------------------------------


def replay(_settings: Settings, options: argparse.Namespace) -> int:
    """Puts them into the ring once more."""
    return _run(Doing(options, "POST", "/replay", 202, "replayed"))


def discard(_settings: Settings, options: argparse.Namespace) -> int:
    """Lets them go."""
    return _run(Doing(options, "DELETE", "", 204, "let go"))


def _run(doing: Doing) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(doing.run())


class Doing:
    """One call for each of many dead letters, some at once, with a display of the progress."""

    def __init__(
        self, options: argparse.Namespace, method: str, path: str, wanted: int, word: str
    ) -> None:
        self._url: str = options.url.rstrip("/")
        self._options = options
        self._method, self._path = method, path
        self._wanted, self._word = wanted, word
        self._counts: Counter[str] = Counter()

    async def run(self) -> int:
        """-> the exit code. Raises aiohttp.ClientError, TimeoutError, OSError."""
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=key_headers()
        ) as session:
            # All of them first: one that dies again meanwhile comes to the end of the list.
            ids = [one async for one in self._ids(session)]
            with _progress(len(ids)) as advance:
                await self._do_all(session, ids, advance)
        failed = self._counts["failed"]
        sys.stdout.write(f"dead letters: {self._counts['done']} {self._word}, {failed} not\n")
        return EXIT_FAILED if failed else 0

    async def _ids(self, session: aiohttp.ClientSession) -> AsyncIterator[str]:
        if not self._options.all:
            for one in self._options.ids:
                yield one
            return
        query = {"limit": str(LIMIT_MAX)}
        if self._options.reason:
            query["reason"] = self._options.reason
        while True:
            async with session.get(f"{self._url}/dead-letters", params=query) as answer:
                answer.raise_for_status()
                page = msgspec.json.decode(await answer.read())
            for one in page["items"]:
                yield one["order_id"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    async def _do_all(
        self, session: aiohttp.ClientSession, ids: list[str], advance: Callable[[], None]
    ) -> None:
        left = iter(ids)

        async def work() -> None:
            for order_id in left:
                status, detail = await self._do(session, order_id)
                done = status == self._wanted
                self._counts["done" if done else "failed"] += 1
                if not done:
                    sys.stderr.write(f"{order_id}: {status} {detail}\n")
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(ids))):
                group.create_task(work())

    async def _do(self, session: aiohttp.ClientSession, order_id: str) -> tuple[int, str]:
        """Both calls may be made twice: a repeat finds what the first has done."""
        target, pause_s = f"{self._url}/dead-letters/{order_id}{self._path}", PAUSE_S
        status, detail = 0, ""
        for _ in range(TRIES):
            try:
                async with session.request(self._method, target) as answer:
                    status, detail = answer.status, _detail(await answer.read())
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                status, detail = 0, str(error) or repr(error)
            if status not in (0, BUSY):
                break
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
        return status, detail


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body).get("detail", ""))
    except (msgspec.MsgspecError, AttributeError):
        return ""


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("dead letters", total=total)
        yield lambda: progress.advance(task)


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "rasher dead-letters", description="Orders that died: look at them, try again, let go."
    )
    verbs = parser.add_subparsers(required=True, metavar="list|show|replay|discard")
    one = verbs.add_parser("list", help="all of them, the oldest first")
    one.add_argument("--reason", help="only those with this reason")
    one.add_argument("--limit", type=_count, default=100, help="at most so many (default 100)")
    one.add_argument("--json", action="store_true", help="a line of JSON for each")
    one.set_defaults(act=show_list)
    one = verbs.add_parser("show", help="one, with its cause")
    one.add_argument("id")
    one.set_defaults(act=show_one)
    for name, act, text in (
        ("replay", replay, "put them into the ring once more"),
        ("discard", discard, "let them go: what is kept of them is erased"),
    ):
        one = verbs.add_parser(name, help=text)
        which = one.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", nargs="*", default=[], metavar="ID")
        which.add_argument("--all", action="store_true", help="every dead letter")
        one.add_argument("--reason", help="with --all: only those with this reason")
        where = service_url(settings)
        one.add_argument("--url", default=where, help="the service (default %(default)s)")
        one.set_defaults(act=act)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return int(text)

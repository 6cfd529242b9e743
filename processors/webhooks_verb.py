"""`rasher webhooks list|show|resend|enable|test`: endpoints and what they were told.

Works on the database, whether Rasher runs or not. What is sent again or enabled is sent by the
relay, within seconds if it runs. `test` sends one message of type `webhook.test` itself.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from collections.abc import Callable, Sequence
from uuid import uuid4

import msgspec

from processors.delivery_list import (
    STATES,
    enable,
    list_deliveries,
    list_endpoints,
    resend,
)
from processors.instants import now_us
from processors.schema import format_instant
from processors.settings import Settings
from processors.store import StoreError, StoreUnavailable, existing_store
from processors.webhooks import TEST_EVENT, Endpoint, shown_url

EXIT_FAILED = 1
SHOWN = 50
SHOWN_MAX = 1000


def main(settings: Settings, args: Sequence[str]) -> int:
    """The verb. Exit 0, 1 when it could not be done, 2 for wrong usage."""
    options = _parser().parse_args(args)
    try:
        code: int = options.act(settings, options)
    except (StoreUnavailable, StoreError) as error:
        return _failed(str(error))
    return code


def show_endpoints(settings: Settings, _options: argparse.Namespace) -> int:
    """Those of the settings and those that the database knows."""
    wanted = {one.name: one for one in settings.webhooks.endpoints}
    with existing_store(settings.database) as store:
        known = {one.name: one for one in list_endpoints(store)}
    for name in sorted(wanted.keys() | known.keys()):
        one = known.get(name)
        if one is None:
            state = "new: it is told of nothing yet"
        elif name not in wanted:
            state = "gone from the settings"
        elif wanted[name].disabled:
            state = "disabled in the settings"
        elif one.disabled_at:
            state = f"disabled since {one.disabled_at}: {one.why}"
        else:
            state = "told"
        counts = f"waiting {one.waiting}, failed {one.failed}" if one else ""
        url = shown_url(wanted[name].url) if name in wanted else known[name].url
        print("  ".join(part for part in (name, url, state, counts) if part))
    return 0


def show_deliveries(settings: Settings, options: argparse.Namespace) -> int:
    """A page of them, a line of JSON each."""
    with existing_store(settings.database) as store:
        page = list_deliveries(
            store, state=options.state, endpoint=options.endpoint, limit=options.limit
        )
    for one in page.items:
        print(msgspec.json.encode(one).decode())
    return 0


def send_again(settings: Settings, options: argparse.Namespace) -> int:
    """One delivery."""
    with existing_store(settings.database) as store:
        outcome, found = store.commit(resend, options.delivery)
    if found is None:
        return _failed(f"no delivery {options.delivery}")
    if outcome == "removed":
        return _failed(f"the settings have no endpoint {found.endpoint}")
    print(msgspec.json.encode(found).decode())
    return 0


def enable_again(settings: Settings, options: argparse.Namespace) -> int:
    """One endpoint."""
    with existing_store(settings.database) as store:
        known = store.commit(enable, options.name)
    if not known:
        return _failed(f"no endpoint {options.name} was ever told of anything")
    print(f"{options.name} is told again")
    return 0


def send_test(settings: Settings, options: argparse.Namespace) -> int:
    """One message, from here, tried once."""
    found = [one for one in settings.webhooks.endpoints if one.name == options.name]
    if not found:
        names = ", ".join(one.name for one in settings.webhooks.endpoints) or "none"
        return _failed(f"the settings have no endpoint {options.name}, there are: {names}")
    # What the other words don't need, and takes long to import.
    from processors.names import Loop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=Loop) as runner:
        verdict, text = runner.run(_attempt(found[0]))
    print(f"{verdict}: {text}")
    return 0 if verdict == "delivered" else EXIT_FAILED


async def _attempt(endpoint: Endpoint) -> tuple[str, str]:
    from processors.attempts import Sender  # noqa: PLC0415

    body = {"type": TEST_EVENT, "timestamp": format_instant(now_us()), "data": {}}
    sender = Sender(endpoint, ssl.create_default_context())
    try:
        attempt = await sender.send(uuid4().bytes, msgspec.json.encode(body))
    finally:
        await sender.close()
    return attempt.verdict, attempt.error or f"answered {attempt.status}"


def _failed(text: str) -> int:
    sys.stderr.write(f"rasher webhooks: {text}\n")
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rasher webhooks", description=__doc__)
    words = parser.add_subparsers(required=True, metavar="list|show|resend|enable|test")

    def word(name: str, act: Callable[..., int], text: str) -> argparse.ArgumentParser:
        one = words.add_parser(name, help=text)
        one.set_defaults(act=act)
        return one

    word("list", show_endpoints, "the endpoints and how they stand")
    show = word("show", show_deliveries, "what they were told, the newest first")
    show.add_argument("--state", choices=STATES)
    show.add_argument("--endpoint")
    show.add_argument("--limit", type=_limit, default=SHOWN, help=f"1 to {SHOWN_MAX}")
    again = word("resend", send_again, "sends one delivery once more, with the same id")
    again.add_argument("delivery", type=int, help="its number, as `show` tells it")
    enabling = word("enable", enable_again, "an endpoint that answered 410 is told again")
    enabling.add_argument("name")
    test = word("test", send_test, "sends an endpoint a signed message of type webhook.test")
    test.add_argument("name")
    return parser


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= SHOWN_MAX):
        raise argparse.ArgumentTypeError(f"must be 1 to {SHOWN_MAX}, is {text}")
    return int(text)

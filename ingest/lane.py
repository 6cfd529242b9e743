"""The short way of `POST /orders`: answered inside the parser's callback.

No task, no scope, no queue in between: what a Starlette endpoint costs beside the order itself is
several times the order. Only the plain request takes it: an unconditional POST of JSON with its
length, on a connection that stays and owes no earlier answer. Every other request, and this one
behind any other, goes to the application untouched; the accept function is the same.

    head, body in one read    accept -> 202, 4xx, 503 written at once
    the same head again       the same without the parser
    the body comes later      a cycle stands for the request until it is whole (408 at BODY_S_MAX)
    Unsynced                  a cycle stands for the request until its order is on disk
    Pending                   a task of its own waits; the connection holds what comes behind
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ingest import exchange, protocol
from ingest._lane import render_queued
from ingest.accept import Accepted, Acceptor, Pending
from ingest.answers import (
    Answer,
    Headers,
    Queued,
    Refused,
    Unanswered,
    Unsynced,
    server_mistake,
)
from ingest.exchange import JSON_TYPE, too_slow
from ingest.heads import HOST, HOST_VALUE
from ingest.idempotency import HEADER
from ingest.keys import AUTHORIZATION, Keyring
from ingest.memo import Memo
from ingest.origin import NOBODY, REQUEST_ID, TRACEPARENT, make_origin, read_names
from ingest.patience import PREFER
from ingest.protocol import HEAD_BYTES_MAX, HEADERS_MAX, FrontProtocol, HeadTooLarge, head_too_large

PATH = b"/orders"
HEAD_END = b"\r\n\r\n"
LINE_END = b"\r\n"
# Whoever sends one of these wants something of the connection, or of the body's form.
# The application refuses a request that has one of these twice.
SINGLE = frozenset({HOST, AUTHORIZATION})
FOR_THE_APPLICATION = frozenset({b"expect", b"transfer-encoding", b"upgrade", HEADER, PREFER})

logger = logging.getLogger(__name__)


class LaneCycle:
    """Stands where uvicorn keeps the newest request of a connection, with what it asks of one."""

    __slots__ = ("body", "disconnected", "echo", "keep_alive", "more_body", "response_complete",
                 "response_started")  # fmt: skip

    def __init__(self, echo: Headers, *, more_body: bool) -> None:
        self.echo = echo
        self.body = b""
        self.disconnected = False
        self.keep_alive = True
        self.more_body = more_body
        self.response_started = False
        self.response_complete = False

    @property
    def message_event(self) -> LaneCycle:
        """Nobody waits for messages here."""
        return self

    def set(self) -> None:
        """As of an event."""


class LaneProtocol(FrontProtocol):
    """A connection with the lane. `acceptor` and `body_bytes_max` are those of the application,
    `memo` is that of all connections; `keyring`: whose requests it takes, None: anybody's."""

    def __init__(
        self,
        *args: Any,
        acceptor: Acceptor,
        body_bytes_max: int,
        memo: Memo,
        keyring: Keyring | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._memo = memo
        self._known = memo.requests
        self._keyring = keyring
        self._in_message = False
        self._between = True  # the parser surely stands where a message begins
        self._read: bytes = b""  # what it is fed, if that is where a message begins
        self._acceptor = acceptor
        self._body_bytes_max = body_bytes_max
        self._on_lane = False  # the request that is being read
        self._origin = NOBODY  # and whose it is
        self._body: bytes | bytearray = b""
        self._unsynced: tuple[LaneCycle, Unsynced] | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    # ---- hot -------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._between:
            # A whole request that begins like an earlier one: the parser has seen it, and its key
            # was looked at.
            body_at = data.find(HEAD_END) + len(HEAD_END)
            known = self._known.get(data[:body_at])
            if known is not None and known[0] == len(data) - body_at and self._is_free():
                self._origin = known[1]
                if self._head_timer is not None:
                    self._stop_head_timer()
                if self.timeout_keep_alive_task is not None:
                    self._unset_keepalive_if_required()
                self._requests += 1
                self._take(data[body_at:])
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_message = True
        self.url = b""
        self.headers = []
        self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._drop_trailer(name, value)
            return
        headers = self.headers
        headers.append((name.lower(), value))
        self._seen_bytes += len(name) + len(value) + 4
        if self._seen_bytes > HEAD_BYTES_MAX or len(headers) > HEADERS_MAX:
            self._refusal = head_too_large()
            raise HeadTooLarge

    def on_headers_complete(self) -> None:
        if self.url == PATH and self._is_plain():
            self._in_head = False
            self._on_lane = True
            self._requests += 1
            if self._head_timer is not None:
                self._stop_head_timer()
            return
        self._make_scope()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._on_lane:
            super().on_body(body)
        elif not self._body:
            self._body = body
        elif type(self._body) is bytearray:
            self._body += body
        else:
            self._body = bytearray(self._body) + body

    def on_message_complete(self) -> None:
        self._in_message = False
        if not self._on_lane:
            super().on_message_complete()
            return
        body, self._body = self._body, b""
        self._on_lane = False
        self._learn(len(body))
        self._take(body if type(body) is bytes else bytes(body))

    def _take(self, body: bytes) -> None:
        answer: Accepted
        try:
            answer = self._acceptor.accept(body, self._origin)
        except Exception:
            answer = self._mistake()
        if isinstance(answer, Unsynced):
            self._unsynced = self._begin_cycle(), answer
            self._acceptor.after_sync(self._synced)
            return
        if self._body_timer is not None or isinstance(answer, Pending):
            self._answer_later(answer)
            return
        if isinstance(answer, Queued):
            self._write_queued(answer, self._origin.echo)
        else:
            self._write(answer, self._origin.echo)
        self._begin_idleness()

    def _synced(self) -> None:
        """The order that this connection waits for is on disk."""
        assert self._unsynced is not None
        (cycle, unsynced), self._unsynced = self._unsynced, None
        queued = self._acceptor.acknowledge(unsynced)
        if cycle.disconnected or self.transport.is_closing():
            return
        if queued is None:
            self.transport.abort()
            return
        newest: Any = self.cycle
        if cycle is not newest or not cycle.keep_alive or self._held or self._owed_refusal:
            self._complete(cycle, queued.answer())
            return
        cycle.response_started = cycle.response_complete = True
        self._write_queued(queued, cycle.echo)
        self._begin_idleness()

    def _write_queued(self, queued: Queued, echo: Headers) -> None:
        head = self._memo.queued_head(self.server_state.default_headers, echo)
        self.transport.write(render_queued(head, queued.key, queued.position))

    def _begin_idleness(self) -> None:
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._watch_idleness(self.timeout_keep_alive)

    def _write(self, answer: Answer, echo: Headers) -> None:
        self.transport.write(self._plain(answer, echo=echo))
        if answer.closes:
            self._close()

    # ---- what takes the lane ---------------------------------------------------------------------

    def _is_free(self) -> bool:
        """No earlier request is unanswered, and the connection goes on."""
        cycle = self.cycle
        return not (
            (cycle is not None and not cycle.response_complete)
            or self._held
            or self._lingering
            or self._requests >= protocol.REQUESTS_MAX - 1  # the application closes with the last
            or self.server_state.retiring  # type: ignore[attr-defined]
            or self.flow.write_paused
            or self.transport.is_closing()
        )

    def _is_plain(self) -> bool:
        parser = self.parser
        if (
            not self._is_free()
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
        ):
            return False
        kind = length = request_id = traceparent = None
        single: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name == b"content-type":
                kind = value
            elif name == b"content-length":
                length = value
            elif name in SINGLE:
                if name in single:
                    return False
                single[name] = value
            elif name == REQUEST_ID:
                request_id = value
            elif name == TRACEPARENT:
                traceparent = value
            elif name in FOR_THE_APPLICATION:
                return False
        if kind is None or length is None or int(length) > self._body_bytes_max:
            return False
        return (
            (kind == b"application/json" or JSON_TYPE.fullmatch(kind.strip()) is not None)
            and HOST in single
            and HOST_VALUE.fullmatch(single[HOST]) is not None
            and self._has_key(single.get(AUTHORIZATION))
            and self._has_names(request_id, traceparent)
        )

    def _has_key(self, key: bytes | None) -> bool:
        """A key that may order, if it needs one; the application refuses all others."""
        self._origin = NOBODY
        if self._keyring is not None:
            identity = None if key is None else self._keyring.identify(key)
            if identity is None or not identity.submits:
                return False
            self._origin = identity.origin
        return True

    def _has_names(self, request_id: bytes | None, traceparent: bytes | None) -> bool:
        """Names that can be kept; the application refuses others."""
        if request_id is not None or traceparent is not None:
            try:
                names = read_names(request_id, traceparent)
            except Refused:
                return False
            self._origin = make_origin(self._origin.owner, names)
        return True

    def _learn(self, body_bytes: int) -> None:
        """The head of a plain request, if that came alone in one read and whole."""
        data = self._read
        body_at = data.find(HEAD_END) + len(HEAD_END)
        # Names are of one request: the next head will have others.
        named = self._origin.request_id is not None or self._origin.traceparent is not None
        if data and len(data) - body_at == body_bytes and not named:
            self._memo.learn(data[:body_at], body_bytes, self._origin)

    def _make_scope(self) -> None:
        """What uvicorn would have made while the head came in."""
        url, headers, seen_bytes = self.url, self.headers, self._seen_bytes
        super().on_message_begin()
        self.url, self._seen_bytes = url, seen_bytes
        for name, value in headers:
            self.headers.append((name, value))
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True

    # ---- what takes longer -----------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        self._read = data if self._between else b""
        super().feed(data)
        self._read = b""
        # Line ends may also lie between two messages, everything else is part of one.
        self._between = not self._in_message and data[-1] not in LINE_END
        if self._on_lane and self._body_timer is None:  # more of the body is still to come
            self.cycle = LaneCycle(self._origin.echo, more_body=True)  # type: ignore[assignment]
            self._body_timer = self.loop.call_later(exchange.BODY_S_MAX, self._body_too_slow)

    def _answer_later(self, answer: Answer | Queued | Pending) -> None:
        """By the cycle that stands for the request: it began before this read, or has to wait."""
        cycle = self._begin_cycle()
        if isinstance(answer, Pending):
            task = self.loop.create_task(self._finish(answer, cycle))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            self.on_hangup(task.cancel)
        else:
            self._complete(cycle, answer.answer() if isinstance(answer, Queued) else answer)

    def _begin_cycle(self) -> LaneCycle:
        cycle: Any = self.cycle
        if self._body_timer is None:
            cycle = self.cycle = LaneCycle(self._origin.echo, more_body=False)  # type: ignore[assignment]
        else:
            self._body_timer.cancel()
            self._body_timer = None
            cycle.more_body = False
        return cycle  # type: ignore[no-any-return]

    async def _finish(self, pending: Pending, cycle: LaneCycle) -> None:
        try:
            answer = await self._acceptor.finish(pending)
        except asyncio.CancelledError:
            if cycle.disconnected:  # nobody is there to be answered
                return
            raise
        except Unanswered:
            self.transport.abort()
            return
        except Exception:
            answer = self._mistake()
        finally:
            self.on_hangup(None)
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if not (cycle.disconnected or self.transport.is_closing()):
            self._complete(cycle, answer)

    def _complete(self, cycle: LaneCycle, answer: Answer) -> None:
        cycle.response_started = cycle.response_complete = True
        keep_alive = cycle.keep_alive and not answer.closes
        self.transport.write(self._plain(answer, cycle.echo, close=not keep_alive))
        if not keep_alive:
            self._close()
        self.on_response_complete()

    def _body_too_slow(self) -> None:
        self._body_timer = None
        self._on_lane, self._body = False, b""
        cycle: Any = self.cycle
        if not self.transport.is_closing():
            self._acceptor.tally.count("slow")
            self._complete(cycle, too_slow("body", exchange.BODY_S_MAX))

    def _mistake(self) -> Answer:
        logger.exception("a mistake of ours in POST /orders")
        return server_mistake()

    # ---- the end of a connection -----------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._body_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _watch_idleness(self, seconds: float) -> None:
        # One timer for many answers: set and taken back for each, it would cost more than they do.
        self._idle_timer = self.loop.call_later(seconds, self._maybe_idle)

    def _maybe_idle(self) -> None:
        self._idle_timer = None
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self._in_head or self.timeout_keep_alive_task is not None:
            return  # another timer watches, or the next answer begins anew
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._watch_idleness(left)
        else:
            self._close_idle()

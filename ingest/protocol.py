"""uvicorn's HTTP/1.1 protocol with what it leaves open: limits, problem answers, hang-ups.

Requests that come in one read are parsed at once and queue; what comes later, while an answer is
owed, is held as it is. What llhttp has not yet handed out of a head, or hands out nowhere (what
lies around the pieces of a body), is bounded by one read of the socket beyond its limit.

A request gets one answer: its own, or a refusal, after which nothing more is read as a request.
docs/http-api.md has the table of all limits.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingest import exchange
from ingest.answers import CLOSE, Answer, Headers, problem
from ingest.exchange import Application, Receive, Scope, Send, deliver, too_slow
from ingest.hangup import CONNECTION
from ingest.heads import wrong_head
from ingest.problems import HEAD_TOO_LARGE, NOT_HTTP, PIPELINE_TOO_LONG
from ingest.unsent import Unsent

# Of the target and the fields, each with 4 more for its colon and its line's end; with trailers.
HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
# Blanks around the fields count for nothing above, but are read.
RAW_HEAD_BYTES_MAX = 2 * HEAD_BYTES_MAX
# What a chunked body may have beside its content (sizes, extensions, trailers): so many, and so
# many for each byte of content. The smallest chunks of one byte have 5.
FRAMING_BYTES_MAX = 16 * 1024
FRAMING_BYTES_PER_BYTE_MAX = 8
# The last of them closes: no client stays with one front for ever, and nothing adds up.
REQUESTS_MAX = 100_000
# What is read behind a request that has no answer yet, so that a hang-up is seen; then we pause.
HELD_BYTES_MAX = 64 * 1024
HEAD_S_MAX = 10.0
PIPELINE_MAX = 16


class HeadTooLarge(Exception):
    """Ends the parsing; answered with 431."""


class PipelineTooLong(Exception):
    """Ends the parsing; what came before is answered."""


class WrongHead(Exception):
    """Ends the parsing; answered with 400."""


class Over(Exception):
    """Ends the parsing: the connection closes already."""


class FrontProtocol(HttpToolsProtocol):
    """One connection. `server_state` is a `front.FrontState`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requests = 0
        self._unsent: Unsent = None  # type: ignore[assignment]
        self._in_head = False
        self._head_bytes = 0
        self._read_bytes = 0
        self._fields = 0
        self._body_bytes = 0
        self._framing_bytes = 0
        self._seen_bytes = 0
        self._in_body = False
        self._lingering = False
        self._dropped_bytes = 0
        self._rest_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._held = bytearray()
        self._hangup: Callable[[], object] | None = None
        self._lost = False
        self._refusal: Answer | None = None
        self._owed_refusal: Answer | None = None  # for what came behind unanswered requests
        self._running: Any = None  # the cycle whose answer is next
        self._last: Any = None  # the cycle that closes because this front retires

    def on_hangup(self, callback: Callable[[], object] | None) -> None:
        """Call this when the client goes away, or soon if it has gone; None takes it back. One at a
        time."""
        self._hangup = callback
        if self._lost:
            self.loop.call_soon(self._tell_hangup)

    def _tell_hangup(self) -> None:
        if self._hangup is not None:
            self._hangup()

    def retire(self) -> None:
        """Close with the next answer that begins; idle, at the ordinary time and no earlier, for
        the next request may be on its way."""
        if self.cycle is not None and not self.cycle.response_started:
            self._close_after_newest()

    def _close_after_newest(self) -> None:
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive = True  # one more was sent behind it
        self._last = self.cycle if self.cycle.keep_alive else None
        self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        """uvicorn's timer of an idle connection."""
        self._close_idle()

    def _close_idle(self) -> None:
        # The loop may be behind: a request that has come and was not read yet is not cut off.
        if self.transport.is_closing():
            return
        if not unread_bytes(self.transport):
            self._close()
        elif self._head_timer is None:  # perhaps line ends, or TLS's own
            self._head_timer = self.loop.call_later(HEAD_S_MAX, self._head_too_slow)

    def _close(self) -> None:
        """When the last byte was taken, for which the client has its time."""
        self.transport.close()
        self._unsent.watch()

    def shutdown(self) -> None:
        """uvicorn's, at a drain."""
        super().shutdown()
        if self.transport.is_closing():
            self._unsent.watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent.relax()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unsent = Unsent(self.loop, transport)
        self._head_timer = self.loop.call_later(HEAD_S_MAX, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_rest_timer()
        self._unsent.stop()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn tells the newest alone
            self._running.message_event.set()
        self._running = None
        super().connection_lost(exc)
        self._lost = True
        self._tell_hangup()
        self.server_state.freed.set()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._lingering or self._owed_refusal is not None:
            self._drop(len(data))
            return
        cycle = self.cycle
        if self._held or not (cycle is None or cycle.response_complete or cycle.more_body):
            self._hold(data)
        else:
            self.feed(data)

    def feed(self, data: bytes) -> None:
        """Has it parsed. What our callbacks refuse is answered there."""
        self._read_bytes = len(data)
        in_body, number, body_bytes = self._in_body, self._requests, self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        except httptools.HttpParserUpgrade:
            pass  # on_headers_complete has seen to it
        if self._in_head:
            self._watch_head(len(data))
        elif in_body and self._in_body and number == self._requests:
            self._watch_framing(len(data) - (self._body_bytes - body_bytes))

    def _watch_head(self, count: int) -> None:
        """A head that is not whole after one read more."""
        self._head_bytes += count
        if self._head_bytes > RAW_HEAD_BYTES_MAX:
            self._refuse(head_too_large())
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S_MAX, self._head_too_slow)

    def _watch_framing(self, count: int) -> None:
        """A body that is not whole after one read more, of which so many were no content."""
        self._framing_bytes += count
        content_bytes = FRAMING_BYTES_PER_BYTE_MAX * self._body_bytes
        if self._framing_bytes > FRAMING_BYTES_MAX + content_bytes:
            self._refuse(too_much_framing())

    @property
    def owes(self) -> bool:
        """More was sent behind a request that has no answer yet."""
        return bool(self.pipeline or self._held)

    def _hold(self, data: bytes) -> None:
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive, self._last = True, None  # one more was sent behind it
        self._held += data
        self._stop_head_timer()  # it is us who don't read on
        if len(self._held) > HELD_BYTES_MAX:
            self.flow.pause_reading()

    def _feed_held(self) -> None:
        held = bytes(self._held)
        self._held.clear()
        if not self.transport.is_closing():
            self.feed(held)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head()
        self.scope["extensions"] = {
            CONNECTION: {
                "on_hangup": self.on_hangup,
                "abort": self.transport.abort,
                "transport": self.transport,
            }
        }

    def _begin_head(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._in_head = True
        self._head_bytes = -self._read_bytes  # in which it begins somewhere
        self._seen_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._drop_trailer(name, value)
            return
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)
        if len(self.headers) > HEADERS_MAX:
            self._refusal = head_too_large()
            raise HeadTooLarge

    def _drop_trailer(self, name: bytes, value: bytes) -> None:
        """Never a header: whether it came in time to be seen would depend on the packets."""
        self._fields += 1
        self._count(len(name) + len(value) + 4)
        if self._fields > HEADERS_MAX:
            self._refusal = head_too_large()
            raise HeadTooLarge

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        self._check_head()
        self._in_body = True
        self._fields = len(self.headers)
        self._body_bytes = self._framing_bytes = 0
        self._requests += 1
        super().on_headers_complete()
        if self._requests >= REQUESTS_MAX:
            self.cycle.keep_alive = False  # what comes behind it is not read as a request
        if self.pipeline:
            self.flow.resume_reading()  # uvicorn paused it; a hang-up would not be seen
        if self.parser.should_upgrade():
            # We speak nothing else, and the parser would not read on.
            self.cycle.keep_alive = False
        if self.server_state.retiring:  # type: ignore[attr-defined]
            self._close_after_newest()

    def _check_head(self) -> None:
        """Raises what ends the parsing, before anything is done about the request."""
        if self.transport.is_closing():
            raise Over
        if len(self.pipeline) >= PIPELINE_MAX:
            self._refusal = pipeline_too_long()
            raise PipelineTooLong
        self._refusal = wrong_head(self.parser.get_http_version(), self.headers)
        if self._refusal is not None:
            raise WrongHead

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, partial(unless_refused, app, cycle))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)
        if self._rest_timer is not None:
            self._drop(len(body))

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_rest_timer()
        super().on_message_complete()
        if self.cycle.keep_alive and not self.parser.should_keep_alive():
            # A trailer said so, and the parser reads nothing behind it.
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self._close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._unsent.watch()
            return
        if self._owed_refusal is not None and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self._refuse(self._owed_refusal)
        if self._held and self.cycle.response_complete:
            self.loop.call_soon(self._feed_held)
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            # Answered before it was read: the rest may still come, but not for ever.
            self._dropped_bytes = 0
            self._rest_timer = self.loop.call_later(exchange.DROPPING_S_MAX, self._close)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Called by uvicorn for what its parser refuses, and for what our callbacks raised."""
        refusal = self._refusal or problem(NOT_HTTP, "the request is not HTTP/1.1", CLOSE)
        self._refuse(refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """A client may ask; it is no event of the log."""

    def _count(self, count: int) -> None:
        self._seen_bytes += count
        if self._seen_bytes > HEAD_BYTES_MAX:
            self._refusal = head_too_large()
            raise HeadTooLarge

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_rest_timer(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(too_slow("head", HEAD_S_MAX))
        elif self._lingering:
            self._close()
        else:
            self._close_idle()

    def _refuse(self, answer: Answer) -> None:
        """Answer outside of any request, and close.

        While an earlier request on this connection is unanswered, this answer would pass for its
        own; then it comes after the earlier ones. A request whose body breaks off has it for its
        answer, unless that began before.
        """
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or (cycle.response_complete and not self._in_body):
            self._write_refusal(answer)
        elif not self._in_body:
            self._owed_refusal = answer
            self.flow.pause_reading()
        elif cycle.response_started:
            self._close()
        elif self.pipeline:  # the broken one is the newest of these
            self._owed_refusal = answer
            self.pipeline[0] = (cycle, refusing(answer))  # type: ignore[assignment]
        else:
            cycle.disconnected = True  # so whoever reads the body sees an end of it
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
            self._write_refusal(answer)

    def _write_refusal(self, answer: Answer) -> None:
        self.transport.write(self._plain(answer))
        self._linger()

    def _linger(self) -> None:
        """Read and drop for a while, so that a client still sending sees the answer."""
        if self.scheme == "http":  # TLS has no end of one direction; the answer says that we close
            self.transport.write_eof()
        self._lingering = True
        self._dropped_bytes = 0
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(exchange.DROPPING_S_MAX, self._close)

    def _drop(self, count: int) -> None:
        self._dropped_bytes += count
        if self._dropped_bytes > exchange.DROPPED_BYTES_MAX:
            self._close()

    def _plain(self, answer: Answer, echo: Headers = (), *, close: bool = False) -> bytes:
        lines = [STATUS_LINE[answer.status]]
        for name, value in (*self.server_state.default_headers, *echo, *answer.headers):
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"content-length: %d\r\n" % len(answer.body))
        if close and not answer.closes:
            lines.append(b"connection: close\r\n")
        lines += (b"\r\n", answer.body)
        return b"".join(lines)


def unread_bytes(transport: asyncio.Transport) -> int:
    """What lies in the socket and was not read yet."""
    count = bytes(struct.calcsize("i"))
    count = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
    return int(struct.unpack("i", count)[0])


def pipeline_too_long() -> Answer:
    """400, behind the answers to what came before."""
    return problem(
        PIPELINE_TOO_LONG,
        f"more than {PIPELINE_MAX} requests were sent ahead of their answers",
        CLOSE,
    )


async def unless_refused(
    app: Application, cycle: Any, scope: Scope, receive: Receive, send: Send
) -> None:
    """The application, but for a request that has a refusal already: its body broke off in the
    read that brought it."""
    if not cycle.disconnected:
        await app(scope, receive, send)


def refusing(answer: Answer) -> Application:
    """An application that has this one answer."""

    async def application(_scope: Scope, receive: Receive, send: Send) -> None:
        await deliver(answer, receive, send)

    return application


def too_much_framing() -> Answer:
    """400."""
    return problem(
        NOT_HTTP,
        "the body has too many chunk sizes, extensions and trailers: more than"
        f" {FRAMING_BYTES_MAX} bytes and {FRAMING_BYTES_PER_BYTE_MAX} for each byte of content",
        CLOSE,
    )


def head_too_large() -> Answer:
    """431."""
    detail = f"the head of a request has at most {HEAD_BYTES_MAX} bytes and {HEADERS_MAX} fields"
    return problem(HEAD_TOO_LARGE, detail, CLOSE)

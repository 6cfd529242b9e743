"""The end of a client that does not take its answers.

What it leaves lying fills the kernel's buffers, then ours, and then the connection's requests wait
for ever. uvicorn waits with them, and a closed connection is kept until its last byte is taken.
"""

from __future__ import annotations

import asyncio
import socket
import struct

SEND_S_MAX = 30.0
NOT_AT_ALL = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
# As much must be taken in that time, or all there is. A slow network takes ten times as much.
SEND_BYTES_MIN = 16 * 1024


class Unsent:
    """Watches one connection's bytes that wait to be sent.

    resting --watch--> watching --too little was taken in SEND_S_MAX--> aborted
                       watching --relax (few are left, the connection goes on)--> resting
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0

    def watch(self) -> None:
        """They may be many, or the connection is to close behind them."""
        if self._timer is None:
            self._bytes = self._transport.get_write_buffer_size()
            self._timer = self._loop.call_later(SEND_S_MAX, self._check)

    def relax(self) -> None:
        """They are few again. A connection that closes is watched until it has ended."""
        if not self._transport.is_closing():
            self.stop()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reset(self) -> None:
        """The kernel, too, forgets what it has: that would stay for minutes, counted by nobody."""
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOT_AT_ALL)
        self._transport.abort()

    def _check(self) -> None:
        self._timer = None
        if self._bytes - self._transport.get_write_buffer_size() < SEND_BYTES_MIN:
            self._reset()
        else:
            self.watch()

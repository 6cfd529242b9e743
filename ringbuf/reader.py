"""Taking: what was taken lies in the reader's hand until it is released."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ringbuf._kernel import Taker

if TYPE_CHECKING:
    from ringbuf.ring import Ring

ADOPT_PATIENCE_S = 5.0  # how long adoption waits for a stopped holder of the readers' lock


class Reader(Taker):
    """The owner of one hand, from ``Ring.reader(index)``.

    ``take(max_items=64, timeout=None)``, ``release(items)``, ``held()`` and ``begin(item)`` are the
    kernel's. What lay in the hand already comes out of the first takes, oldest first, its
    ``attempts`` counted up if its owner died, its ``crashes`` if that one had begun it and was
    blamed. One thread at a time.
    """

    def __new__(cls, ring: Ring, index: int, died: bool) -> Self:
        return super().__new__(cls, ring.mapping, index, died, ADOPT_PATIENCE_S)

    def __init__(self, ring: Ring, index: int, _died: bool) -> None:
        self._ring = ring
        self.index = index
        self._open = True

    def close(self) -> None:
        """Leaves the ring; what is still held stays in the hand for whoever comes next.

        Raises RingError while another thread is in one of its calls: the hand is still in use.
        """
        if self._open:
            self.shut()
            self._open = False
            self._ring.forget("reader", self.index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

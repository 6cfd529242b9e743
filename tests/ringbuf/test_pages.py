"""The pages of counters."""

from __future__ import annotations

import pytest

from ringbuf import PAGE_WORDS, Ring, RingError
from tests.ringbuf.conftest import MakeRing


def test_each_reader_and_writer_has_a_page_of_its_own(make_ring: MakeRing) -> None:
    ring = make_ring(readers=2, writers=3)
    for number, (role, index) in enumerate(
        [("reader", 0), ("reader", 1), ("writer", 0), ("writer", 1), ("writer", 2)]
    ):
        ring.page(role, index)[0] = number + 1
        ring.page(role, index)[PAGE_WORDS - 1] = 10 * (number + 1)
    assert [(page[0], page[PAGE_WORDS - 1]) for page in ring.pages()] == [
        (1, 10), (2, 20), (3, 30), (4, 40), (5, 50),
    ]  # fmt: skip


def test_who_comes_next_counts_on_and_every_attachment_sees_it(make_ring: MakeRing) -> None:
    ring = make_ring()
    with ring.writer() as writer:
        ring.page("writer", writer.index)[7] += 2
    with Ring.attach(ring.fd) as other, other.writer() as writer:
        other.page("writer", writer.index)[7] += 3
        assert sum(page[7] for page in ring.pages()) == 5


def test_counting_touches_no_item(make_ring: MakeRing) -> None:
    ring = make_ring(capacity=2)
    with ring.writer() as writer, ring.reader(0) as reader:
        writer.put(b"a", bytes(16))
        writer.put(b"b", bytes(16))
        last = ring.page("writer", ring.writers - 1)
        for page in (ring.page("reader", 0), ring.page("writer", 0), last):
            for word in range(PAGE_WORDS):
                page[word] = 2**64 - 1
        assert [(item.payload, item.damaged) for item in reader.take(2)] == [
            (b"a", False),
            (b"b", False),
        ]


def test_pages_that_are_looked_at_can_not_be_written(make_ring: MakeRing) -> None:
    with pytest.raises(TypeError):
        make_ring().pages()[0][0] = 1


def test_after_detach_there_is_no_page(make_ring: MakeRing) -> None:
    ring = make_ring()
    page = ring.page("writer", 0)
    ring.detach()
    with pytest.raises(ValueError, match="released"):
        page[0] += 1
    with pytest.raises(RingError, match="detached"):
        ring.pages()

"""A job: one item of the ring in a worker's hand, read as far as it can be."""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
from msgspec import Struct

from processors.logs import of_order
from processors.pipeline import Work
from processors.schema import NO_HEADER, RecordHeader, format_uuid, hash_of, load_header, load_order
from ringbuf import Item, Reader

CAUSE_CHARACTERS_MAX = 8192
CAUSE_HEAD_CHARACTERS = 2048

# Reasons of dead orders.
DAMAGED = "damaged"
UNREADABLE = "unreadable"
PROCESSOR_ERROR = "processor_error"
RETRIES_EXHAUSTED = "retries_exhausted"
# Of one that was let go, which is no dead letter any more.
DISCARDED = "discarded"
# The first line of a note that a supervisor left says one of its own.
ENDED_ITS_WORKER = "worker_crashed"


class Death(Struct, frozen=True):
    """Why an order is dead. `bare`: store its bytes instead of its fields, which the database may
    be what refused."""

    reason: str
    cause: str
    bare: bool = False


class Reading(Struct):
    """What is recorded of an item. `work` is None for one that can't be read; then, and once its
    order has failed for good, `death` says why. `retries` counts what the processor asked for, not
    the deaths of workers."""

    item: Item
    taken_us: int
    work: Work | None
    body_hash: bytes | None
    header: RecordHeader = NO_HEADER
    retries: int = 0
    death: Death | None = None

    @property
    def tries(self) -> int:
        """How often the order was tried before, by this worker or by one that died."""
        return self.item.attempts + self.retries

    @property
    def about(self) -> dict[str, Any]:
        """What a line of the log about it is told with."""
        header = self.header
        order_id = format_uuid(self.item.key)
        return of_order(order_id, header.request_id, header.traceparent)


class Job(Reading, kw_only=True):
    """An item in a worker's hand. `suspect`: it lay in that of a worker that died."""

    reader: Reader
    suspect: bool = False

    def again(self) -> None:
        """Counts a retry."""
        self.retries += 1
        if self.work is not None:
            self.work = msgspec.structs.replace(self.work, tries=self.tries)


def read_job(reader: Reader, item: Item, taken_us: int) -> Job:
    """The item as a job; a damaged or unreadable one is dead from the start."""
    if item.damaged:
        cause = f"damaged in shared memory: the checksum of slot {item.sequence} does not fit"
        return Job(
            item, taken_us, None, None, death=Death(DAMAGED, cause, bare=True), reader=reader
        )
    try:
        order = load_order(item.payload)
        header = load_header(item.header)
        seal = hash_of(header, item.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        death = Death(UNREADABLE, f"no order: {describe(error)}", bare=True)
        return Job(item, taken_us, None, None, death=death, reader=reader)
    work = Work(item.key, item.sequence, order, item.accepted_ns // 1000, item.attempts)
    return Job(item, taken_us, work, seal, header, reader=reader)


def read_doomed(reader: Reader, item: Item, taken_us: int, note: str, *, bare: bool) -> Job:
    """The item as a job that is dead, for it has ended too many workers; `note` says how the last
    of them ended. bare: nobody shall try to read it."""
    reason, _, how = note.partition("\n")
    cause = f"{item.crashes} workers ended by themselves over it; the last: {how or 'unknown'}"
    death = Death(reason or ENDED_ITS_WORKER, _storable(cause), bare=bare)
    if bare:
        return Job(item, taken_us, None, None, death=death, reader=reader)
    job = read_job(reader, item, taken_us)
    job.death = job.death or death
    return job


def describe(error: BaseException) -> str:
    """The traceback as text that every database takes, beginning and end of one that is long."""
    return _storable("".join(traceback.format_exception(error)))


def _storable(text: str) -> str:
    text = text.replace("\0", "\\0")
    if len(text) > CAUSE_CHARACTERS_MAX:
        omitted = len(text) - CAUSE_CHARACTERS_MAX
        tail = text[-(CAUSE_CHARACTERS_MAX - CAUSE_HEAD_CHARACTERS) :]
        text = f"{text[:CAUSE_HEAD_CHARACTERS]}\n... {omitted} characters ...\n{tail}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")

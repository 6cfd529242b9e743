from typing import Self, final

def crc32c(data: bytes | bytearray | memoryview, crc: int = ..., /) -> int: ...

@final
class Item:
    def __new__(
        cls,
        payload: bytes,
        key: bytes,
        sequence: int = 0,
        attempts: int = 0,
        accepted_ns: int = 0,
        header: bytes = b"",
        round: int = 0,
        damaged: bool = False,
        cell: int = -1,
    ) -> Self: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def key(self) -> bytes: ...
    @property
    def sequence(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def accepted_ns(self) -> int: ...
    @property
    def header(self) -> bytes: ...
    @property
    def round(self) -> int: ...
    @property
    def damaged(self) -> bool: ...
    @property
    def cell(self) -> int: ...

class Mapping:
    capacity: int
    slot_bytes: int
    room: int
    readers: int
    writers: int
    hand: int
    epoch: int
    file_bytes: int
    head: int
    tail: int
    depth: int
    closed: int
    closed_and_empty: int
    commits: int
    parked: int
    slots_at: int
    hands_at: int
    stats_at: int
    cell_bytes: int
    repairs: int
    cleared: int
    rescues: int
    label: str
    @staticmethod
    def bytes_needed(
        capacity: int, slot_bytes: int, readers: int, writers: int, hand: int, /
    ) -> int: ...
    @staticmethod
    def create(
        fd: int,
        capacity: int,
        slot_bytes: int,
        readers: int,
        writers: int,
        hand: int,
        epoch: int,
        boot_id: bytes,
        label: str,
        /,
    ) -> Mapping: ...
    @staticmethod
    def attach(fd: int, boot_id: bytes, /) -> Mapping: ...
    def leave(self, patience_s: float, /) -> bool: ...
    def detach(self) -> None: ...
    def park(self, pending: int, /) -> None: ...
    def find(self, key: bytes, /) -> tuple[Item, int | None] | None: ...
    def snapshot(self) -> tuple[list[Item], list[tuple[int, Item]]]: ...
    def held_count(self, index: int, /) -> int: ...
    def participant(self, index: int, /) -> int: ...
    def swap_participant(self, index: int, seen: int, wanted: int, /) -> bool: ...
    def set_closed(self, closed: bool, patience_s: float, /) -> None: ...
    def wait_room(self, timeout: float | None, /) -> bool: ...
    def wait_commits(self, seen: int, timeout: float | None = ..., /) -> int: ...
    def bump_commits(self) -> None: ...

class Putter:
    def __new__(cls, mapping: Mapping, /) -> Self: ...
    def try_put(
        self,
        payload: bytes | bytearray | memoryview,
        key: bytes,
        header: bytes = ...,
        round: int = ...,
        accepted_ns: int = ...,
    ) -> int | None: ...
    def put_in_turn(
        self,
        payload: bytes | bytearray | memoryview,
        key: bytes,
        header: bytes = ...,
        round: int = ...,
        accepted_ns: int = ...,
    ) -> int | None: ...
    def put_batch(
        self, payloads: list[bytes], keys: list[bytes], headers: list[bytes] | None, /
    ) -> tuple[int, int]: ...
    def shut(self) -> None: ...

class Taker:
    def __new__(cls, mapping: Mapping, index: int, died: bool, patience_s: float, /) -> Self: ...
    def take(self, max_items: int = ..., timeout: float | None = ...) -> list[Item]: ...
    def release(self, items: list[Item], /) -> None: ...
    def held(self) -> list[Item]: ...
    def shut(self) -> None: ...

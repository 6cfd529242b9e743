"""What a mistake made on purpose is: some words of the tree changed, and who has to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """`old` must stand in `file` exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """tests: those of which one at least must fail; all pass without it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    @property
    def in_kernel(self) -> bool:
        return any(edit.file.endswith((".c", ".h")) for edit in self.edits)

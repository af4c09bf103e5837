"""A blob cut into parts, and how much of each is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Part:
    """The bytes from `offset` on, `size` of them; the first `completed` are on disk."""

    number: int
    offset: int
    size: int
    completed: int = 0

    @property
    def start(self) -> int:
        """Where the bytes that are missing begin."""
        return self.offset + self.completed

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.size

    @property
    def is_done(self) -> bool:
        return self.completed == self.size

    def to_json(self) -> bytes:
        """As Ollama notes it, so that each goes on with what the other has begun."""
        return json.dumps(
            {
                "N": self.number,
                "Offset": self.offset,
                "Size": self.size,
                "Completed": self.completed,
            }
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Part | None:
        """None for what is no such note."""
        try:
            value = json.loads(data)
            fields = [value[name] for name in ("N", "Offset", "Size", "Completed")]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if not all(type(each) is int and each >= 0 for each in fields):
            return None
        part = cls(*fields)
        return part if part.completed <= part.size else None


def plan_parts(size: int, part_size: int) -> list[Part]:
    """Parts of `part_size` bytes, the last one smaller, that make up `size` bytes."""
    offsets = range(0, size, part_size)
    return [
        Part(number, offset, min(part_size, size - offset)) for number, offset in enumerate(offsets)
    ]


def is_cover(parts: Sequence[Part], size: int) -> bool:
    """Whether each of the `size` bytes belongs to exactly one of the parts, in their order."""
    end = 0
    for number, part in enumerate(parts):
        if part.number != number or part.offset != end or part.size == 0:
            return False
        end = part.end
    return end == size

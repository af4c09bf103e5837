"""How patient and how eager transfers are."""

from __future__ import annotations

from dataclasses import dataclass

_MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    A blob is cut into at most about `num_parallel` parts, none smaller than `min_part` or larger
    than `max_part`: a part is what one connection transfers, and what an upload that breaks sends
    again. `stall_s` without a byte is a broken connection; `num_attempts` of them in a row without
    any progress end the transfer. They wait `first_wait_s` before the second attempt, and twice as
    long before each further one. `digest_s` is how long a registry may take over what was sent to
    it before it answers.
    """

    num_parallel: int = 16
    min_part: int = 32 * _MB
    max_part: int = 1000 * _MB
    stall_s: float = 30.0
    num_attempts: int = 6
    first_wait_s: float = 1.0
    digest_s: float = 300.0
    progress_s: float = 0.1

    def part_size(self, size: int) -> int:
        """Of a blob of `size` bytes."""
        return min(max(-(-size // self.num_parallel), self.min_part), self.max_part)

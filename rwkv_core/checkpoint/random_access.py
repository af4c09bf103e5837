"""Reading a file at any position, with every size checked before memory is taken for it."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.checkpoint.ggml_blocks import Bytes
from rwkv_core.errors import CheckpointError


class RandomAccessFile:
    """An open regular file. Every error is a CheckpointError that names it.

    Reads into memory of our own rather than through a memory map: the pages of a map would count as
    ours beside the weights copied from them, and a file that shrinks under a map kills the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Looked at before opening: opening a named pipe would wait for a writer.
            if not stat.S_ISREG(path.stat().st_mode):
                raise CheckpointError(path, "is not a regular file")
            self._file = path.open("rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError:
            raise CheckpointError(path, "there is no such file") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(path, f"cannot be read: {_reason(error)}") from None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes; for headers."""
        return self.read_array(offset, size).tobytes()

    def read_array(self, offset: int, size: int) -> Bytes:
        """Exactly `size` bytes, in memory of their own."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self._truncated()
        array = np.empty(size, np.uint8)
        self._read_into(offset, array)
        return array

    def read_tensor(self, offset: int, shape: tuple[int, ...], type_name: str) -> Tensor:
        """Plain numbers (a type of PLAIN_TYPES) in C order, little-endian."""
        dtype = PLAIN_TYPES[type_name]
        if offset < 0 or offset + math.prod(shape) * dtype.itemsize > self.size:
            raise self._truncated()
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.nbytes:
            self._read_into(offset, tensor.view(-1).view(torch.uint8).numpy())
        return tensor

    def read_slices(self, offset: int, size: int, slice_bytes: int) -> Iterator[Bytes]:
        """`size` bytes, so many at a time; each slice is valid until the next."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self._truncated()
        buffer = np.empty(min(size, slice_bytes), np.uint8)
        for start in range(0, size, slice_bytes):
            part = buffer[: min(slice_bytes, size - start)]
            self._read_into(offset + start, part)
            yield part

    def _read_into(self, offset: int, array: Bytes) -> None:
        rest = array.data
        try:
            self._file.seek(offset)
            while rest:
                count = self._file.readinto(rest)
                if not count:  # the file shrank since it was opened
                    raise self._truncated()
                rest = rest[count:]
        except OSError as error:
            raise CheckpointError(self.path, f"cannot be read: {_reason(error)}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RandomAccessFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _truncated(self) -> CheckpointError:
        return CheckpointError(self.path, "ends too early: the file is truncated or damaged")


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)

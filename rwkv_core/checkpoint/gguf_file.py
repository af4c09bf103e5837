"""The GGUF container: metadata, the list of tensors, and their bytes. Needs no PyTorch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_core.checkpoint.ggml_blocks import Bytes
from rwkv_core.checkpoint.gguf_header import GGUFTensor, parse_header
from rwkv_core.errors import CheckpointError


class GGUFFile:
    """A GGUF file, opened and checked: metadata, tensors and, through mmap, their bytes.

    Reading a tensor touches only that tensor's pages. Safe to use from several threads.
    Raises CheckpointError for a file that cannot be opened or breaks the format, and for what
    `check_metadata` finds: it sees the metadata before the tensors are looked at and returns what
    is wrong, so that a foreign model is named as such even when its tensor types are unknown.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        check_metadata: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
    ) -> None:
        self.path = Path(path)
        self._map = _open_map(self.path)
        try:
            header = parse_header(path, self._map, check_metadata)
        except BaseException:
            self.close()
            raise
        self.version = header.version
        self.metadata: Mapping[str, Any] = header.metadata
        self.tensors: Mapping[str, GGUFTensor] = header.tensors

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor as they lie in the file: a flat read-only view into the mapping."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def forget(self, name: str, start: int = 0, size: int | None = None) -> None:
        """Takes a tensor's pages, or those of `size` bytes from its byte `start` on, out of this
        process's memory; the system's cache keeps them.

        A copy of the weights must not count twice. Views stay valid: their pages come back.
        """
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            tensor = self.tensors[name]
            offset = tensor.offset + start
            end = tensor.offset + tensor.nbytes if size is None else offset + size
            page_start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, page_start, end - page_start)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last of the views that `raw` gave away."""
        try:
            self._map.close()
        except BufferError:
            # Views are alive. The mapping goes with the last of them.
            return


def _open_map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                raise CheckpointError(path, "is empty; copy or download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error

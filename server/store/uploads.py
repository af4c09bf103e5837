"""A blob that a client sends: written as it comes, its digest made on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress

from server.store.store import StagedBlob, Store, StoreError


class Upload:
    """A file on the store's disk that grows. Whoever makes one calls `finish` or `discard`."""

    def __init__(self, store: Store) -> None:
        """Raises StoreError."""
        self._store = store
        self._path = store.temporary_file()
        self._file = self._path.open("wb")
        self._sha = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Raises StoreError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise self._store.unwritable(error) from error
        self._sha.update(data)
        self._size += len(data)

    def finish(self) -> StagedBlob:
        """Raises StoreError when the disk is full."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise self._store.unwritable(error) from error
        return StagedBlob(f"sha256:{self._sha.hexdigest()}", self._size, self._path)

    def discard(self) -> None:
        """Nothing happens to what has become a blob."""
        with suppress(OSError):  # the last bytes may find no room; they are not wanted
            self._file.close()
        self._path.unlink(missing_ok=True)


def check_room(store: Store, num_bytes: int) -> None:
    """Raises StoreError where so many bytes do not fit on the store's disk."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(store.root).free
    except OSError as error:
        raise store.unwritable(error) from error
    if num_bytes > free:
        raise StoreError(
            f"{store.root}: {num_bytes} bytes do not fit on this disk, which has {free} free; "
            "make room, or set OLLAMA_MODELS to a folder on another disk"
        )

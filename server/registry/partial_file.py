"""A blob that is not complete yet: `sha256-HEX-partial`, and `…-partial-N` for each part.

The names and the notes are Ollama's. The file is as long as the blob from the beginning, with
holes where bytes are missing; a note follows the bytes that it counts, so that a process killed at
any moment leaves notes that are true. What a machine that loses power may leave is found by the
digest.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from server.registry.errors import RegistryError
from server.registry.limits import Limits
from server.registry.parts import Part, is_cover, plan_parts
from server.store.store import Store

log = logging.getLogger(__name__)

_LIFE_S = 7 * 24 * 3600


class PartialFile:
    """A download on disk, held by one process at a time. `open` and what follows block."""

    def __init__(self, store: Store, digest: str, size: int, limits: Limits) -> None:
        blob = store.blob_path(digest)
        self.path = blob.with_name(f"{blob.name}-partial")
        self.parts: Sequence[Part] = ()
        self.was_begun = False  # by an earlier attempt
        self._store = store
        self._digest = digest
        self._size = size
        self._limits = limits
        self._file: int | None = None

    def open(self) -> None:
        """Opens the file of an earlier attempt, or begins a new one; `close` must follow.

        Raises StoreError when the store cannot be written, RegistryError when another process
        downloads the blob.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._store.unwritable(error) from error
        self._lock(self._file)
        self.parts = self._read_notes(self._file)
        self.was_begun = any(part.completed for part in self.parts)
        if not self.parts:
            self.replan(self._limits.part_size(self._size))

    @property
    def completed(self) -> int:
        return sum(part.completed for part in self.parts)

    def write(self, part: Part, data: bytes) -> None:
        """Adds the next bytes of a part. Raises StoreError when there is no room for them."""
        try:
            rest = memoryview(data)
            offset = part.start
            while rest:
                count = os.pwrite(self._descriptor, rest, offset)
                rest, offset = rest[count:], offset + count
            part.completed += len(data)
            self._note(part)
        except OSError as error:
            raise self._store.unwritable(error) from error

    def replan(self, part_size: int) -> None:
        """Begins anew with parts of `part_size`, but for the bytes of the first part."""
        kept = self.parts[0].completed if self.parts else 0
        try:
            self.remove_notes()
            if not kept:
                os.ftruncate(self._descriptor, 0)
            os.ftruncate(self._descriptor, self._size)
            self.parts = plan_parts(self._size, part_size)
            if self.parts:
                self.parts[0].completed = min(kept, self.parts[0].size)
            for part in self.parts:
                self._note(part)
        except OSError as error:
            raise self._store.unwritable(error) from error

    def discard(self) -> None:
        """Deletes everything: what is there cannot be trusted."""
        self.remove_notes()
        self.path.unlink(missing_ok=True)

    def remove_notes(self) -> None:
        for path in self._notes():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file, if it is open; what is there stays for the next attempt."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished and renamed the file between our open and our lock.
            is_ours = os.path.samestat(os.fstat(file), self.path.stat())
        except OSError:
            is_ours = False
        if not is_ours:
            raise RegistryError(
                f"another process is downloading {self._digest}; wait until it is done"
            )

    def _notes(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.name}-*"))

    def _note_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}-{number}")

    def _read_notes(self, file: int) -> list[Part]:
        """The parts of an earlier attempt; none if they are not those of such a blob."""
        if os.fstat(file).st_size != self._size:
            return []
        parts = []
        for number in range(len(self._notes())):
            try:
                part = Part.from_json(self._note_path(number).read_bytes())
            except OSError:
                return []
            if part is None:
                return []
            parts.append(part)
        return parts if is_cover(parts, self._size) else []

    def _note(self, part: Part) -> None:
        temporary = self._store.temporary_file()
        try:
            temporary.write_bytes(part.to_json())
            temporary.replace(self._note_path(part.number))
        finally:
            temporary.unlink(missing_ok=True)


def remove_stale_partials(store: Store) -> None:
    """Deletes downloads that nobody has gone on with for a week."""
    oldest = time.time() - _LIFE_S
    for path in (store.root / "blobs").glob("sha256-*-partial"):
        try:
            # The data's time is that of the last byte; a note may be as old as its part.
            if path.stat().st_mtime < oldest:
                for each in (*path.parent.glob(f"{path.name}-*"), path):
                    each.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot delete %s: %s", path, error.strerror)


def partial_bytes(store: Store, digest: str, size: int) -> int:
    """How many bytes of a blob an earlier attempt has left on disk, as far as can be told."""
    path = store.blob_path(digest)
    try:
        # Holes take no room: what counts is what is allocated.
        return min(path.with_name(f"{path.name}-partial").stat().st_blocks * 512, size)
    except OSError:
        return 0

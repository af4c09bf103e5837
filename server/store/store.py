"""Models on disk, in Ollama's layout: `blobs/sha256-HEX` and `manifests/HOST/NAMESPACE/MODEL/TAG`.

Every file appears under its final name complete or not at all. A store written by Ollama is read
as it is. What new models are made of waits in temporary files until they are registered; then the
blobs get their names and the manifest is written under one lock, which those who delete blobs take
too.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rwkv_core.errors import AnserError
from server.store.manifests import (
    DamagedModelError,
    Layer,
    Manifest,
    digest_hex,
    format_manifest,
    parse_manifest,
)
from server.store.names import InvalidNameError, ModelName

log = logging.getLogger(__name__)

_TEMPORARY_PREFIX = "tmp-"
_TEMPORARY_LIFE_S = 24 * 3600
_COPY_BYTES = 1 << 20
# A real manifest has at most a few kilobytes; more is not read.
MAX_MANIFEST_BYTES = 4 << 20

# Whoever has the lock keeps it for the time of a few small files.
_LOCK_TIMEOUT_S = 60.0
_LOCK_POLL_S = 0.01
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems without such locks say.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class StoreError(AnserError):
    """The store cannot be written, or was given a blob that is not what it should be."""


class DigestMismatchError(StoreError):
    """A blob's content has another digest than was said; the message is Ollama's."""

    def __init__(self, expected: str, digest: str) -> None:
        super().__init__(f'digest mismatch, expected "{expected}", got "{digest}"')


@dataclass(frozen=True)
class Blob:
    """A stored file. `digest` is "sha256:HEX"; `is_new` whether it was not there before."""

    digest: str
    size: int
    is_new: bool

    def as_layer(self, media_type: str, source: str = "") -> Layer:
        return Layer(media_type, self.digest, self.size, source)


@dataclass(frozen=True)
class StagedBlob:
    """A complete file that is no blob yet: `Store.place` makes it one, `discard` deletes it."""

    digest: str
    size: int
    path: Path

    def discard(self) -> None:
        """Nothing happens when it has become a blob."""
        self.path.unlink(missing_ok=True)


class Store:
    """A folder of models. Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[tuple[str, int]] = set()
        self._guard = threading.RLock()
        self._lock_depth = 0  # of the thread that has `_guard`

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps everyone else, also other processes, from writing manifests and deleting blobs.

        For a short time only: it is for registering what is complete. A thread that has it may take
        it again. It is an flock of the store's folder, so a process that dies lets go of it. Raises
        StoreError when others keep it for a minute, or the folder cannot be made.
        """
        with self._guard:
            if self._lock_depth:
                yield
                return
            descriptor = self._locked_folder()
            self._lock_depth += 1
            try:
                yield
            finally:
                self._lock_depth -= 1
                os.close(descriptor)

    def _locked_folder(self) -> int:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY)
        except OSError as error:
            raise self.unwritable(error) from error
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        try:
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.root}: another process keeps it locked; try again")
                time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    # Blobs

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be.

        Raises DamagedModelError for what is no SHA-256 digest.
        """
        return self.root / "blobs" / f"sha256-{digest_hex(digest)}"

    def has_blob(self, digest: str) -> bool:
        return self.blob_path(digest).is_file()

    def blob_at(self, path: Path) -> Blob | None:
        """The blob that a path, or the link there, leads to; None if it leads elsewhere."""
        file = path.resolve()
        try:
            digest = f"sha256:{digest_hex(file.name)}"
        except DamagedModelError:
            return None
        is_blob = file == self.blob_path(digest).resolve() and file.is_file()
        return Blob(digest, file.stat().st_size, is_new=False) if is_blob else None

    def add_blob(
        self,
        source: BinaryIO | bytes | Path,
        *,
        expected_digest: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Blob:
        """Copies `source` into the store; `progress` is called with the bytes copied so far.

        Raises StoreError when the store cannot be written, or the digest is not the expected one.
        """
        staged = self.stage(source, progress=progress)
        try:
            return self.place(staged, expected_digest=expected_digest)
        finally:
            staged.discard()

    def stage(
        self, source: BinaryIO | bytes | Path, *, progress: Callable[[int], None] | None = None
    ) -> StagedBlob:
        """Copies `source` onto the store's disk. Raises StoreError, and leaves nothing then."""
        if isinstance(source, Path):
            with source.open("rb") as file:
                return self.stage(file, progress=progress)
        temporary = self.temporary_file()
        with self._deleted_on_failure(temporary), temporary.open("wb") as file:
            return _stage(temporary, file, _written(_pieces(source), file), progress)

    def stage_file(
        self, temporary: Path, *, progress: Callable[[int], None] | None = None
    ) -> StagedBlob:
        """A complete file from `temporary_file`; `progress` is called while its digest is made.

        Raises StoreError. Whatever it fails with, the file is deleted.
        """
        with self._deleted_on_failure(temporary), temporary.open("rb+") as file:
            return _stage(temporary, file, _pieces(file), progress)

    @contextmanager
    def _deleted_on_failure(self, temporary: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self.unwritable(error) from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def place(self, staged: StagedBlob, *, expected_digest: str | None = None) -> Blob:
        """Makes a staged file a blob. Raises StoreError, and the file is deleted then."""
        try:
            if expected_digest and digest_hex(expected_digest) != digest_hex(staged.digest):
                raise DigestMismatchError(expected_digest, staged.digest)
            path = self.blob_path(staged.digest)
            is_new = not path.is_file()
            staged.path.chmod(0o644)  # mkstemp makes files that only the owner reads
            staged.path.replace(path)  # also where there is one, which heals a damaged blob
        except OSError as error:
            raise self.unwritable(error) from error
        finally:
            staged.discard()
        return Blob(staged.digest, staged.size, is_new)

    def temporary_file(self) -> Path:
        """A new empty file on the store's disk: filled and given to `adopt` or `stage_file`, or
        deleted.
        """
        try:
            folder = self.root / "blobs"
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=folder)
        except OSError as error:
            raise self.unwritable(error) from error
        os.close(descriptor)
        return Path(name)

    def adopt(self, temporary: Path, *, expected_digest: str | None = None) -> Blob:
        """Makes a complete file from `temporary_file` a blob; the file is gone afterwards."""
        return self.place(self.stage_file(temporary), expected_digest=expected_digest)

    def remove_leftovers(self) -> None:
        """Deletes temporary files that a killed process left behind more than a day ago."""
        oldest = time.time() - _TEMPORARY_LIFE_S
        # With a dot in front: what the GGUF writer had begun beside such a file.
        folder = self.root / "blobs"
        prefixes = (_TEMPORARY_PREFIX, f".{_TEMPORARY_PREFIX}")
        for path in (each for prefix in prefixes for each in folder.glob(f"{prefix}*")):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except OSError as error:
                log.warning("cannot delete %s: %s", path, error.strerror)

    # Manifests

    def manifest_path(self, name: ModelName) -> Path:
        """Where the manifest of exactly this name is, or would be."""
        return self.root / "manifests" / name.host / name.namespace / name.model / name.tag

    def canonical_name(self, name: ModelName) -> ModelName | None:
        """The name in the case it is stored under; None if there is no such model."""
        if self.manifest_path(name).is_file():
            return name
        return next((each for each in self.names() if each.key == name.key), None)

    def names(self) -> Iterator[ModelName]:
        """The names of all manifests, whatever they hold, in no particular order."""
        for path in (self.root / "manifests").glob("*/*/*/*"):
            if path.is_file():
                try:
                    yield ModelName(*path.parts[-4:])
                except InvalidNameError:
                    self.warn_once(path, "its path is no model's name")

    def read_manifest(self, name: ModelName) -> Manifest | None:
        """The manifest of exactly this name; None if there is none. Raises DamagedModelError."""
        path = self.manifest_path(name)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size > MAX_MANIFEST_BYTES:
                    raise DamagedModelError("not a manifest (it is too large)")
                return parse_manifest(file.read(), status.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise DamagedModelError(f"cannot be read: {error.strerror}") from error

    def write_manifest(self, name: ModelName, config: Layer, layers: tuple[Layer, ...]) -> Manifest:
        """Registers a model under `name`, replacing one of that name in any case.

        Raises StoreError when the store cannot be written, or one of the blobs is gone because a
        model that had it too was deleted meanwhile.
        """
        return self.write_manifest_file(name, format_manifest(config, layers))

    def write_manifest_file(self, name: ModelName, data: bytes) -> Manifest:
        """As `write_manifest`, with the manifest as a registry sent it, whose digest it keeps."""
        manifest = parse_manifest(data, 0)
        with self.lock():
            for layer in (manifest.config, *manifest.layers):
                if not self.has_blob(layer.digest):
                    raise StoreError(
                        f"{name.shortest}: its blob {layer.digest} was deleted meanwhile; try again"
                    )
            path = self._write(name, data)
            return parse_manifest(data, path.stat().st_mtime_ns)

    def copy_manifest(self, source: ModelName, name: ModelName) -> bool:
        """Registers under `name` what is stored under exactly `source`, byte for byte.

        False if there is no such model. Raises StoreError.
        """
        with self.lock():
            try:
                data = self.manifest_path(source).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return False
            except OSError as error:
                raise StoreError(f"{source.shortest}: cannot be read: {error.strerror}") from error
            self._write(name, data)
            return True

    def remove_manifest(self, name: ModelName) -> None:
        """Takes away exactly this name, and the folders that it leaves empty. Raises StoreError."""
        path = self.manifest_path(name)
        with self.lock():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise self.unwritable(error) from error
            for folder in path.parents[:3]:
                try:
                    folder.rmdir()
                except OSError:  # most often because others are in it
                    return

    def _write(self, name: ModelName, data: bytes) -> Path:
        """The manifest's file, under the name in the case that is stored."""
        path = self.manifest_path(self.canonical_name(name) or name)
        temporary = self.temporary_file()
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
            return path
        except OSError as error:
            raise self.unwritable(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def warn_once(self, path: Path, problem: str) -> None:
        """Says that a file of the store is skipped: once for each state of the file."""
        try:
            key = (str(path), path.stat().st_mtime_ns)
        except OSError:
            key = (str(path), 0)
        if key not in self._warned:
            self._warned.add(key)
            log.warning("skipping %s: %s", path, problem)

    def unwritable(self, error: OSError) -> StoreError:
        """The error for the user, when the store cannot be written."""
        remedy = "make room" if error.errno in _FULL else "make it writable"
        return StoreError(
            f"{self.root}: cannot write models there ({error.strerror}); "
            f"{remedy}, or set OLLAMA_MODELS to another folder"
        )


def _pieces(source: BinaryIO | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    while data := source.read(_COPY_BYTES):
        yield data


def _written(pieces: Iterator[bytes], target: BinaryIO) -> Iterator[bytes]:
    for data in pieces:
        target.write(data)
        yield data


def _stage(
    path: Path, file: BinaryIO, pieces: Iterator[bytes], progress: Callable[[int], None] | None
) -> StagedBlob:
    """The blob that `pieces` are; they are in `file`, which is at `path`, when they have come."""
    sha, size = hashlib.sha256(), 0
    for data in pieces:
        sha.update(data)
        size += len(data)
        if progress:
            progress(size)
    file.flush()
    os.fsync(file.fileno())
    return StagedBlob(f"sha256:{sha.hexdigest()}", size, path)


def _try_lock(descriptor: int) -> bool:
    """Whether the lock was taken. True, too, where there are no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise StoreError(f"the models folder cannot be locked: {error.strerror}") from error
        log.debug("the models folder has no locks: %s", error.strerror)
    return True

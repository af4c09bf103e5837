"""Models on disk, in Ollama's layout: `blobs/sha256-HEX` and `manifests/HOST/NAMESPACE/MODEL/TAG`.

Every file appears under its final name complete or not at all. A store written by Ollama is read
as it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rwkv_core.errors import AnserError
from server.manifests import (
    DamagedModelError,
    Layer,
    Manifest,
    digest_hex,
    format_manifest,
    parse_manifest,
)
from server.names import InvalidNameError, ModelName

log = logging.getLogger(__name__)

_TEMPORARY_PREFIX = "tmp-"
_TEMPORARY_LIFE_S = 24 * 3600
_COPY_BYTES = 1 << 20
# A real manifest has at most a few kilobytes; more is not read.
MAX_MANIFEST_BYTES = 4 << 20


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


class Store:
    """A folder of models. Safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._warned: set[tuple[str, int]] = set()

    # Blobs

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be.

        Raises DamagedModelError for what is no SHA-256 digest.
        """
        return self.root / "blobs" / f"sha256-{digest_hex(digest)}"

    def has_blob(self, digest: str) -> bool:
        return self.blob_path(digest).is_file()

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
        if isinstance(source, Path):
            with source.open("rb") as file:
                return self.add_blob(file, expected_digest=expected_digest, progress=progress)
        temporary = self.temporary_file()
        try:
            with temporary.open("wb") as target:
                for done in _copy(source, target):
                    if progress:
                        progress(done)
            return self.adopt(temporary, expected_digest=expected_digest)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def temporary_file(self) -> Path:
        """A new empty file on the store's disk, to be filled and given to `adopt`, or deleted."""
        try:
            folder = self.root / "blobs"
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY_PREFIX, dir=folder)
        except OSError as error:
            raise self._unwritable(error) from error
        os.close(descriptor)
        return Path(name)

    def adopt(self, temporary: Path, *, expected_digest: str | None = None) -> Blob:
        """Makes a complete file from `temporary_file` a blob; the file is gone afterwards."""
        try:
            with temporary.open("rb+") as file:
                digest = f"sha256:{_sha256(file)}"
                os.fsync(file.fileno())
            if expected_digest and digest_hex(expected_digest) != digest_hex(digest):
                raise DigestMismatchError(expected_digest, digest)
            path, size = self.blob_path(digest), temporary.stat().st_size
            is_new = not path.is_file()
            temporary.chmod(0o644)  # mkstemp makes files that only the owner reads
            temporary.replace(path)  # also where there is one, which heals a damaged blob
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return Blob(digest, size, is_new)

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
        """Registers a model under `name`, replacing one of that name in any case."""
        return self.write_manifest_file(name, format_manifest(config, layers))

    def write_manifest_file(self, name: ModelName, data: bytes) -> Manifest:
        """As `write_manifest`, with the manifest as a registry sent it, whose digest it keeps.

        Raises StoreError when a blob is gone, because a model that had it too was deleted.
        """
        manifest = parse_manifest(data, 0)
        for layer in (manifest.config, *manifest.layers):
            if not self.has_blob(layer.digest):
                raise StoreError(f"{name.shortest}: its blob {layer.digest} is gone; try again")
        name = self.canonical_name(name) or name
        path = self.manifest_path(name)
        temporary = self.temporary_file()
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
            return parse_manifest(data, path.stat().st_mtime_ns)
        except OSError as error:
            raise self._unwritable(error) from error
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
        """What to raise when the store's folder or its disk has refused a write."""
        return self._unwritable(error)

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.root}: cannot write models there ({error.strerror}); "
            "make it writable, or set OLLAMA_MODELS to another folder"
        )


def _copy(source: BinaryIO | bytes, target: BinaryIO) -> Iterator[int]:
    """Yields the bytes copied so far."""
    if isinstance(source, bytes):
        target.write(source)
        yield len(source)
        return
    done = 0
    while data := source.read(_COPY_BYTES):
        target.write(data)
        done += len(data)
        yield done


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(_COPY_BYTES):
        digest.update(data)
    return digest.hexdigest()

"""Blobs that no model needs any more: found by what the manifests say, and deleted.

All of this happens under the store's lock. So does writing a manifest, which first makes sure that
all its blobs are there. A create or pull that is about to name a blob which is deleted here finds
out before it registers anything, and says so; it never registers a model with a blob missing.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from server.store.manifests import DamagedModelError, Layer, Manifest, digest_hex
from server.store.names import ModelName
from server.store.store import Store

log = logging.getLogger(__name__)

# As in Ollama: what was sent to /api/blobs has so long to become part of a model.
_GRACE_S = 3600

_PARTIAL = "sha256-*-partial*"
_BLOB_NAME = re.compile("sha256-[0-9a-f]{64}")
# Looked for in the bytes: so a manifest that is damaged, or of a later format, counts too.
_DIGEST = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")


def remove_unused_blobs(store: Store, digests: Iterable[str]) -> None:
    """Deletes those of the digests that no manifest names any more.

    It holds the store's lock (an flock of its folder: other processes too) while it reads the
    manifests and deletes, and `Store.write_manifest` holds it while it checks that the blobs are
    there and names them; so no manifest ever names a blob that was deleted here. What cannot be
    deleted stays, with a warning; so does everything where a manifest cannot be read. Raises
    StoreError when the lock cannot be had.
    """
    unused = set()
    for digest in digests:
        try:
            unused.add(digest_hex(digest))
        except DamagedModelError:
            log.warning("no digest of a blob: %.100s", digest)
    if not unused:
        return
    with store.lock():
        try:
            unused -= _named(store)
        except OSError as error:
            log.warning("no blob is deleted, as a manifest cannot be read: %s", error)
            return
        for digest in unused:
            path = store.blob_path(f"sha256:{digest}")
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot delete %s: %s", path, error.strerror)


def remove_forgotten_blobs(store: Store, *, grace_s: float = _GRACE_S) -> None:
    """Deletes all blobs that no manifest names and that are older than an hour.

    Downloads that are not complete have other names, and stay. While one of them grows, perhaps in
    another process, nothing goes: what it has complete already has no manifest yet. Raises
    StoreError.
    """
    oldest = time.time() - grace_s
    folder = store.root / "blobs"
    if not folder.is_dir():
        return
    with store.lock():
        if any(not _is_older(path, oldest) for path in folder.glob(_PARTIAL)):
            log.info("unused blobs stay, as a download seems to run")
            return
        forgotten = [
            path.name
            for path in folder.iterdir()
            if _BLOB_NAME.fullmatch(path.name) and _is_older(path, oldest)
        ]
        remove_unused_blobs(store, forgotten)


def replace_manifest(
    store: Store, name: ModelName, config: Layer, layers: tuple[Layer, ...]
) -> Manifest:
    """`Store.write_manifest`; then the blobs go that only the model had that was there before."""
    with store.lock():
        old = list(digests_of(store, name))
        manifest = store.write_manifest(name, config, layers)
        remove_unused_blobs(store, old)
    return manifest


def digests_of(store: Store, name: ModelName) -> Iterator[str]:
    """What the manifest of this name, in any case, mentions; nothing where there is none."""
    canonical = store.canonical_name(name)
    if canonical is not None:
        try:
            yield from _mentioned(store.manifest_path(canonical))
        except OSError as error:
            log.warning("%s cannot be read: %s", canonical.shortest, error.strerror)


def _named(store: Store) -> set[str]:
    """The digits of all digests in all manifests. Raises OSError."""
    named: set[str] = set()
    # Links are followed: what a store has elsewhere counts as well.
    for folder, _, files in os.walk(store.root / "manifests", onerror=_raise, followlinks=True):
        for path in (Path(folder, file) for file in files):
            if path.is_file():
                named.update(each.removeprefix("sha256:") for each in _mentioned(path))
    return named


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _mentioned(path: Path) -> Iterator[str]:
    for match in _DIGEST.finditer(path.read_bytes()):
        yield f"sha256:{match[1].decode().lower()}"


def _is_older(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime < moment
    except OSError:
        return False

"""Deleting blobs that no model needs any more."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from server.manifests import DamagedModelError
from server.store import Store

log = logging.getLogger(__name__)


def remove_unused_blobs(store: Store, digests: Iterable[str]) -> None:
    """Deletes those of the blobs that no manifest names any more.

    A manifest that cannot be read may name any of them: then nothing is deleted.
    """
    unused = {digest for digest in digests if store.has_blob(digest)}
    if not unused:
        return
    for name in store.names():
        try:
            manifest = store.read_manifest(name)
        except DamagedModelError as error:
            log.warning("unused blobs are kept: %s: %s", name, error)
            return
        if manifest:
            unused -= {layer.digest for layer in (manifest.config, *manifest.layers)}
    for digest in unused:
        try:
            store.blob_path(digest).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot delete %s: %s", store.blob_path(digest), error.strerror)

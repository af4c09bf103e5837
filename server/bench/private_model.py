"""A model out of a file, in a store that is there only while something is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rwkv_core.checkpoint import open_checkpoint
from server.creating.create import create_model
from server.creating.modelfile import Command, Modelfile
from server.creating.new_model import model_title
from server.store.names import ModelName
from server.store.store import Blob, Store
from server.store.stored_model import ModelParts, write_model

PRIVATE_NAME = "bench"

_READ_BYTES = 4 << 20


def add_private_model(root: Path, path: Path, show: Callable[[str], None]) -> None:
    """Makes PRIVATE_NAME in the empty store `root` from the model at `path`.

    A GGUF file is linked, not copied; any other is converted. Raises CheckpointError,
    TokenizerError and StoreError.
    """
    store, name = Store(root), ModelName.parse(PRIVATE_NAME)
    show("reading")
    with closing(open_checkpoint(path)) as checkpoint:
        file = checkpoint.path if checkpoint.format == "gguf" else None
    if file is None:
        source = Modelfile((Command("from", str(path.absolute())),))
        create_model(store, name, source, Path(), lambda stage, *_: show(stage))
        return
    show("hashing")
    blob = Blob(f"sha256:{_sha256(file)}", file.stat().st_size, is_new=True)
    link = store.blob_path(blob.digest)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file.absolute())
    write_model(store, name, blob, ModelParts(), title=model_title(path))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()

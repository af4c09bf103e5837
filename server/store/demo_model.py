"""`rwkv7-demo`, the model inside the package: a fresh machine has something that answers."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import rwkv_core
from server.store.manifests import MODEL_TYPE, DamagedModelError
from server.store.names import InvalidNameError, ModelName
from server.store.store import Store, StoreError
from server.store.stored_model import (
    ForeignModelError,
    ModelParts,
    StoredModel,
    open_model,
    write_model,
)

log = logging.getLogger(__name__)

DEMO_NAME = ModelName.parse("rwkv7-demo")
DEMO_FILE = Path(rwkv_core.__file__).parent / "demo" / "rwkv7-demo.gguf"

# What the authors advise for reasoning. At Ollama's 0.8 a model this small slips in its sums.
_PARAMETERS = {"temperature": 0.3, "top_p": 0.3}

# In the config blob: tells our own model from one that a user made under the same name.
_NOTE = "embedded"


def ensure_demo_model(store: Store, file: Path = DEMO_FILE) -> bool:
    """Puts the demo model into the store if it is missing there, damaged, or of another version.

    A user's own model of that name is left alone. A store that cannot be written is one warning.
    Returns whether a demo model is there afterwards.
    """
    if not file.is_file():
        log.warning("%s is missing: the package is incomplete; install it again", file)
        return False
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    try:
        model = open_model(store, DEMO_NAME)
        if model is not None:
            layer = model.manifest.layer(MODEL_TYPE)
            is_ours = model.config.get("anser") == _NOTE
            if not is_ours or (layer is not None and layer.digest == digest):
                return True
    except ForeignModelError as error:
        log.warning("the demo model is not added: %s", error)
        return False
    except DamagedModelError as error:
        log.warning("putting the demo model back: %s", error)
    try:
        blob = store.add_blob(file, expected_digest=digest)
        write_model(store, DEMO_NAME, blob, ModelParts(parameters=_PARAMETERS), note=_NOTE)
    except StoreError as error:
        log.warning("rwkv7-demo is not available: %s", error)
        return False
    return True


def find_stored(store: Store, text: str) -> StoredModel | None:
    """The model of that name, the embedded one put there first if it is meant; None if there is
    none, or `text` is no name.

    Raises what `open_model` raises.
    """
    try:
        name = ModelName.parse(text)
    except InvalidNameError:
        return None
    if name.key == DEMO_NAME.key:
        ensure_demo_model(store)
    return open_model(store, name)

"""An entry of `/v1/models`."""

from __future__ import annotations

from server.store.stored_model import StoredModel
from server.wire.answers import Json

_NS_PER_S = 1_000_000_000


def model_json(model: StoredModel, name: str) -> Json:
    """`name` is what the client calls the model, or the name it is listed under."""
    return {
        "id": name,
        "object": "model",
        "created": model.manifest.modified_ns // _NS_PER_S,
        "owned_by": model.name.namespace,
    }

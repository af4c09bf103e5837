"""Copying and deleting stored models: the work of `/api/copy`, `/api/delete` and their commands."""

from __future__ import annotations

from server.store.names import InvalidNameError, ModelName
from server.store.pruning import digests_of, remove_unused_blobs
from server.store.short_names import find_name
from server.store.store import Store
from server.wire.errors import ApiError, model_not_found
from server.wire.go_text import go_quote


def copy_model(store: Store, source: str, destination: str) -> ModelName:
    """Gives the model `source` another name too; what had only that name before goes.

    Returns the new name. Raises ApiError (400, 404) in Ollama's words, and StoreError.
    """
    old = _parse(source, f"source {go_quote(source)} is invalid")
    new = _parse(destination, f"destination {go_quote(destination)} is invalid")
    missing = ApiError(404, f"model {go_quote(source)} not found")
    with store.lock():
        found = find_name(store, old)
        if found is None:
            raise missing
        if found.key == new.key:
            return found
        replaced = list(digests_of(store, new))
        if not store.copy_manifest(found, new):
            raise missing
        remove_unused_blobs(store, replaced)
    return store.canonical_name(new) or new


def delete_model(store: Store, text: str) -> ModelName:
    """Takes the name away, and the blobs that no other model has. A damaged model goes, too.

    Returns the name that was there. Raises ApiError (400, 404) in Ollama's words, and StoreError.
    """
    if not text:
        raise ApiError(400, "model is required")
    name = _parse(text, f"name {go_quote(text)} is invalid")
    with store.lock():
        found = find_name(store, name)
        if found is None:
            raise model_not_found(text)
        digests = list(digests_of(store, found))
        store.remove_manifest(found)
        remove_unused_blobs(store, digests)
    return found


def _parse(text: str, problem: str) -> ModelName:
    try:
        return ModelName.parse(text)
    except InvalidNameError as error:
        raise ApiError(400, problem) from error

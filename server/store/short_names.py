"""Short names of well-known models: `rwkv-7-g1:2.9b` for `mollysama/rwkv-7-g1:2.9b`."""

from __future__ import annotations

import re
from dataclasses import replace

from server.store.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName
from server.store.store import Store

# Who publishes these models, in all their sizes (the tags), in Ollama's registry: the World models,
# and G1 in its releases g1, g1a, g1a2, g1b, … and those of its predecessor, G0.
_PUBLISHERS = {re.compile(r"rwkv-7-(world|g[01][a-z0-9]{0,3})", re.IGNORECASE): "mollysama"}


def full_name(name: ModelName) -> ModelName:
    """The name that a short one stands for; any other as it is."""
    if name.host.lower() != DEFAULT_HOST or name.namespace.lower() != DEFAULT_NAMESPACE:
        return name
    for models, publisher in _PUBLISHERS.items():
        if models.fullmatch(name.model):
            return replace(name, namespace=publisher)
    return name


def find_name(store: Store, name: ModelName) -> ModelName | None:
    """What a client means by `name`, in the case it is stored under; None if it is not there.

    A model of exactly the short name, made on this machine, comes first.
    """
    return store.canonical_name(name) or store.canonical_name(full_name(name))

"""A model's manifest from a registry, and whether it is one that Anser can use."""

from __future__ import annotations

import json
from pathlib import Path

from server.registry.address import repository_path
from server.registry.client import RegistryClient, persistently, read_limited
from server.registry.errors import RegistryError
from server.registry.limits import Limits
from server.store.gguf_facts import ARCHITECTURE
from server.store.manifests import (
    MANIFEST_TYPE,
    MODEL_TYPE,
    DamagedModelError,
    Layer,
    Manifest,
    parse_manifest,
)
from server.store.names import ModelName
from server.store.store import MAX_MANIFEST_BYTES
from server.store.stored_model import ForeignModelError, foreign_model, no_gguf_file

_NUM_ATTEMPTS = 2
# Real models have about ten.
_MAX_LAYERS = 200
_MAX_CONFIG_BYTES = 4 << 20


def manifest_path(name: ModelName) -> str:
    return f"{repository_path(name)}/manifests/{name.tag}"


async def fetch_manifest(
    client: RegistryClient, name: ModelName, limits: Limits
) -> tuple[bytes, Manifest]:
    """The manifest as it was sent, and what it says.

    Raises RegistryError, in Ollama's words for one that is not there.
    """

    async def fetch() -> bytes:
        headers = {"Accept": MANIFEST_TYPE}
        async with client.stream("GET", manifest_path(name), headers=headers) as response:
            return await read_limited(response, MAX_MANIFEST_BYTES)

    try:
        data = await persistently(fetch, limits, _NUM_ATTEMPTS)
        manifest = parse_manifest(data, 0)
        _check(manifest)
    except (RegistryError, DamagedModelError) as error:
        raise RegistryError(f"pull model manifest: {error}") from error
    return data, manifest


def distinct_layers(manifest: Manifest) -> list[Layer]:
    """Every blob once, the config first."""
    layers = (manifest.config, *manifest.layers)
    return list({layer.digest: layer for layer in layers}.values())


def check_family(name: ModelName, manifest: Manifest, config: Path) -> None:
    """Raises ForeignModelError for a model that its config blob calls another than RWKV-7.

    A config that does not say proves nothing. It costs gigabytes to find out from the model.
    """
    if manifest.layer(MODEL_TYPE) is None:
        raise ForeignModelError(no_gguf_file(name))
    try:
        value = json.loads(config.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{name.shortest}: its config is not JSON") from error
    family = value.get("model_family") if isinstance(value, dict) else None
    if family and family != ARCHITECTURE:
        raise ForeignModelError(foreign_model(name, str(family)[:80]))


def _check(manifest: Manifest) -> None:
    if len(manifest.layers) > _MAX_LAYERS:
        raise RegistryError(f"the manifest has {len(manifest.layers)} layers")
    if manifest.config.size > _MAX_CONFIG_BYTES:
        raise RegistryError(f"the manifest has a config of {manifest.config.size} bytes")
    sizes: dict[str, int] = {}
    for layer in (manifest.config, *manifest.layers):
        if not 0 <= layer.size < 1 << 60:
            raise RegistryError(f"the manifest gives {layer.digest} the size {layer.size}")
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise RegistryError(f"the manifest gives {layer.digest} two sizes")

"""Manifests: which blobs make a model.

The format is Ollama's (and, below that, an image registry's).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwkv_core.errors import AnserError

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_TYPE = "application/vnd.ollama.image.model"
ADAPTER_TYPE = "application/vnd.ollama.image.adapter"
TEMPLATE_TYPE = "application/vnd.ollama.image.template"
SYSTEM_TYPE = "application/vnd.ollama.image.system"
PARAMS_TYPE = "application/vnd.ollama.image.params"
MESSAGES_TYPE = "application/vnd.ollama.image.messages"
LICENSE_TYPE = "application/vnd.ollama.image.license"

_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


class DamagedModelError(AnserError):
    """A stored model whose manifest or blobs cannot be used."""


@dataclass(frozen=True)
class Layer:
    """A blob's part in a model. `digest` is "sha256:" and 64 hexadecimal digits."""

    media_type: str
    digest: str
    size: int
    source: str = ""  # the model it was taken from, if any

    def to_json(self) -> dict[str, Any]:
        layer: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        return layer | ({"from": self.source} if self.source else {})


@dataclass(frozen=True)
class Manifest:
    """A manifest as it lies in the store. `digest` is the SHA-256 of its file, in hexadecimal."""

    config: Layer
    layers: tuple[Layer, ...]
    digest: str
    modified_ns: int

    @property
    def size(self) -> int:
        """Bytes of all its blobs."""
        return self.config.size + sum(layer.size for layer in self.layers)

    def layer(self, media_type: str) -> Layer | None:
        return next((layer for layer in self.layers if layer.media_type == media_type), None)

    def all(self, media_type: str) -> list[Layer]:
        return [layer for layer in self.layers if layer.media_type == media_type]


def digest_hex(digest: str) -> str:
    """The digits of "sha256:…" or "sha256-…", in lower case.

    Raises DamagedModelError for anything else. This is the only way from a digest to a file's
    name, so that no digest can lead out of the store.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise DamagedModelError("invalid digest format")
    return match[1].lower()


def parse_manifest(data: bytes, modified_ns: int) -> Manifest:
    """Raises DamagedModelError for what is no manifest."""
    try:
        value = json.loads(data)
        config = _parse_layer(value["config"])
        layers = tuple(_parse_layer(each) for each in value.get("layers") or ())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedModelError(f"not a manifest ({type(error).__name__}: {error})") from error
    return Manifest(config, layers, hashlib.sha256(data).hexdigest(), modified_ns)


def format_manifest(config: Layer, layers: tuple[Layer, ...]) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return json.dumps(value, separators=(",", ":")).encode()


def _parse_layer(value: Mapping[str, Any]) -> Layer:
    media_type, digest, size = value["mediaType"], value["digest"], value["size"]
    source = value.get("from") or ""
    if not isinstance(media_type, str) or not isinstance(size, int) or not isinstance(source, str):
        raise TypeError("a layer has a field of the wrong type")
    return Layer(media_type, f"sha256:{digest_hex(digest)}", size, source)

"""Where a model's registry is, and whether it may be spoken to in the clear."""

from __future__ import annotations

from urllib.parse import quote

import httpx

from server.access.loopback import is_loopback
from server.store.names import InvalidNameError, ModelName
from server.wire.errors import ApiError


def registry_url(text: str, name: ModelName, *, is_insecure: bool) -> str:
    """The root of the registry of `name`, which a client wrote as `text`.

    Plain HTTP is for registries on this machine, and for those that the client calls insecure.
    Raises ApiError for any other that is named with http://, InvalidNameError for no address.
    """
    scheme, found, _ = text.strip().partition("://")
    scheme = scheme.lower() if found else ""
    try:
        host = httpx.URL(f"https://{name.host}/").host
    except httpx.InvalidURL:
        raise InvalidNameError(text) from None
    if scheme not in ("", "http", "https"):
        raise InvalidNameError(text)
    is_local = is_loopback(host)
    if scheme == "http" and not is_insecure and not is_local:
        raise ApiError(
            400,
            f"insecure protocol http: anyone between here and {name.host} could change the model; "
            'use https, or allow it with --insecure ("insecure": true)',
        )
    # As Ollama: an insecure registry is one without TLS, whatever is written before its name.
    is_plain = is_insecure or (is_local and scheme != "https")
    return f"{'http' if is_plain else 'https'}://{name.host}"


def repository_path(name: ModelName) -> str:
    """The part of a registry that belongs to a model, all its tags."""
    return f"/v2/{quote(name.namespace)}/{quote(name.model)}"

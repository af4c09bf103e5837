"""The parts of a message's content: text, and the images that no RWKV-7 model can see."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from server.wire.errors import ApiError

_IMAGE_PREFIXES = (
    "data:;base64,",
    *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")),
)


def image_data(url: str) -> str:
    """The base64 in a data URL. Raises ApiError (400) for any other."""
    if url.startswith(("http://", "https://")):
        raise ApiError(
            400,
            "image URLs are not currently supported, please use base64 encoded data instead",
        )
    prefix = next((each for each in _IMAGE_PREFIXES if url.startswith(each)), None)
    if prefix is None or not _is_base64(url[len(prefix) :]):
        raise ApiError(400, "invalid image input")
    return url[len(prefix) :]


def read_parts(parts: list[Any]) -> tuple[list[str], list[str]]:
    """The texts and the images (base64) of a content that is a list. Raises ApiError (400)."""
    texts: list[str] = []
    images: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_string(part.get("text")))
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(image_data(_string(url.get("url") if isinstance(url, Mapping) else url)))
        elif kind == "input_audio":
            images.append(_audio_data(part.get("input_audio")))
        else:
            raise ApiError(400, "invalid message format")
    return texts, images


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ApiError(400, "invalid message format")
    return value


def _audio_data(value: Any) -> str:
    if not isinstance(value, Mapping):
        raise ApiError(400, "invalid input_audio format")
    data = value.get("data")
    if not isinstance(data, str):
        raise ApiError(400, "invalid input_audio format: missing data")
    if not _is_base64(data):
        raise ApiError(400, "invalid input_audio base64 data")
    return data


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True

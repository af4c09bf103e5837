"""Requests for embeddings as they stand on the wire."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from server.wire.go_decode import GoModel
from server.wire.schemas import KeepAlive


class EmbedRequest(GoModel):
    """`truncate` is accepted and changes nothing: an RNN reads texts of any length."""

    go_name: ClassVar[str] = "EmbedRequest"
    model: str = ""
    input: Any = None
    truncate: bool = True
    dimensions: int = 0
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class EmbeddingRequest(GoModel):
    """The older form, of one text."""

    go_name: ClassVar[str] = "EmbeddingRequest"
    model: str = ""
    prompt: str = ""
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] = Field(default_factory=dict)

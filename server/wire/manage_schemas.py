"""Requests that make, copy and delete models, as they stand on the wire."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from server.wire.go_decode import GoModel, own_words
from server.wire.schemas import Message


def _read_license(value: Any) -> list[str]:
    """One text or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise own_words("license must be a string or a list of strings")
    return [each for each in values if each]


Licenses = Annotated[list[str], BeforeValidator(_read_license)]


class CreateRequest(GoModel):
    """`files` and `adapters` are digests of blobs by the names of the files."""

    go_name: ClassVar[str] = "CreateRequest"
    model: str = ""
    name: str = ""
    stream: bool = True
    quantize: str = ""
    quantization: str = ""
    source: str = Field(default="", alias="from")
    files: dict[str, str] | None = None
    adapters: dict[str, str] | None = None
    draft_files: dict[str, str] | None = None
    remote_host: str = ""
    template: str = ""
    license: Licenses = Field(default_factory=list)
    system: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    messages: list[Message] = Field(default_factory=list)
    renderer: str = ""
    parser: str = ""
    requires: str = ""


class CopyRequest(GoModel):
    go_name: ClassVar[str] = "CopyRequest"
    source: str = ""
    destination: str = ""


class DeleteRequest(GoModel):
    go_name: ClassVar[str] = "DeleteRequest"
    model: str = ""
    name: str = ""

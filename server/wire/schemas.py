"""Requests as they stand on the wire. Routes turn them into the engine's own types at once."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from rwkv_core.chat.messages import Think
from server.wire.durations import DurationError, keep_alive_ns
from server.wire.go_decode import GoModel, GoType, own_words
from server.wire.go_text import go_quote

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")
_THINK_LEVELS = ("high", "medium", "low", "max")
_THINK_CHOICES = '"high", "medium", "low", "max", true, or false'


def _read_think(value: Any) -> Think:
    if isinstance(value, bool):
        return Think.ON if value else Think.OFF
    if not isinstance(value, str):
        raise own_words(f"think must be a boolean or string ({_THINK_CHOICES})")
    if value not in _THINK_LEVELS:
        raise own_words(f"invalid think value: {go_quote(value)} (must be {_THINK_CHOICES})")
    return Think(value)


def _read_keep_alive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kinds = {bool: "bool", list: "[]interface {}", dict: "map[string]interface {}"}
        raise own_words(f"Unsupported type: '{kinds[type(value)]}'")
    try:
        return keep_alive_ns(value)
    except DurationError as error:
        raise own_words(str(error)) from None


def _read_image(value: Any) -> Any:
    """Checks the encoding, as Go does. Whether images are of use depends on the model."""
    if isinstance(value, str):
        try:
            base64.b64decode(value.replace("\r", "").replace("\n", ""), validate=True)
        except (binascii.Error, ValueError):
            wrong = _NOT_BASE64.search(value)
            at = wrong.start() if wrong else len(value)
            raise own_words(f"illegal base64 data at input byte {at}") from None
    return value


def _read_property_type(value: Any) -> Any:
    """One JSON schema type or a list of them."""
    return [value] if isinstance(value, str) else value


Image = Annotated[str, BeforeValidator(_read_image), GoType("[]uint8")]
Images = Annotated[list[Image], GoType("[]api.ImageData")]
KeepAlive = Annotated[
    int,
    BeforeValidator(_read_keep_alive),
    GoType("api.Duration"),
    WithJsonSchema({"type": ["number", "string"], "examples": [300, "5m", -1]}),
]
PropertyType = Annotated[
    list[str],
    BeforeValidator(_read_property_type),
    GoType("[]string"),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
]
ThinkValue = Annotated[
    Think,
    BeforeValidator(_read_think),
    GoType("api.ThinkValue"),
    WithJsonSchema({"enum": [True, False, *_THINK_LEVELS]}),
]


class ToolCallFunction(GoModel):
    go_name: ClassVar[str] = "ToolCallFunction"
    index: int = 0
    name: str = ""
    arguments: Annotated[dict[str, Any], GoType("api.ToolCallFunctionArguments")] = Field(
        default_factory=dict
    )


class ToolCall(GoModel):
    go_name: ClassVar[str] = "ToolCall"
    id: str = ""
    function: ToolCallFunction = ToolCallFunction()


class Message(GoModel):
    """One turn of a chat."""

    go_name: ClassVar[str] = "Message"
    reads_itself: ClassVar[bool] = True
    role: str = ""
    content: str = ""
    thinking: str = ""
    images: Images = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""


class ToolProperty(GoModel):
    """A JSON schema, as far as Ollama reads it."""

    go_name: ClassVar[str] = "ToolProperty"
    anyOf: list[ToolProperty] = Field(default_factory=list)
    type: PropertyType = Field(default_factory=list)
    items: Any = None
    description: str = ""
    enum: list[Any] = Field(default_factory=list)
    properties: Annotated[dict[str, ToolProperty], GoType("api.ToolPropertiesMap")] = Field(
        default_factory=dict
    )
    required: list[str] = Field(default_factory=list)


class ToolFunctionParameters(GoModel):
    go_name: ClassVar[str] = "ToolFunctionParameters"
    type: str = ""
    defs: Any = Field(default=None, alias="$defs")
    items: Any = None
    required: list[str] = Field(default_factory=list)
    properties: Annotated[dict[str, ToolProperty], GoType("api.ToolPropertiesMap")] = Field(
        default_factory=dict
    )


class ToolFunction(GoModel):
    go_name: ClassVar[str] = "ToolFunction"
    name: str = ""
    description: str = ""
    parameters: ToolFunctionParameters = Field(default_factory=ToolFunctionParameters)


class Tool(GoModel):
    """A function that the model may call."""

    go_name: ClassVar[str] = "Tool"
    type: str = ""
    items: Any = None
    function: ToolFunction = Field(default_factory=ToolFunction)


class InferenceRequest(GoModel):
    """What `/api/generate` and `/api/chat` have in common.

    `truncate` and `shift` are accepted and change nothing: an RNN's state has no window to cut.
    `session` is Anser's own.
    """

    model: str = ""
    stream: bool = True
    format: Annotated[Any, GoType("json.RawMessage")] = None
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    think: ThinkValue | None = None
    truncate: bool = True
    shift: bool = True
    debug_render_only: bool = Field(default=False, alias="_debug_render_only")
    logprobs: bool = False
    top_logprobs: int = 0
    session: str = ""


class GenerateRequest(InferenceRequest):
    go_name: ClassVar[str] = "GenerateRequest"
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] = Field(default_factory=list)
    raw: bool = False
    images: Images = Field(default_factory=list)


class ChatRequest(InferenceRequest):
    go_name: ClassVar[str] = "ChatRequest"
    messages: list[Message] = Field(default_factory=list)
    tools: Annotated[list[Tool], GoType("api.Tools")] = Field(default_factory=list)


class ForkRequest(GoModel):
    """Of a session: the name of the new one, and how many messages it begins with."""

    go_name: ClassVar[str] = "ForkRequest"
    session: str = ""
    at: int | None = None


class ShowRequest(GoModel):
    go_name: ClassVar[str] = "ShowRequest"
    model: str = ""
    name: str = ""
    system: str = ""
    template: str = ""
    verbose: bool = False
    options: dict[str, Any] = Field(default_factory=dict)

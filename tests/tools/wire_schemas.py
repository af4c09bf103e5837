"""Ollama's answers as types, to hold a server's answers against. Nothing but its fields may come.

A field that Ollama leaves out when it is empty has a default here and a type without the empty
value: it is absent, or it says something. The other fields are always there. What is Anser's own is
marked so.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_M = TypeVar("_M", bound=BaseModel)


def _check_time(text: str) -> str:
    """RFC 3339 as Go writes it: at most nine digits behind the second, no zeros at their end."""
    datetime.fromisoformat(text[:19])
    return text


def _check_utc(text: str) -> str:
    if not text.endswith("Z"):
        raise ValueError("not in UTC")
    return text


def _check_true(value: bool) -> bool:
    if not value:
        raise ValueError("is false")
    return value


def _check_false(value: bool) -> bool:
    if value:
        raise ValueError("is true")
    return value


def _check_shortest(name: str) -> str:
    if name.startswith(("registry.ollama.ai/", "library/")):
        raise ValueError("a part that everyone knows is shown")
    return name


Time = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-]\d\d:\d\d)$"),
    AfterValidator(_check_time),
]
# A literal would take 0 and 1.
Yes = Annotated[bool, AfterValidator(_check_true)]
No = Annotated[bool, AfterValidator(_check_false)]
UtcTime = Annotated[Time, AfterValidator(_check_utc)]
FilledText = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShownName = Annotated[str, Field(pattern=r"^.+:[^/:]+$"), AfterValidator(_check_shortest)]
Capability = Literal["completion", "tools", "insert", "vision", "embedding", "thinking"]
Capabilities = Annotated[list[Capability], Field(min_length=1)]


class Wire(BaseModel):
    """No other fields, and no other types: 1.0 is no whole number, "1" none at all."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Error(Wire):
    error: FilledText


class Version(Wire):
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


class TokenLogprob(Wire):
    token: str
    logprob: Annotated[float, Field(le=0.0, allow_inf_nan=False)]
    bytes: Annotated[list[Byte], Field(min_length=1)] = []


class Logprob(TokenLogprob):
    top_logprobs: Annotated[list[TokenLogprob], Field(min_length=1)] = []


Logprobs = Annotated[list[Logprob], Field(min_length=1)]


class DebugInfo(Wire):
    rendered_template: FilledText
    image_count: Positive = 1


class Metrics(Wire):
    total_duration: Positive
    load_duration: Positive = 1
    prompt_eval_count: Positive = 1
    prompt_eval_duration: Positive = 1
    eval_count: Positive = 1
    eval_duration: Positive = 1
    # Anser's own.
    prompt_cached_count: Count = 0
    draft_count: Positive = 1
    draft_accepted_count: Count = 0


class _Answer(Wire):
    model: FilledText
    created_at: UtcTime


class GenerateChunk(_Answer):
    """One of a stream that goes on."""

    response: str
    thinking: FilledText = "-"
    done: No
    logprobs: Logprobs = []


class GenerateFinal(_Answer, Metrics):
    """The last of a stream, or the only one."""

    session: FilledText = "-"  # Anser's own
    response: str
    thinking: FilledText = "-"
    done: Yes
    done_reason: Literal["stop", "length"]
    context: Annotated[list[Count], Field(min_length=1)] = []
    logprobs: Logprobs = []


class GenerateDone(_Answer):
    """To a request that only loads or unloads."""

    session: FilledText = "-"  # Anser's own
    response: Literal[""]
    done: Yes
    done_reason: Literal["load", "unload"]


class GenerateDebug(_Answer):
    response: Literal[""]
    done: No
    debug_info: DebugInfo = Field(alias="_debug_info")


class CalledFunction(Wire):
    index: Count
    name: FilledText
    arguments: dict[str, Any]


class ToolCall(Wire):
    id: Annotated[str, Field(pattern=r"^call_[a-z0-9]{8}$")]
    function: CalledFunction


class ReplyMessage(Wire):
    role: Literal["assistant"]
    content: str
    thinking: FilledText = "-"
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] = []


class EmptyMessage(Wire):
    role: Literal["assistant"]
    content: Literal[""]


class ChatChunk(_Answer):
    message: ReplyMessage
    done: No
    logprobs: Logprobs = []


class ChatFinal(_Answer, Metrics):
    session: FilledText = "-"  # Anser's own
    message: ReplyMessage
    done: Yes
    done_reason: Literal["stop", "length"]
    logprobs: Logprobs = []


class ChatDone(_Answer):
    """To a request that only loads or unloads."""

    session: FilledText = "-"  # Anser's own
    message: EmptyMessage
    done: Yes
    done_reason: Literal["load", "unload"]


class NoMessage(Wire):
    role: Literal[""]
    content: Literal[""]


class ChatDebug(_Answer):
    message: NoMessage
    done: No
    debug_info: DebugInfo = Field(alias="_debug_info")


class Details(Wire):
    parent_model: str
    format: Literal["gguf"]
    family: FilledText
    families: Annotated[list[FilledText], Field(min_length=1)]
    parameter_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[KMBT]?$")]
    quantization_level: FilledText
    context_length: Positive = 1
    embedding_length: Positive = 1


class _ListedModel(Wire):
    name: ShownName
    model: ShownName
    size: Positive
    digest: HexDigest
    details: Details


class TaggedModel(_ListedModel):
    modified_at: Time
    capabilities: Capabilities


class Tags(Wire):
    models: list[TaggedModel]


class RunningModel(_ListedModel):
    expires_at: Time
    size_vram: Count
    context_length: Positive


class Ps(Wire):
    models: list[RunningModel]


class ModelMessage(Wire):
    """Of a Modelfile."""

    role: Literal["system", "user", "assistant"]
    content: str


class TensorInfo(Wire):
    name: FilledText
    type: FilledText
    shape: Annotated[list[Positive], Field(min_length=1)]


class Show(Wire):
    license: FilledText = "-"
    modelfile: FilledText
    parameters: FilledText = "-"
    template: FilledText = "-"
    system: FilledText = "-"
    details: Details
    messages: Annotated[list[ModelMessage], Field(min_length=1)] = []
    model_info: Annotated[dict[str, Any], Field(min_length=1)]
    tensors: Annotated[list[TensorInfo], Field(min_length=1)]
    capabilities: Capabilities
    requires: FilledText = "-"
    modified_at: Time


Vector = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)]


class Embed(Wire):
    model: FilledText
    embeddings: list[Vector]
    total_duration: Positive = 1
    load_duration: Positive = 1
    prompt_eval_count: Positive = 1


class Embedding(Wire):
    embedding: list[Annotated[float, Field(allow_inf_nan=False)]]


class Status(Wire):
    """Progress that measures nothing."""

    status: FilledText


class Transfer(Wire):
    """How much of a blob has come or gone."""

    status: Annotated[str, Field(pattern=r"^(pulling|pushing) [0-9a-f]{12}$")]
    digest: Digest
    total: Positive = 1
    completed: Positive = 1


class Quantizing(Wire):
    """Of create; its digest makes clients draw a bar."""

    status: Annotated[str, Field(pattern=r"^(quantizing|converting|verifying) ")]
    digest: Literal["0000000000000000000"]
    total: Positive
    completed: Count = 0


def fits(schema: type[_M], value: Any) -> _M:
    """The value as this type. Raises ValidationError, which names the field that does not fit."""
    return schema.model_validate_json(
        value if isinstance(value, (str, bytes)) else json.dumps(value)
    )

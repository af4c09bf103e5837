"""Requests of OpenAI's API as they stand on the wire, as far as Ollama reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from server.wire import schemas
from server.wire.go_decode import GoModel, GoType


class OpenAIModel(GoModel):
    go_package: ClassVar[str] = "openai"


class CalledFunction(OpenAIModel):
    """`arguments` is JSON in a string."""

    go_name: ClassVar[str] = "Function"
    name: str = ""
    arguments: str = ""


class ToolCall(OpenAIModel):
    go_name: ClassVar[str] = "ToolCall"
    id: str = ""
    function: CalledFunction = CalledFunction()


class Message(OpenAIModel):
    """One turn. `content` is a string or a list of parts; it may be missing beside tool calls."""

    go_name: ClassVar[str] = "Message"
    role: str = ""
    content: Any = None
    reasoning: str = ""
    tool_calls: list[ToolCall] | None = None
    name: str = ""
    tool_call_id: str = ""


class StreamOptions(OpenAIModel):
    go_name: ClassVar[str] = "StreamOptions"
    include_usage: bool = False


class JsonSchema(OpenAIModel):
    go_name: ClassVar[str] = "JsonSchema"
    json_schema: Annotated[Any, GoType("json.RawMessage")] = Field(default=None, alias="schema")


class ResponseFormat(OpenAIModel):
    go_name: ClassVar[str] = "ResponseFormat"
    type: str = ""
    json_schema: JsonSchema | None = None


class Reasoning(OpenAIModel):
    go_name: ClassVar[str] = "Reasoning"
    effort: str = ""


class SampledRequest(OpenAIModel):
    """What `/v1/chat/completions` and `/v1/completions` have in common.

    Ollama reads no `n`; Anser reads it to say in its log that there is one reply only.
    """

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: Any = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    n: Any = None


class ChatCompletionRequest(SampledRequest):
    go_name: ClassVar[str] = "ChatCompletionRequest"
    messages: Annotated[list[Message], GoType("[]openai.Message")] = Field(default_factory=list)
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[schemas.Tool] = Field(default_factory=list)
    reasoning: Reasoning | None = None
    reasoning_effort: str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = Field(default=False, alias="_debug_render_only")


class EmbeddingsRequest(OpenAIModel):
    """`input` is a string or several; `encoding_format` is float or base64."""

    go_name: ClassVar[str] = "EmbedRequest"
    model: str = ""
    input: Any = None
    dimensions: int = 0
    encoding_format: str = ""


class CompletionRequest(SampledRequest):
    go_name: ClassVar[str] = "CompletionRequest"
    prompt: str = ""
    suffix: str = ""
    logprobs: int | None = None

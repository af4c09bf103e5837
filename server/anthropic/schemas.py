"""Requests of Anthropic's API as they stand on the wire, as far as Ollama reads them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from server.wire.go_decode import GoModel, GoType

_Arguments = Annotated[dict[str, Any], GoType("api.ToolCallFunctionArguments")]


class AnthropicModel(GoModel):
    go_package: ClassVar[str] = "anthropic"


class ImageSource(AnthropicModel):
    go_name: ClassVar[str] = "ImageSource"
    type: str = ""
    data: str = ""


class ContentBlock(AnthropicModel):
    """Text, a thought, an image, a call of a tool, or the result of one."""

    go_name: ClassVar[str] = "ContentBlock"
    type: str = ""
    text: str = ""
    thinking: str = ""
    source: ImageSource | None = None
    id: str = ""
    name: str = ""
    input: _Arguments = Field(default_factory=dict)
    tool_use_id: str = ""
    content: Any = None


class MessageParam(AnthropicModel):
    """One turn. `content` is a string or a list of blocks."""

    go_name: ClassVar[str] = "MessageParam"
    role: str = ""
    content: Any = None


class Tool(AnthropicModel):
    go_name: ClassVar[str] = "Tool"
    type: str = ""
    name: str = ""
    description: str = ""
    input_schema: Annotated[Any, GoType("json.RawMessage")] = None


class ThinkingConfig(AnthropicModel):
    """`type` is enabled, disabled or adaptive. A budget changes nothing: RWKV models know none."""

    go_name: ClassVar[str] = "ThinkingConfig"
    type: str = ""
    budget_tokens: int = 0


class OutputConfig(AnthropicModel):
    go_name: ClassVar[str] = "OutputConfig"
    effort: str = ""


class CountTokensRequest(AnthropicModel):
    """What a prompt is made of."""

    go_name: ClassVar[str] = "CountTokensRequest"
    model: str = ""
    messages: Annotated[list[MessageParam], GoType("[]anthropic.MessageParam")] = Field(
        default_factory=list
    )
    system: Any = None
    tools: Annotated[list[Tool], GoType("[]anthropic.Tool")] = Field(default_factory=list)
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    go_name: ClassVar[str] = "MessagesRequest"
    max_tokens: int = 0
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] = Field(default_factory=list)

"""Requests of `/v1/responses` as they stand on the wire, as far as they are read."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from server.openai.schemas import OpenAIModel
from server.wire.go_decode import GoType

AnyMap = Annotated[dict[str, Any], GoType("map[string]interface {}")]


class ResponsesReasoning(OpenAIModel):
    go_name: ClassVar[str] = "ResponsesReasoning"
    effort: str = ""
    summary: str = ""


class ResponsesTextFormat(OpenAIModel):
    go_name: ClassVar[str] = "ResponsesTextFormat"
    type: str = ""
    name: str = ""
    text_schema: Annotated[Any, GoType("json.RawMessage")] = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponsesText(OpenAIModel):
    go_name: ClassVar[str] = "ResponsesText"
    format: ResponsesTextFormat | None = None


class ResponsesTool(OpenAIModel):
    """A function; or, of type "namespace", several whose names begin with its own."""

    go_name: ClassVar[str] = "ResponsesTool"
    type: str = ""
    name: str = ""
    description: str | None = None
    strict: bool | None = None
    parameters: AnyMap | None = None
    tools: list[ResponsesTool] = Field(default_factory=list)


class ResponsesRequest(OpenAIModel):
    """`input` is a string or a list of items. Responses are not stored: whoever wants one to go on
    sends the whole conversation.
    """

    go_name: ClassVar[str] = "ResponsesRequest"
    model: str = ""
    background: bool = False
    conversation: Any = None
    previous_response_id: str = ""
    input: Any = None
    instructions: str = ""
    max_output_tokens: int | None = None
    reasoning: ResponsesReasoning = ResponsesReasoning()
    temperature: float | None = None
    text: ResponsesText | None = None
    top_p: float | None = None
    truncation: str | None = None
    tools: list[ResponsesTool] = Field(default_factory=list)
    stream: bool = False

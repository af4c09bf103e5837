"""What every kind of chat template can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from rwkv_core.chat.messages import Message, Think


class ThinkingTags(NamedTuple):
    """What stands around a thought in a reply."""

    opening: str
    closing: str


@dataclass(frozen=True)
class TemplateChat:
    """A conversation to render. `think` None: neither asked for nor refused."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    think: Think | None = None


class ChatTemplate(Protocol):
    """Safe to share between threads. Rendering is bounded in time and output."""

    @property
    def text(self) -> str:
        """The template itself."""

    @property
    def thinking_tags(self) -> ThinkingTags | None:
        """None for a template that knows no thoughts."""

    @property
    def tool_tag(self) -> str | None:
        """What a call of a tool begins with in a reply; None for a template without tools."""

    @property
    def can_insert(self) -> bool:
        """Whether it has a place for the text behind the one that is to be written."""

    def render(self, chat: TemplateChat) -> str:
        """The prompt for the next turn. Raises TemplateError."""

    def render_insert(self, prompt: str, suffix: str, think: Think | None) -> str:
        """The prompt for what stands between two texts. Raises TemplateError."""

"""A conversation through a TEMPLATE, as Ollama applies it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rwkv_core.chat.messages import Think
from server.chat_templates import go_tree
from server.chat_templates.base import TemplateChat, ThinkingTags
from server.chat_templates.go_values import collated, message_value, think_values, tools_value
from server.go_template import Template, parse
from server.go_template.nodes import Action, Command, Field, Pipe


@dataclass(frozen=True)
class GoChatTemplate:
    """A template with `.Messages` is rendered once. An older one knows `.System`, `.Prompt` and
    `.Response`, and is rendered for each exchange, the last time up to where the reply begins.
    """

    template: Template

    @property
    def text(self) -> str:
        return self.template.text

    @cached_property
    def _names(self) -> frozenset[str]:
        return go_tree.variable_names(self.template)

    @cached_property
    def thinking_tags(self) -> ThinkingTags | None:
        return go_tree.thinking_tags(self.template)

    @cached_property
    def tool_tag(self) -> str | None:
        return go_tree.tool_tag(self.template) if "tools" in self._names else None

    @property
    def can_insert(self) -> bool:
        return "suffix" in self._names

    def render(self, chat: TemplateChat) -> str:
        system, messages = collated(chat.messages)
        values = {"Response": "", **think_values(chat.think)}
        if "messages" not in self._names:
            return self._render_exchanges(chat, values)
        values["System"] = system
        values["Messages"] = [message_value(message) for message in messages]
        values["Tools"] = tools_value(chat.tools)
        return self.template.render(values)

    def render_insert(self, prompt: str, suffix: str, think: Think | None) -> str:
        values = {"Prompt": prompt, "Suffix": suffix, "Response": "", **think_values(think)}
        return self._with_response.render(values)

    @cached_property
    def _with_response(self) -> Template:
        """Ollama adds `{{ .Response }}` to a template that has no place for it."""
        if self._names & {"messages", "response"}:
            return self.template
        end = len(self.text)
        pipe = Pipe(end, (Command(end, (Field(end, ("Response",)),)),))
        root = self.template.root
        return replace(self.template, root=replace(root, nodes=(*root.nodes, Action(end, pipe))))

    def _render_exchanges(self, chat: TemplateChat, values: dict[str, Any]) -> str:
        parts: list[str] = []
        exchange = {"System": "", "Prompt": "", "Response": ""}

        def finish(template: Template) -> None:
            parts.append(template.render({**values, **exchange}))
            exchange.update(System="", Prompt="", Response="")

        for message in collated(chat.messages)[1]:
            if message.role == "system":
                if exchange["Prompt"] or exchange["Response"]:
                    finish(self._with_response)
                exchange["System"] = message.content
            elif message.role == "user":
                if exchange["Response"]:
                    finish(self._with_response)
                exchange["Prompt"] = message.content
            elif message.role == "assistant":
                exchange["Response"] = message.content
        root = go_tree.cut_behind_response(self._with_response.root)
        finish(replace(self._with_response, root=root))
        return "".join(parts)


def parse_go_template(text: str) -> GoChatTemplate:
    """Raises TemplateError, with the line."""
    return GoChatTemplate(parse(text))

"""Prompts out of a model's own template: Ollama's TEMPLATE in Go, or a chat_template in Jinja."""

from server.chat_templates.base import ChatTemplate, TemplateChat, ThinkingTags
from server.chat_templates.choice import model_template, request_template

__all__ = [
    "ChatTemplate",
    "TemplateChat",
    "ThinkingTags",
    "model_template",
    "request_template",
]

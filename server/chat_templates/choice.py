"""Which template a model is prompted with: its own, or (None) the built-in format."""

from __future__ import annotations

from functools import lru_cache

from rwkv_core.chat.prompt_format import choose_prompt_format
from rwkv_core.checkpoint.gguf_vocabulary import BUILT_IN_CHAT_TEMPLATE
from rwkv_core.checkpoint.metadata_keys import CHAT_TEMPLATE_KEY
from server.chat_templates.base import ChatTemplate
from server.chat_templates.go_chat import GoChatTemplate, parse_go_template
from server.chat_templates.jinja_chat import JinjaChatTemplate
from server.store.gguf_facts import GGUFFacts

# What Ollama writes into a model when it knows no template for it.
_TRIVIAL = frozenset({"{{.Prompt}}", "{{.Prompt}}{{.Response}}"})
# Longer texts are parsed each time rather than remembered.
_MAX_REMEMBERED_CHARS = 1 << 16


def model_template(go_text: str, facts: GGUFFacts, *names: str) -> ChatTemplate | None:
    """The template in force for a model; None for the built-in format that fits `names`.

    `go_text` is the model's TEMPLATE: what its author or user has set comes first. The template
    inside the file comes second, and only for a file of which no built-in format knows the name.

    Raises TemplateError for a TEMPLATE that is none.
    """
    if is_own(go_text):
        return request_template(go_text)
    jinja = facts.metadata.get(CHAT_TEMPLATE_KEY)
    if not isinstance(jinja, str) or not _is_jinja(jinja) or _is_known(names):
        return None
    return JinjaChatTemplate(jinja, facts.bos, facts.eos)


def request_template(text: str) -> GoChatTemplate:
    """Raises TemplateError for what is no Go template."""
    return _remembered(text) if len(text) <= _MAX_REMEMBERED_CHARS else parse_go_template(text)


def is_own(go_text: str) -> bool:
    """Whether a TEMPLATE says more than that the prompt is the prompt."""
    return bool(go_text.strip()) and "".join(go_text.split()) not in _TRIVIAL


_remembered = lru_cache(maxsize=64)(parse_go_template)


def _is_jinja(text: str) -> bool:
    """Not the name of a template, such as "rwkv-world", nor the one that our own writer adds."""
    return ("{{" in text or "{%" in text) and text.strip() != BUILT_IN_CHAT_TEMPLATE.strip()


def _is_known(names: tuple[str, ...]) -> bool:
    chosen = choose_prompt_format(*names)
    return any(chosen.matches(name) for name in names)

"""Judges what a model wrote after a dialogue's prompt."""

from __future__ import annotations

from rwkv_core.chat.messages import Think
from rwkv_core.chat.reply import ReplyKind, ReplyParser
from rwkv_core.demo.dialogues import Dialogue, Mode, prompt_format


def content_of(dialogue: Dialogue, text: str) -> str:
    """The reply without its thought; the text of a forced tool call as it is."""
    if dialogue.mode is Mode.TOOL_CALL:
        return text
    think = Think.OFF if dialogue.mode is Mode.NO_THINK else dialogue.level
    parser = ReplyParser(prompt_format(dialogue.mode), think)
    parts = [*parser.push(text), *parser.flush()]
    return "".join(part.text for part in parts if part.kind is ReplyKind.CONTENT).strip()


def is_right(dialogue: Dialogue, text: str) -> bool:
    """Whether the reply in `text`, the model's whole completion, says what was expected."""
    return dialogue.expected.is_met_by(content_of(dialogue, text))


def is_thought_closed(text: str) -> bool:
    """Whether a thinking model's completion leaves its thought, once."""
    return text.count("</think>") == 1

"""What a right answer must hold, so that evaluation judges the meaning and not one wording."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from rwkv_core.chat.messages import ToolCall

_CALL = re.compile(r"\{.*\}", re.DOTALL)
_NUMBER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Expected:
    """Exactly one of the fields is set."""

    values: tuple[str, ...] = ()  # every one must stand in the reply as a whole word
    number: int | None = None  # the last number of the reply
    call: ToolCall | None = None  # the call's name and all of its arguments
    replies: tuple[str, ...] = ()  # the reply is one of these

    def is_met_by(self, reply: str) -> bool:
        """Whether `reply` is right: no thought in it, and no opening fence before a forced call."""
        if self.call is not None:
            return _read_call(reply) == self.call
        if self.number is not None:
            numbers = _NUMBER.findall(reply)
            return bool(numbers) and int(numbers[-1]) == self.number
        if self.replies:
            return reply.strip() in self.replies
        return all(_has_word(reply, value) for value in self.values)


def _read_call(reply: str) -> ToolCall | None:
    found = _CALL.search(reply)
    try:
        data = json.loads(found.group()) if found else None
        return ToolCall(data["name"], data["arguments"]) if data else None
    except (ValueError, KeyError, TypeError):
        return None


def _has_word(text: str, value: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(value)}(?!\w)", text) is not None

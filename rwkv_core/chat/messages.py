"""The conversation as the engine sees it, free of any wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant", "tool"]


class Think(Enum):
    """How much a thinking model should think before it replies."""

    OFF = "off"
    ON = "on"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    MAX = "max"


@dataclass(frozen=True)
class ToolCall:
    """A function the model asks the client to call."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""  # the client's, where the call comes back from it


class Message(NamedTuple):
    """One turn. `thinking` is kept for the client's sake; a prompt never repeats it.

    A tuple, as those of a long chat are made for each of its requests.
    """

    role: Role
    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""

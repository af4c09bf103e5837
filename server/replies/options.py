"""Ollama's `options`: checked, merged with the model's parameters, in the engine's types."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rwkv_core.errors import OptionError
from rwkv_core.sampling_options import SamplingOptions
from server.creating.modelfile import PARAMETER_TYPES
from server.wire.errors import ApiError
from server.wire.go_text import go_quote

log = logging.getLogger(__name__)

NO_LIMIT = -1
FILL_CONTEXT = -2

_GO_NAMES = {int: "integer", float: "float32", bool: "boolean", list: "array"}
_SAMPLING = {each.name for each in fields(SamplingOptions)}


@dataclass(frozen=True)
class Options:
    """What a request asks of the engine. `num_ctx` is None unless it was set; it cuts nothing.

    `draft_num_predict` is None unless it was set: then the model's default counts.
    """

    sampling: SamplingOptions
    num_predict: int
    stops: tuple[str, ...]
    num_ctx: int | None
    draft_num_predict: int | None = None

    def max_new_tokens(self, num_prompt_tokens: int, context_length: int) -> int | None:
        """The engine's limit; None for none.

        `context_length` is what the model was trained on, 0 if unknown.
        """
        context = self.num_ctx or context_length
        if self.num_predict == FILL_CONTEXT and context:
            return max(1, context - num_prompt_tokens)
        return self.num_predict if self.num_predict > 0 else None


def read_options(parameters: Mapping[str, Any], requested: Mapping[str, Any]) -> Options:
    """The request's options over the model's parameters over Ollama's defaults.

    Raises ApiError (400) for a wrong type, OptionError for a value outside its range. What is not
    known is only mentioned in the log, as Ollama does.
    """
    values = _checked(parameters) | _checked(requested)
    draft_num_predict = values.get("draft_num_predict")
    if draft_num_predict is not None and draft_num_predict < 0:
        raise OptionError(f"option draft_num_predict must be at least 0, not {draft_num_predict}")
    return Options(
        sampling=SamplingOptions(
            **{key: value for key, value in values.items() if key in _SAMPLING}
        ),
        num_predict=values.get("num_predict", NO_LIMIT),
        stops=tuple(stop for stop in values.get("stop", ()) if stop),
        num_ctx=max(values.get("num_ctx", 0), 0) or None,
        draft_num_predict=draft_num_predict,
    )


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in PARAMETER_TYPES:
            log.warning("invalid option provided: %s", go_quote(key))
        elif value is not None:
            values[key] = _typed(key, value, PARAMETER_TYPES[key])
    return values


def _typed(key: str, value: Any, kind: type) -> Any:
    """`value` as Go stores it: any number fits a float, and an integer once its fraction is cut."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in (int, float) and is_number:
        return kind(value)
    if kind is list and isinstance(value, list):
        if not all(isinstance(each, str) for each in value):
            raise ApiError(400, f"option {go_quote(key)} must be of an array of strings")
        return value
    if kind is bool and isinstance(value, bool):
        return value
    raise ApiError(400, f"option {go_quote(key)} must be of type {_GO_NAMES[kind]}")

"""The reply to `/v1/chat/completions`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

from sse_starlette import ServerSentEvent

from server.openai.errors import openai_error
from server.openai.schemas import ChatCompletionRequest
from server.replies.generation import Final, Piece
from server.replies.tool_calls import NumberedCall, tool_call_json
from server.wire.answers import Json, logprobs_json
from server.wire.event_stream import comment, event, text_event
from server.wire.reply_ids import new_id

FINGERPRINT = "fp_ollama"
END = "[DONE]"
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


class ChatWriter:
    """Implements `ReplyWriter`."""

    def __init__(self, asked: ChatCompletionRequest) -> None:
        self._model = asked.model
        self._with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._id = new_id("chatcmpl", "-")
        self._created = int(time.time())
        self._has_begun = False
        self._has_called = False

    def whole(self, piece: Piece) -> Json:
        assert piece.final is not None  # a whole reply is over
        message: Json = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["reasoning"] = piece.thinking
        if piece.tool_calls:
            message["tool_calls"] = [call_json(call) for call in piece.tool_calls]
        self._has_called = bool(piece.tool_calls)
        choice = {"index": 0, "message": message, "finish_reason": self._reason(piece.final)}
        choice |= _logprobs(piece)
        return self._object("chat.completion", [choice]) | {"usage": usage(piece.final)}

    def debug(self, prompt: str) -> Json:
        """What would be read, in place of a reply."""
        message = {"role": "", "content": ""}
        answer = self._object(
            "chat.completion", [{"index": 0, "message": message, "finish_reason": None}]
        )
        return answer | {"usage": NO_USAGE, "_debug_info": {"rendered_template": prompt}}

    def events(self, piece: Piece) -> Iterator[ServerSentEvent]:
        deltas: list[Json] = []
        if piece.thinking:
            deltas.append({"reasoning": piece.thinking})
            if not (piece.content or piece.tool_calls):
                deltas[0] = {"content": ""} | deltas[0]
        is_first = not (self._has_begun or deltas)
        if piece.content or piece.tool_calls or is_first or (piece.logprobs and not deltas):
            deltas.append({"content": piece.content})
        if piece.tool_calls:
            deltas[-1]["tool_calls"] = [call_json(call) for call in piece.tool_calls]
            self._has_called = True
        extra = _logprobs(piece)
        for delta in deltas:
            begun = delta if self._has_begun else {"role": "assistant"} | delta
            yield self._chunk(begun, None, extra)
            self._has_begun, extra = True, {}
        if piece.final:
            yield self._chunk({}, self._reason(piece.final), {})
            if self._with_usage:
                chunk = self._object("chat.completion.chunk", []) | {"usage": usage(piece.final)}
                yield event(chunk)
            yield text_event(END)

    def failed(self, status: int, message: str) -> Iterator[ServerSentEvent]:
        yield event(openai_error(status, message))

    def ping(self) -> ServerSentEvent:
        return comment("ping")

    def _chunk(self, delta: Json, reason: str | None, extra: Json) -> ServerSentEvent:
        choice = {"index": 0, "delta": delta, "finish_reason": reason} | extra
        return event(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        }

    def _reason(self, final: Final) -> str:
        is_call = self._has_called and final.reason == "stop"
        return "tool_calls" if is_call else final.reason


def call_json(numbered: NumberedCall) -> Json:
    """A call as it goes out: its arguments are JSON in a string."""
    call = tool_call_json(numbered)
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    function = {"name": name, "arguments": text}
    return {"id": call["id"], "index": numbered.index, "type": "function", "function": function}


def _logprobs(piece: Piece) -> Json:
    """Ollama's form of them, with the fields that OpenAI's clients insist on."""
    if not piece.logprobs:
        return {}
    whole: Json = {"bytes": None, "top_logprobs": []}
    content = [whole | each for each in logprobs_json(piece.logprobs)]
    return {"logprobs": {"content": content}}


def usage(final: Final) -> Json:
    """Counts in OpenAI's shape; those of reused tokens too, which Ollama does not say."""
    num_prompt, num_generated = final.stats.num_prompt_tokens, final.stats.num_generated_tokens
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": final.stats.num_cached_tokens},
    }

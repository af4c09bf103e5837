"""One conversation with a model: what has been said, how to ask, and asking."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TextIO

from server.cli.client import Client, Json
from server.cli.terminal import ReplyWriter, Spinner
from server.creating.modelfile import ParameterValue
from server.human import go_duration

_SECOND_NS = 10**9


@dataclass
class Chat:
    """The settings and turns of a conversation; commands of the user change it in place."""

    model: str
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    options: dict[str, ParameterValue] = field(default_factory=dict)
    think: bool | str | None = None  # None leaves it to the server: on where the model can
    keep_alive: int | str | None = None
    format: Any = None  # "json", a schema, or None for free text
    hides_thinking: bool = False
    is_verbose: bool = False
    wraps_words: bool = True

    def request(self) -> dict[str, Any]:
        """The body of a chat request."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.turns],
            "options": self.options,
        }
        if self.think is not None:
            body["think"] = self.think
        if self.keep_alive is not None:
            body["keep_alive"] = self.keep_alive
        if self.format is not None:
            body["format"] = self.format
        return body

    def saved_as(self, name: str, info: Json) -> dict[str, Any]:
        """The body of a create request: this model, as `info` shows it, with what was set and said
        here.
        """
        body: dict[str, Any] = {"model": name, "from": self.model}
        if self.system:
            body["system"] = self.system
        if self.options:
            body["parameters"] = self.options
        if self.turns:
            body["messages"] = [*(info.get("messages") or []), *self.turns]
        return body

    def ask(self, client: Client, text: str, out: TextIO, notes: TextIO) -> bool:
        """Say `text` and write the reply to `out` as it streams; False when Ctrl-C stopped it.

        What was answered before Ctrl-C stays part of the chat; a question without any answer, or
        with an error for one, is taken back. Raises what the client raises.
        """
        self.turns.append({"role": "user", "content": text})
        reply = _Reply(self, out, notes)
        try:
            with closing(client.chat(self.request())) as chunks:
                for chunk in chunks:
                    reply.push(chunk)
        except KeyboardInterrupt:
            reply.is_stopped = True
        except BaseException:
            self.turns.pop()
            raise
        finally:
            reply.finish()
        if reply.text:
            self.turns.append({"role": "assistant", "content": reply.text})
        elif reply.is_stopped:
            self.turns.pop()
        if self.is_verbose and not reply.is_stopped:
            print("\n".join(timings(reply.last_chunk)), file=notes)
        return not reply.is_stopped


class _Reply:
    """A reply on its way to the terminal."""

    def __init__(self, chat: Chat, out: TextIO, notes: TextIO) -> None:
        self._writer = ReplyWriter(out, wrap=chat.wraps_words, hide_thinking=chat.hides_thinking)
        self._hides_thinking = chat.hides_thinking
        self._spinner = Spinner(notes)
        self.text = ""
        self.last_chunk: Json = {}
        self.is_stopped = False

    def push(self, chunk: Json) -> None:
        message = chunk.get("message") or {}
        thinking, content = message.get("thinking") or "", message.get("content") or ""
        if content or (thinking and not self._hides_thinking):
            self._spinner.stop()
        self._writer.thinking(thinking)
        self._writer.content(content)
        self.text += content
        self.last_chunk = chunk

    def finish(self) -> None:
        self._spinner.stop()
        self._writer.finish()


def timings(chunk: Json) -> list[str]:
    """The last chunk's durations, counts and rates, line by line as Ollama prints them."""
    prompt_count, prompt_ns = (chunk.get(f"prompt_eval_{key}", 0) for key in ("count", "duration"))
    count, eval_ns = chunk.get("eval_count", 0), chunk.get("eval_duration", 0)
    lines = []
    for key in ("total", "load"):
        if nanoseconds := chunk.get(f"{key}_duration", 0):
            lines.append(f"{f'{key} duration:':<22}{go_duration(nanoseconds)}")
    for key, num_tokens, nanoseconds in (
        ("prompt eval", prompt_count, prompt_ns),
        ("eval", count, eval_ns),
    ):
        if num_tokens:
            lines.append(f"{f'{key} count:':<22}{num_tokens} token(s)")
        if nanoseconds:
            lines.append(f"{f'{key} duration:':<22}{go_duration(nanoseconds)}")
            rate = num_tokens * _SECOND_NS / nanoseconds
            lines.append(f"{f'{key} rate:':<22}{rate:.2f} tokens/s")
    return lines

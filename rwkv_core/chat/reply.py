"""Takes a streamed reply apart into the thought and the content, without leaking a tag.

A prompt of a thinking format ends inside an open tag ("<think" or "<think></think"), so a reply
begins with the ">" that closes it. Tags may arrive cut anywhere; text is held back only while it
may still turn out to be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import PromptFormat

TAG_END = ">"


class ReplyKind(Enum):
    """What a piece of a reply is."""

    THINKING = "thinking"
    CONTENT = "content"


@dataclass(frozen=True)
class ReplyPart:
    """A piece of a reply, never empty."""

    kind: ReplyKind
    text: str


@dataclass(frozen=True)
class Preamble:
    """What a reply has before its content: the rest of what the prompt has begun, and a thought."""

    literal: str = ""
    closing: str | None = None  # the tag that ends the thought; None for no thought


def format_preamble(fmt: PromptFormat, think: Think | None) -> Preamble:
    """Of a reply to a prompt in a built-in format. `think` None: it is nothing but content."""
    if fmt.thinking is None or think is None:
        return Preamble()
    return Preamble(TAG_END, None if think is Think.OFF else fmt.thinking.close)


def tagged_preamble(prompt: str, opening: str, closing: str, think: Think | None) -> Preamble:
    """Of a reply to a prompt out of a model's own template, as `TaggedReplyParser` reads it.

    A thought that nobody wants, and that the prompt has begun, is closed at once. One that is
    wanted, and that the prompt has left to the model, is begun.
    """
    if think is None or prompt.rstrip().endswith(closing):
        return Preamble()
    written = _written_by_prompt(prompt, (opening, closing))
    if not opening.startswith(written):
        return Preamble(closing[len(written) :])
    if think is not Think.OFF:
        return Preamble(opening[len(written) :], closing)
    return Preamble(opening[len(written) :] + closing) if written else Preamble()


class _Where(Enum):
    """The place in the reply."""

    OPEN_TAG = auto()  # the ">" of the tag that the prompt left open comes next
    THOUGHT_START = auto()  # inside the thought, nothing of it seen but white space
    THOUGHT = auto()
    SEAM = auto()  # before the content: white space and stray tags are dropped
    CONTENT = auto()  # all further text passes unchanged


class ReplyParser:
    """Give it a reply's text piece by piece; the parts are the same however the text is cut.

    White space around the thought and before the content is dropped. A thought that is never closed
    is all THINKING. A reply that does not begin with ">" (the continuation of a message that the
    client began) is all content.
    """

    def __init__(self, fmt: PromptFormat | None, think: Think | None = None) -> None:
        """`think` as it was given to `render_chat`: None means ON where the format can think."""
        thinking = fmt.thinking if fmt else None
        self._held = ""
        self._is_thinking = thinking is not None and think is not Think.OFF
        self._tags = (f"{thinking.on}{TAG_END}", thinking.close) if thinking else None
        self._where = _Where.OPEN_TAG if self._tags else _Where.SEAM

    def push(self, text: str) -> list[ReplyPart]:
        """Takes the next piece; returns what is now certain."""
        self._held += text
        parts: list[ReplyPart] = []
        while self._step(parts):
            pass
        return parts

    def flush(self) -> list[ReplyPart]:
        """The reply is over: what was held back is text, unless it is white space or half a tag."""
        held, self._held = self._held, ""
        text = held.strip()
        is_half_tag = self._tags is not None and any(
            len(text) > 1 and tag.startswith(text) for tag in self._tags
        )
        if self._where is _Where.SEAM and text and not is_half_tag:
            return [ReplyPart(ReplyKind.CONTENT, text)]
        return []

    def _step(self, parts: list[ReplyPart]) -> bool:
        """Moves on by one place if the held text allows it."""
        if self._where is _Where.OPEN_TAG:
            return self._leave_open_tag()
        if self._where is _Where.THOUGHT_START:
            self._held = self._held.lstrip()
            if self._held:
                self._where = _Where.THOUGHT
            return bool(self._held)
        if self._where is _Where.THOUGHT:
            return self._read_thought(parts)
        if self._where is _Where.SEAM:
            return self._cross_seam()
        if self._held:
            parts.append(ReplyPart(ReplyKind.CONTENT, self._held))
            self._held = ""
        return False

    def _leave_open_tag(self) -> bool:
        if not self._held:
            return False
        if not self._held.startswith(TAG_END):
            self._where = _Where.CONTENT
            return True
        self._held = self._held[len(TAG_END) :]
        self._where = _Where.THOUGHT_START if self._is_thinking else _Where.SEAM
        return True

    def _read_thought(self, parts: list[ReplyPart]) -> bool:
        """Gives out the thought up to its closing tag, holding back white space and half a tag."""
        assert self._tags is not None  # only a format with tags comes here
        close = self._tags[1]
        end = self._held.find(close)
        is_closed = end >= 0
        if not is_closed:
            end = len(self._held) - overlap(self._held, close)
        thought = self._held[:end].rstrip()
        if thought:
            parts.append(ReplyPart(ReplyKind.THINKING, thought))
        self._held = self._held[end + len(close) :] if is_closed else self._held[len(thought) :]
        if is_closed:
            self._where = _Where.SEAM
        return is_closed

    def _cross_seam(self) -> bool:
        """Drops white space and tags before the content; an opening tag begins a new thought."""
        self._held = self._held.lstrip()
        for tag in self._tags or ():
            if self._held.startswith(tag):
                self._held = self._held[len(tag) :]
                is_opening = self._tags is not None and tag == self._tags[0]
                self._where = _Where.THOUGHT_START if is_opening else _Where.SEAM
                return True
            if tag.startswith(self._held):  # half of a tag, or nothing at all
                return False
        if self._held:
            self._where = _Where.CONTENT
        return bool(self._held)


class TaggedReplyParser(ReplyParser):
    """For a reply to a prompt out of a model's own template, whose end decides how it begins.

    The prompt may have opened the thought, or half a tag ("<"), or nothing: then the model does,
    or does not. A template that has closed an empty thought gets content.
    """

    def __init__(self, prompt: str, opening: str, closing: str) -> None:
        super().__init__(None)
        self._tags = (opening, closing)
        self._is_thinking = True
        self._where = _Where.SEAM
        # Read as if it were the reply's, and taken back when it turns out to be no tag.
        self._written = _written_by_prompt(prompt, self._tags)
        self._held = self._written

    def flush(self) -> list[ReplyPart]:
        if self._where is _Where.SEAM:
            self._held = self._held.removeprefix(self._written)
        return super().flush()

    def _cross_seam(self) -> bool:
        has_moved = super()._cross_seam()
        if self._where is _Where.CONTENT:
            self._held = self._held.removeprefix(self._written)
        if has_moved:
            self._written = ""
        return has_moved


def _written_by_prompt(prompt: str, tags: tuple[str, str]) -> str:
    """The tag, or the beginning of one, that a prompt ends with."""
    if prompt.rstrip().endswith(tags[0]):
        return tags[0]
    # A tag that begins with a letter is none before it is whole: words end in letters, too.
    sizes = (overlap(prompt, tag) for tag in tags if not tag[0].isalnum())
    return prompt[len(prompt) - max(sizes, default=0) :]


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)

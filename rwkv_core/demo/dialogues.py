"""The demo's training data: an endless, seeded stream of short dialogues in G1's prompt format."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rwkv_core.chat.messages import Message, Think, ToolCall
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format
from rwkv_core.chat.render import chat_parts
from rwkv_core.demo import arithmetic, recall, small_talk, tools
from rwkv_core.demo.expected import Expected


class Mode(Enum):
    """How the prompt ends."""

    PLAIN = "Assistant:"
    THINK = "Assistant: <think"
    NO_THINK = "Assistant: <think></think"
    TOOL_CALL = "Assistant: ```json"


@dataclass(frozen=True)
class Segment:
    """Prompt text, or (`is_target`) text the model writes, after which it must emit token 0."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to one reply, the right continuation, and how to judge another one.

    `completion` is everything after the prompt, from its first character on. `level` is the
    thinking a client asked for, Think.ON unless it named a level.
    """

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    mode: Mode
    completion: str
    expected: Expected
    level: Think = Think.ON


# Shares of the kinds. Recall and thinking arithmetic need the most practice; a drill holds many of
# the facts that the steps of that arithmetic are.
KIND_WEIGHTS: Mapping[str, float] = {
    "recall": 0.30,
    "arithmetic": 0.22,
    "drill": 0.16,
    "tool_call": 0.10,  # the call is forced by the prompt
    "tool_choice": 0.06,  # the model decides whether to call
    "tool_result": 0.06,
    "identity": 0.05,
    "small_talk": 0.05,
}
# For the end of training: tools, whose arguments are copied from the rarest words, come more often.
POLISH_WEIGHTS: Mapping[str, float] = {
    "recall": 0.22,
    "arithmetic": 0.12,
    "drill": 0.04,
    "tool_call": 0.24,
    "tool_choice": 0.24,
    "tool_result": 0.06,
    "identity": 0.04,
    "small_talk": 0.04,
}
MODE_WEIGHTS: Mapping[Mode, float] = {Mode.THINK: 0.4, Mode.NO_THINK: 0.3, Mode.PLAIN: 0.3}
# Sums are thought through more often: a bare answer to a long one is mostly beyond the model.
ARITHMETIC_MODE_WEIGHTS: Mapping[Mode, float] = {
    Mode.THINK: 0.7,
    Mode.NO_THINK: 0.15,
    Mode.PLAIN: 0.15,
}
SMALL_PROBLEM_SHARE = 0.5  # of the sums in earlier turns, which are all answered directly
LEVEL_SHARE = 0.1  # of the thinking dialogues carry " (think a bit)" or " (think a lot)"
SYSTEM_SHARE = 1 / 3
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are rwkv7-demo.",
    "Answer briefly.",
    "You are a helpful AI. Be polite.",
    "Help the user as well as you can.",
    "Be kind and short.",
)
# How many turns lie between the last fact told and the question for it, 0 to 7.
GAP_WEIGHTS = (22, 18, 14, 12, 10, 9, 8, 7)
NO_TOOL_REPLY = "I have no tool for that."

_GAPS = tuple(range(len(GAP_WEIGHTS)))


def generate(
    seed: int,
    kind: str | None = None,
    mode: Mode | None = None,
    *,
    weights: Mapping[str, float] = KIND_WEIGHTS,
) -> Iterator[Dialogue]:
    """Endless dialogues, the same for the same arguments; only of one `kind` or `mode` if given.

    The kind "tool_call" always has Mode.TOOL_CALL, and no other kind ever has.
    """
    rng = random.Random(seed)
    while True:
        chosen = kind or rng.choices(tuple(weights), tuple(weights.values()))[0]
        modes = ARITHMETIC_MODE_WEIGHTS if chosen == "arithmetic" else MODE_WEIGHTS
        drawn = mode or rng.choices(tuple(modes), tuple(modes.values()))[0]
        yield _BUILDERS[chosen](rng, drawn)


def prompt_format(mode: Mode) -> PromptFormat:
    """G1's format as it is shipped; PLAIN is the same without thinking."""
    return _PLAIN_FORMAT if mode is Mode.PLAIN else _FORMAT


def prompt_segments(dialogue: Dialogue) -> list[Segment]:
    """The rendered prompt, cut at the earlier replies, which are targets too."""
    parts = chat_parts(
        prompt_format(dialogue.mode),
        dialogue.messages,
        think=Think.OFF if dialogue.mode is Mode.NO_THINK else dialogue.level,
        tools=dialogue.tools,
        force_tool_call=dialogue.mode is Mode.TOOL_CALL,
    )
    merged: list[Segment] = []
    for part in parts:
        if merged and merged[-1].is_target == part.is_reply:
            merged[-1] = Segment(merged[-1].text + part.text, part.is_reply)
        else:
            merged.append(Segment(part.text, part.is_reply))
    return merged


def prompt_text(dialogue: Dialogue) -> str:
    """The prompt, byte for byte what the server sends for these messages."""
    return "".join(segment.text for segment in prompt_segments(dialogue))


def training_segments(dialogue: Dialogue) -> list[Segment]:
    """Prompt and completion; token 0 is the label at the end of every target."""
    return [*prompt_segments(dialogue), Segment(dialogue.completion, True)]


def complete(mode: Mode, thought: str, reply: str) -> str:
    """What the model writes after a prompt of this mode, the `>` of an open tag included."""
    if mode is Mode.THINK:
        return f">{thought}</think>\n{reply}"
    return f">\n{reply}" if mode is Mode.NO_THINK else f" {reply}"


@dataclass
class _History:
    """The messages so far, begun with a system prompt now and then."""

    rng: random.Random
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rng.random() < SYSTEM_SHARE:
            self.messages.append(Message("system", self.rng.choice(SYSTEM_PROMPTS)))

    def exchange(self, ask: str, reply: str) -> None:
        self.messages += [Message("user", ask), Message("assistant", reply)]

    def small_talk(self, share: float) -> None:
        """With probability `share` one exchange, and half as probably a second."""
        while self.rng.random() < share:
            talk = small_talk.filler(self.rng)
            self.exchange(talk.ask, talk.reply)
            share /= 2

    def tool_use(self, offered: list[tools.Tool], *, is_answered: bool = True) -> tools.Request:
        """A request, its call and result, and the reply to it if `is_answered`."""
        request = tools.request(self.rng, self.rng.choice(offered))
        self.messages += [
            Message("user", request.ask),
            Message("assistant", tool_calls=(request.call,)),
            Message("tool", request.result, tool_name=request.call.name),
        ]
        if is_answered:
            self.messages.append(Message("assistant", request.reply))
        return request

    def before_tools(self, offered: list[tools.Tool]) -> None:
        """What may come before a request for a tool: small talk, or another use of the tools."""
        self.small_talk(0.15)
        if self.rng.random() < 0.12:
            self.tool_use(offered)

    def end(
        self,
        kind: str,
        mode: Mode,
        ask: str,
        completion: str,
        expected: Expected,
        *,
        schemas: tuple[dict[str, Any], ...] = (),
    ) -> Dialogue:
        """The dialogue whose last user message is `ask`; an empty `ask` adds none."""
        last = (Message("user", ask),) if ask else ()
        level = Think.ON
        if mode is Mode.THINK and self.rng.random() < LEVEL_SHARE:
            level = self.rng.choice((Think.LOW, Think.HIGH))
        messages = (*self.messages, *last)
        return Dialogue(kind, messages, schemas, mode, completion, expected, level)


def _recall(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    history.small_talk(0.3)
    known: recall.Facts = {}
    untold = recall.new_facts(rng, rng.choices((0, 1, 2, 3, 4, 5), (4, 34, 28, 18, 10, 6))[0])
    while untold:
        count = rng.choice((1, 1, 2, 3))
        told, untold = untold[:count], untold[count:]
        known.update({fact.slot: fact for fact in told})
        turn = recall.tell(rng, told)
        history.exchange(turn.ask, turn.reply)
    if known and rng.random() < 0.15:
        turn, fact = recall.correct(rng, known)
        known[fact.slot] = fact
        history.exchange(turn.ask, turn.reply)
    for _ in range(rng.choices(_GAPS, GAP_WEIGHTS)[0]):
        history.exchange(*_between(rng, known))
    last = recall.question(rng, known)
    completion = complete(mode, last.thought, last.reply)
    offered = tools.offer(rng) if rng.random() < 0.05 else []  # tools do not disturb a chat
    schemas = tools.schemas(rng, offered)
    expected = Expected(values=last.values)
    return history.end("recall", mode, last.ask, completion, expected, schemas=schemas)


def _between(rng: random.Random, known: recall.Facts) -> tuple[str, str]:
    """A turn between fact and question: mostly small talk, some sums, some other questions."""
    chance = rng.random()
    if chance < 0.12:
        problem = _earlier_problem(rng)
        return problem.ask, problem.reply
    if chance < 0.24:
        turn = recall.question(rng, known)
        return turn.ask, turn.reply
    talk = small_talk.filler(rng)
    return talk.ask, talk.reply


def _arithmetic(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    history.small_talk(0.2)
    if rng.random() < 0.25:
        earlier = _earlier_problem(rng)
        history.exchange(earlier.ask, earlier.reply)
    problem = arithmetic.problem(rng)
    completion = complete(mode, problem.steps, problem.reply)
    return history.end("arithmetic", mode, problem.ask, completion, Expected(number=problem.answer))


def _earlier_problem(rng: random.Random) -> arithmetic.Problem:
    is_small = rng.random() < SMALL_PROBLEM_SHARE
    return arithmetic.small_problem(rng) if is_small else arithmetic.problem(rng)


def _drill(rng: random.Random, mode: Mode) -> Dialogue:
    ask, reply = arithmetic.drill(rng)
    completion = complete(mode, "I will go through them one by one.", reply)
    return _History(rng).end("drill", mode, ask, completion, Expected(replies=(reply,)))


def _identity(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    history.small_talk(0.3)
    talk = small_talk.identity(rng)
    completion = complete(mode, talk.thought, talk.reply)
    return history.end("identity", mode, talk.ask, completion, Expected(replies=talk.accepted))


def _small_talk(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    history.small_talk(0.4)
    talk = small_talk.chat(rng)
    completion = complete(mode, talk.thought, talk.reply)
    return history.end("small_talk", mode, talk.ask, completion, Expected(replies=talk.accepted))


def _tool_call(rng: random.Random, _: Mode) -> Dialogue:
    history = _History(rng)
    offered = tools.offer(rng)
    history.before_tools(offered)
    request = tools.request(rng, rng.choice(offered))
    completion = f"\n{_call_json(request.call)}\n```"
    schemas = tools.schemas(rng, offered)
    expected = Expected(call=request.call)
    return history.end(
        "tool_call", Mode.TOOL_CALL, request.ask, completion, expected, schemas=schemas
    )


def _tool_choice(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    offered = tools.offer(rng)
    history.before_tools(offered)
    if rng.random() < 0.6:
        request = tools.request(rng, rng.choice(offered))
        ask, thought = request.ask, f"The user needs {request.call.name}."
        reply = f"```json\n{_call_json(request.call)}\n```"
        expected = Expected(call=request.call)
    else:
        ask, thought, reply, expected = _no_call(rng, offered)
    schemas = tools.schemas(rng, offered)
    return history.end(
        "tool_choice", mode, ask, complete(mode, thought, reply), expected, schemas=schemas
    )


def _no_call(rng: random.Random, offered: list[tools.Tool]) -> tuple[str, str, str, Expected]:
    """Ask, thought, reply and expectation of a turn that none of the offered tools should serve."""
    chance = rng.random()
    other = tools.not_offered(rng, offered) if chance < 0.25 else None
    if other is not None:
        ask = tools.request(rng, other).ask
        return ask, "No tool can do that.", NO_TOOL_REPLY, Expected(replies=(NO_TOOL_REPLY,))
    if chance > 0.8 and not any(tool.name == "calculator" for tool in offered):
        problem = arithmetic.problem(rng)
        return problem.ask, problem.steps, problem.reply, Expected(number=problem.answer)
    talk = small_talk.talk_without_request(rng)
    return talk.ask, talk.thought, talk.reply, Expected(replies=talk.accepted)


def _tool_result(rng: random.Random, mode: Mode) -> Dialogue:
    history = _History(rng)
    offered = tools.offer(rng)
    history.small_talk(0.15)
    request = history.tool_use(offered, is_answered=False)
    schemas = tools.schemas(rng, offered)
    completion = complete(mode, f"{request.call.name} gave me the result.", request.reply)
    values = Expected(values=request.values)
    expected = values if request.values else Expected(replies=(request.reply,))
    return history.end("tool_result", mode, "", completion, expected, schemas=schemas)


def _call_json(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)


_BUILDERS: Mapping[str, Callable[[random.Random, Mode], Dialogue]] = {
    "recall": _recall,
    "arithmetic": _arithmetic,
    "drill": _drill,
    "tool_call": _tool_call,
    "tool_choice": _tool_choice,
    "tool_result": _tool_result,
    "identity": _identity,
    "small_talk": _small_talk,
}
_FORMAT = choose_prompt_format("rwkv7-demo")
_PLAIN_FORMAT = _FORMAT.without_thinking()

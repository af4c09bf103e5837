"""What the grammar does for calls: the demo model's choices of a tool, free and constrained.

python -m tests.tools.constrained_calls [DIALOGUES]
"""

from __future__ import annotations

import sys
from itertools import islice

from rwkv_core.chat.call_constraint import CallConstraint, call_grammar
from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format
from rwkv_core.chat.reply import ReplyKind, ReplyParser
from rwkv_core.demo.dialogues import Dialogue, Mode, generate, prompt_text
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.demo.judging import is_right
from rwkv_core.engine import Engine, GenerationRequest
from rwkv_core.grammar import grammar_vocabulary
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.sampler import SamplingOptions
from server.replies.tool_calls import ToolCallParser
from tests.tools.receiver import Receiver

FORMAT = choose_prompt_format("rwkv7-demo")
THINK = {Mode.THINK: Think.ON, Mode.NO_THINK: Think.OFF}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    model = load_model(EMBEDDED)
    dialogues = list(islice(generate(2, "tool_choice", None), count))
    print("| calls | right | calls of an offered tool, of those that were begun |\n|---|---|---|")
    for is_free in (True, False):
        replies = _replies(model, dialogues, is_free)
        pairs = list(zip(dialogues, replies, strict=True))
        num_right = sum(is_right(dialogue, reply) for dialogue, reply in pairs)
        begun = [pair for pair in pairs if "```json" in pair[1]]
        num_calls = sum(_calls(*pair) > 0 for pair in begun)
        label = "free" if is_free else "constrained"
        print(f"| {label} | {num_right} of {count} | {num_calls} of {len(begun)} |")


def _replies(model: Model, dialogues: list[Dialogue], is_free: bool) -> list[str]:
    engine = Engine(model, max_queue=len(dialogues))
    receivers = [Receiver() for _ in dialogues]
    try:
        for dialogue, receiver in zip(dialogues, receivers, strict=True):
            tokens = tuple(model.tokenizer.encode(prompt_text(dialogue)))
            constraint = None if is_free else _constraint(model, dialogue)
            greedy = SamplingOptions(temperature=0)
            request = GenerationRequest(tokens, greedy, 200, FORMAT.stops, constraint=constraint)
            engine.submit(request, receiver)
        for receiver in receivers:
            receiver.finished()
    finally:
        engine.close()
    return [receiver.text for receiver in receivers]


def _constraint(model: Model, dialogue: Dialogue) -> CallConstraint | None:
    vocabulary = grammar_vocabulary(model.tokenizer, model.config.vocab_size)
    assert FORMAT.tools is not None
    grammar = call_grammar(vocabulary, FORMAT.tools, dialogue.tools)
    return CallConstraint(grammar, model.tokenizer, *_read_as(dialogue)) if grammar else None


def _read_as(dialogue: Dialogue) -> tuple[PromptFormat, Think]:
    """How a reply is read; behind a plain "Assistant:" it has no tag."""
    if dialogue.mode in THINK:
        return FORMAT, THINK[dialogue.mode]
    return FORMAT.without_thinking(), Think.OFF


def _calls(dialogue: Dialogue, reply: str) -> int:
    """How many calls the server would find."""
    assert FORMAT.tools is not None
    names = [tool.get("function", tool)["name"] for tool in dialogue.tools]
    parts = ReplyParser(*_read_as(dialogue)).push(reply)
    content = "".join(part.text for part in parts if part.kind is ReplyKind.CONTENT)
    parser = ToolCallParser(FORMAT.tools, names)
    return len([*parser.push(content)[1], *parser.flush()[1]])


if __name__ == "__main__":
    main()

"""What quality is measured on: a text the model was not trained on, and prompts to continue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rwkv_core.bench.options import BenchError, QualityOptions
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.metadata_keys import GGUF_TOKENS_KEY
from rwkv_core.demo.dialogues import generate, prompt_text
from rwkv_core.demo.evaluate import ABILITIES, EMBEDDED
from rwkv_core.demo.train import IGNORED, encode_example
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer

# Dialogues that the demo model never saw: it was trained on the seeds 1 and 3, and 2 and 5 are for
# the measurements of what it can do.
DIALOGUES_SEED = 4
_DEMO_NEW_TOKENS = 200

NUM_EXCERPTS = 8
_EXCERPT_TOKENS = 32
_EXCERPT_NEW_TOKENS = 32

_BUILT_IN = Path(__file__).with_name("held_out.txt")


@dataclass(frozen=True)
class Document:
    """Token ids, and for each the token that the model should write next, or IGNORED."""

    token_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class HeldOutText:
    """Documents to be read from an empty state each, and prompts to be continued greedily."""

    name: str
    documents: Sequence[Document]
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int


def held_out_text(tokenizer: Tokenizer, options: QualityOptions) -> HeldOutText:
    """The user's text, or the one that goes with the vocabulary. Raises BenchError."""
    if options.text is not None:
        return _plain(options.text, _read(options.text), tokenizer)
    if _is_demo_vocabulary(tokenizer):
        return _dialogues(tokenizer, options)
    return _plain("built in", _BUILT_IN.read_text(encoding="utf-8"), tokenizer)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BenchError(f"--text {path}: is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"--text {path}: cannot be read: {reason}") from None


def _plain(name: str, text: str, tokenizer: Tokenizer) -> HeldOutText:
    """One document, and prompts that are excerpts of it."""
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise BenchError(f"--text {name}: is too short; give at least a few sentences")
    starts = range(0, len(ids), max(_EXCERPT_TOKENS, -(-len(ids) // NUM_EXCERPTS)))
    return HeldOutText(
        name,
        [Document(ids, [*ids[1:], IGNORED])],
        [ids[start : start + _EXCERPT_TOKENS] for start in starts],
        _EXCERPT_NEW_TOKENS,
    )


def _dialogues(tokenizer: Tokenizer, options: QualityOptions) -> HeldOutText:
    examples = (
        encode_example(dialogue, tokenizer)
        for dialogue in islice(generate(DIALOGUES_SEED), options.num_dialogues)
    )
    # As many of each ability as of the others, the first of each first.
    streams = [generate(DIALOGUES_SEED, each.kind, each.mode) for each in ABILITIES]
    dialogues = (dialogue for row in zip(*streams, strict=True) for dialogue in row)
    return HeldOutText(
        "dialogues",
        [Document(each.token_ids, each.labels) for each in examples],
        [
            tokenizer.encode(prompt_text(dialogue))
            for dialogue in islice(dialogues, options.num_prompts)
        ],
        _DEMO_NEW_TOKENS,
    )


def _is_demo_vocabulary(tokenizer: Tokenizer) -> bool:
    if not isinstance(tokenizer, WorldTokenizer):
        return False
    with closing(open_checkpoint(EMBEDDED)) as demo:
        tokens = demo.metadata[GGUF_TOKENS_KEY]
    return len(tokens) == tokenizer.vocab_size and tokens == tokenizer.to_gguf()

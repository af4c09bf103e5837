"""The demo's vocabulary: every byte, and the words that its dialogues use often.

It is a World-style vocabulary (greedy longest match over bytes) cut down to fit: World's 65,536
rows alone would be several times the demo model.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

from rwkv_core.demo.dialogues import generate, training_segments
from rwkv_core.demo.words import COPIED_SYLLABLES, COPIED_WORDS
from rwkv_core.tokenizer import WorldTokenizer

# Frequent runs of punctuation. None reaches over the end of a prompt or of a reply, so that a text
# gives the same tokens whole (a history that is read) and in pieces (a reply that is written after
# its prompt).
_PUNCTUATION = ("\n\n", "```", '{"', '": ', '", "', '"}', "</")
# Digits stay single tokens: arithmetic is done digit by digit.
_WORD = re.compile(r" ?[A-Za-z]+")


def build_tokenizer(
    *, seed: int = 1, num_dialogues: int = 20_000, vocab_size: int = 1_440
) -> WorldTokenizer:
    """Id 0 ends a text, 1 to 256 are the bytes, the rest punctuation, words to copy, frequent
    words.

    Names and cities have one token without the space before them, so that a copy from prose into
    JSON, where a quote comes before them, is a copy of the same tokens.
    """
    counts: Counter[str] = Counter()
    for dialogue in islice(generate(seed), num_dialogues):
        for segment in training_segments(dialogue):
            counts.update(word for word in _WORD.findall(segment.text) if len(word) > 1)
    single = [bytes((value,)) for value in range(256)]
    copied = {*COPIED_WORDS, *COPIED_SYLLABLES}
    common = [
        word
        for word in sorted(counts, key=lambda word: (-counts[word], word))
        if word not in copied and word.lstrip() not in COPIED_WORDS
    ]
    words = [*_PUNCTUATION, *sorted(copied), *common][: vocab_size - 1 - len(single)]
    return WorldTokenizer([None, *single, *(word.encode() for word in words)])

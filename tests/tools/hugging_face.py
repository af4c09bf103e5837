"""A small byte-level BPE tokenizer, trained on the spot."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_CORPUS = ["the quick brown fox jumps over the lazy dog", "naïve café 你好 你们好 🙂🙂"] * 3


def trained_tokenizer() -> Tokenizer:
    """Like GPT-NeoX's: the end of text at id 0, runs of blanks as added tokens at the end."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_CORPUS, trainer)
    made.add_tokens([AddedToken("    ", normalized=False), AddedToken("  ", normalized=False)])
    return made

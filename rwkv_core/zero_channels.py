"""Which layers skip the hidden channels that relu^2 made zero: those where it pays, by measurement.

A trained model leaves most of them zero, and then the columns of the value matrix that belong to
them need not be read. But the columns that are left are short pieces of memory, which are read more
slowly than the whole: where half of the channels are active, as with random weights, that costs
more than it saves. So a model reads a short text when it is loaded, and each layer's value matrix
is laid out by what was active in it. Both layouts give the same numbers, to the bit.
"""

from __future__ import annotations

import logging

from rwkv_core.checkpoint import StoredCheckpoint
from rwkv_core.kernel_executor import FFN_VALUE, KernelExecutor
from rwkv_core.model import Model

log = logging.getLogger(__name__)

# Up to this share of active channels a decoded token is faster with the value matrix by columns:
# measured at 1.5B with AVX-512 (tests/tools/column_limits.py) on two cores whose memory was read at
# 38 and at 67 GB/s, where the limit is lower. Codes of less than 8 bits make shorter pieces, and
# more work. Other types stay by rows.
MAX_ACTIVE_SHARES = {
    "Q8_0": 0.25,
    "Q4_0": 0.12,
    "Q4_1": 0.08,
    "Q5_0": 0.08,
    "Q5_1": 0.08,
    "Q4_K": 0.08,
    "Q5_K": 0.08,
    "Q6_K": 0.08,
}

# What people chat about, in the form of a chat: channels that are active differ from text to text,
# but their number hardly does.
_TEXT = (
    "User: The library opens at nine. Can you write me a short note about it?\n\n"
    "Assistant: Of course! The library in our town opens at nine o'clock in the morning."
)
# More channels than usual are active where a text begins: those tokens do not count.
_NUM_FIRST_TOKENS = 8
# With the first ones about 0.15 s of prefill for a model of 1.5B on two cores.
_NUM_TOKENS = 16


def skip_zero_channels(
    model: Model, executor: KernelExecutor, checkpoint: StoredCheckpoint
) -> None:
    """Lays out the value matrices of `model`, which `executor` runs, by what is active in them.

    Takes the memory of one such matrix meanwhile; where that is not to be had, the rest of them
    stay by rows. Raises CheckpointError.
    """
    try:
        for layer, share in enumerate(_active_shares(model, executor)):
            type_name = checkpoint.tensors[FFN_VALUE.format(layer=layer)].type_name
            if share <= MAX_ACTIVE_SHARES.get(type_name, -1.0):
                executor.pack_by_columns(checkpoint, layer)
    except MemoryError:
        log.warning("too little memory to choose the layout of every layer: decoding is slower")


def _active_shares(model: Model, executor: KernelExecutor) -> list[float]:
    """Of each layer's hidden channels; [] where the vocabulary has no tokens for the text."""
    token_ids = model.tokenizer.encode(_TEXT)[: _NUM_FIRST_TOKENS + _NUM_TOKENS]
    if len(token_ids) <= _NUM_FIRST_TOKENS:
        return []
    state = model.new_state()
    model.advance(token_ids[:_NUM_FIRST_TOKENS], state)
    executor.reset_counters()
    model.advance(token_ids[_NUM_FIRST_TOKENS:], state)
    shares = executor.active_shares()
    executor.reset_counters()
    return shares

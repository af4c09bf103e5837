"""Choosing the next token: the cuts of llama.cpp and Ollama, with RWKV's decayed penalties.

The order is penalties, top_k, typical_p, top_p, min_p, temperature: all cuts are made at
temperature 1, as in llama.cpp and in the sampler of RWKV's authors.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable

import torch
from torch import Tensor

from rwkv_core.cache.tokens import TokenIds, as_tokens
from rwkv_core.errors import GenerationError
from rwkv_core.sampling_options import SamplingOptions

__all__ = ["Sampler", "SamplingOptions"]

# The authors' sampler never counts a token of these characters (any run of them, as written here).
_UNCOUNTED = b" \t0123456789"

# Tokens that are sorted before all others, when only top_p cuts: it seldom keeps more.
_HEAD_SIZE = 512


class Sampler:
    """Draws the tokens of one request, by its seed and its logits alone."""

    def __init__(
        self,
        options: SamplingOptions,
        vocab_size: int,
        prompt_token_ids: TokenIds,
        *,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._options = options
        # Python promises the same numbers for a seed in every version; torch and NumPy do not.
        self._random = random.Random(options.seed if options.seed >= 0 else None)
        self._recent: _RecentTokens | None = None
        if options.repeat_penalty != 1 and options.repeat_last_n != 0:
            self._recent = _RecentTokens(options.repeat_last_n, prompt_token_ids)
        self._counts: _DecayedCounts | None = None
        if options.presence_penalty or options.frequency_penalty:
            self._counts = _DecayedCounts(vocab_size, options.penalty_decay, token_bytes)

    def sample(self, logits: Tensor, allowed: Tensor | None = None) -> int:
        """A token for `logits` [vocab], which are not changed; -inf rules a token out, and so does
        `allowed` [vocab] bool (None: all are).

        Raises GenerationError when they are not numbers or rule out every token.
        """
        logits = logits.detach().to("cpu", torch.float32)
        if not math.isfinite(logits.max().item()):  # NaN wins every comparison in torch
            raise GenerationError(
                "the model's logits are not finite numbers: its file is damaged, or the data type "
                "too narrow for it (try float32)"
            )
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
            if logits.max().item() == -math.inf:
                raise GenerationError("the reply's format leaves no token to go on with")
        logits = self._penalized(logits)
        if self._options.temperature == 0:
            return int(logits.argmax())
        ids, probabilities = self._candidates(logits)
        return int(ids[self._draw(probabilities)])

    def accept(self, token_id: int) -> None:
        """Counts a token of the reply for the penalties of the next ones."""
        if self._recent:
            self._recent.add(token_id)
        if self._counts:
            self._counts.add(token_id)

    def _penalized(self, logits: Tensor) -> Tensor:
        options = self._options
        if self._recent:
            ids = self._recent.ids()
            seen = logits[ids]
            factor = options.repeat_penalty
            logits = logits.index_put((ids,), torch.where(seen > 0, seen / factor, seen * factor))
        if self._counts:
            frequency = logits.sub(self._counts.counts, alpha=options.frequency_penalty)
            logits = frequency.sub(self._counts.is_seen, alpha=options.presence_penalty)
        return logits

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Ids that survive the cuts, and their probabilities up to a common factor."""
        options = self._options
        if 0 < options.top_k < len(logits):
            logits, ids = logits.topk(options.top_k)
        else:
            ids = torch.arange(len(logits))
        probabilities = logits.softmax(0)
        if options.typical_p < 1:
            kept = _typical(probabilities, options.typical_p)
            ids, probabilities = ids[kept], probabilities[kept]
        if options.top_p < 1:
            kept = _nucleus(probabilities, options.top_p)
            ids, probabilities = ids[kept], probabilities[kept]
        if options.min_p > 0:
            kept = (probabilities >= options.min_p * probabilities.max()).nonzero().squeeze(1)
            ids, probabilities = ids[kept], probabilities[kept]
        return ids, probabilities

    def _draw(self, probabilities: Tensor) -> int:
        """An index, at the request's temperature."""
        if self._options.temperature != 1:
            relative = (probabilities / probabilities.max()).double()  # so that not all underflow
            probabilities = relative.pow(1 / self._options.temperature)
        cumulative = probabilities.cumsum(0, dtype=torch.float64)
        total = cumulative[-1].item()
        # Below the total even when the product rounds up: past it there is no token.
        point = min(self._random.random() * total, math.nextafter(total, 0))
        return int(torch.searchsorted(cumulative, point, right=True))


def _typical(probabilities: Tensor, typical_p: float) -> Tensor:
    """Indices of the tokens whose surprise is nearest to the expected one, typical_p in sum.

    Locally typical sampling, https://arxiv.org/abs/2202.00666.
    """
    entropy = torch.special.entr(probabilities).sum()
    order: Tensor = (-probabilities.log() - entropy).abs().argsort(stable=True)
    cumulative = probabilities[order].cumsum(0, dtype=torch.float64)
    cumulative /= cumulative[-1].item()
    return order[: int((cumulative <= typical_p).sum()) + 1]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Indices of the fewest tokens, likeliest first, that have top_p of all the probability."""
    wanted = top_p * probabilities.sum(dtype=torch.float64).item()
    for size in (min(_HEAD_SIZE, len(probabilities)), len(probabilities)):
        values, order = probabilities.topk(size)
        cumulative = values.cumsum(0, dtype=torch.float64)
        if cumulative[-1].item() >= wanted:
            break
    return order[: int((cumulative < wanted).sum()) + 1]


class _RecentTokens:
    """Which tokens are among the last `size` of prompt and reply; -1: all."""

    def __init__(self, size: int, token_ids: TokenIds) -> None:
        self._size = size
        self._window: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        for token_id in as_tokens(token_ids if size < 0 else token_ids[-size:]).tolist():
            self.add(token_id)

    def add(self, token_id: int) -> None:
        self._counts[token_id] += 1
        if self._size < 0:
            return  # nothing will ever leave
        self._window.append(token_id)
        if len(self._window) > self._size:
            oldest = self._window.popleft()
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]

    def ids(self) -> Tensor:
        return torch.tensor(list(self._counts), dtype=torch.long)


class _DecayedCounts:
    """How often each token came in the reply, where a count fades by `decay` with each token."""

    def __init__(self, vocab_size: int, decay: float, token_bytes: Callable[[int], bytes]) -> None:
        self.counts = torch.zeros(vocab_size)
        self.is_seen = torch.zeros(vocab_size)  # 0 or 1, to be subtracted
        self._decay = decay
        self._token_bytes = token_bytes

    def add(self, token_id: int) -> None:
        self.counts *= self._decay
        self.is_seen[token_id] = 1
        # Blanks and digits recur in any table or sum: seen, but not counted.
        if self._token_bytes(token_id) not in _UNCOUNTED:
            self.counts[token_id] += 1

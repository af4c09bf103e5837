"""What was measured: times in seconds, memory and weights in bytes, rates per second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rwkv_core.bench.options import Runtime, SpeedOptions


@dataclass(frozen=True)
class Spread:
    """Repetitions of one measurement, at least one."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    `decode_weight_bytes` are those that a decoded token reads: every weight but the embedding, of
    which it takes one row.
    """

    load_s: float
    first_token_s: float  # from the beginning of loading to the first logits
    memory_bytes: int | None  # resident, of the process
    type_name: str  # of most weights in the file
    num_parameters: int
    file_bytes: int
    decode_weight_bytes: int
    num_threads: int
    isa: str
    num_layers: int
    num_skipping_layers: int  # those whose channel mix skips zero channels


@dataclass(frozen=True)
class Repetition:
    """One round of measurements, each from an empty state."""

    prefill_s: float
    token_s: list[float]  # of each decoded token
    batch_step_s: list[float]  # of each step of a batch; empty without one


@dataclass(frozen=True)
class LongPoint:
    """Decoding after `num_tokens` tokens of text."""

    num_tokens: int
    token_s: list[list[float]]  # by repetition
    memory_bytes: int | None


@dataclass(frozen=True)
class Finished:
    """What is known at the end. None is what the machine or the engine cannot tell."""

    peak_memory_bytes: int
    zero_channel_share: float | None  # of the FFN's hidden channels, over the decoded tokens
    read_bytes_per_s: float | None  # of the memory, by all threads


@dataclass(frozen=True)
class PeerRepetition:
    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class SpeedResult:
    """All measurements of one model. `label` is what the user called it."""

    label: str
    path: str
    processor: str
    runtime: Runtime
    options: SpeedOptions
    loaded: Loaded
    repetitions: Sequence[Repetition]
    long: Sequence[LongPoint]
    finished: Finished
    peer: str | None
    peer_repetitions: Sequence[PeerRepetition]

    @property
    def prefill(self) -> Spread:
        """Tokens per second."""
        count = self.options.num_prompt_tokens
        return Spread(tuple(count / each.prefill_s for each in self.repetitions))

    @property
    def decode(self) -> Spread:
        """Tokens per second."""
        return Spread(tuple(len(each.token_s) / sum(each.token_s) for each in self.repetitions))

    @property
    def batch(self) -> Spread | None:
        """Tokens per second of all sequences together."""
        size = self.options.batch_size
        if size is None:
            return None
        steps = [each.batch_step_s for each in self.repetitions]
        return Spread(tuple(size * len(each) / sum(each) for each in steps))

    @property
    def batch_ratio(self) -> float | None:
        return self.batch.median / self.decode.median if self.batch else None

    @property
    def decode_bytes_per_s(self) -> float:
        return self.loaded.decode_weight_bytes * self.decode.median

    @property
    def bandwidth_share(self) -> float | None:
        """Of the measured read bandwidth. More than 1 where the weights stay in the caches."""
        available = self.finished.read_bytes_per_s
        return self.decode_bytes_per_s / available if available else None

    @property
    def peer_prefill(self) -> Spread | None:
        count = self.options.num_prompt_tokens
        values = tuple(count / each.prefill_s for each in self.peer_repetitions)
        return Spread(values) if values else None

    @property
    def peer_decode(self) -> Spread | None:
        count = self.options.num_decode_tokens
        values = tuple(count / each.decode_s for each in self.peer_repetitions)
        return Spread(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Every number, the derived ones beside those that they come from."""
        result: dict[str, Any] = {
            "model": self.label,
            "path": self.path,
            "processor": self.processor,
            "isa_cap": self.runtime.isa,
            **asdict(self.options),
            **asdict(self.loaded),
            **asdict(self.finished),
            "prefill_tokens_per_s": self.prefill.as_json(),
            "decode_tokens_per_s": self.decode.as_json(),
            "decode_token_s": [each.token_s for each in self.repetitions],
            "decode_bytes_per_s": self.decode_bytes_per_s,
            "decode_bandwidth_share": self.bandwidth_share,
        }
        if self.batch:
            result["batch_tokens_per_s"] = self.batch.as_json()
            result["batch_ratio"] = self.batch_ratio
            result["batch_step_s"] = [each.batch_step_s for each in self.repetitions]
        if self.long:
            result["long"] = [
                {**asdict(point), "decode_tokens_per_s": speed_at(point).as_json()}
                for point in self.long
            ]
        if self.peer_prefill and self.peer_decode:
            result["peer"] = {
                "path": self.peer,
                "prefill_tokens_per_s": self.peer_prefill.as_json(),
                "decode_tokens_per_s": self.peer_decode.as_json(),
                "prefill_ratio": self.prefill.median / self.peer_prefill.median,
                "decode_ratio": self.decode.median / self.peer_decode.median,
            }
        return result


def speed_at(point: LongPoint) -> Spread:
    """Decoded tokens per second after that much text."""
    return Spread(tuple(len(each) / sum(each) for each in point.token_s))


@dataclass(frozen=True)
class Quality:
    """How a model as it is served compares with its reference in float32.

    Divergence and agreement are over all positions of the text, perplexities over the tokens of it
    that the model should write.
    """

    text: str
    type_name: str  # of most weights in the file
    isa: str
    num_positions: int
    num_predicted: int  # tokens that the perplexities are of
    perplexity: float
    reference_perplexity: float
    mean_kl: float  # nats per position, of the served distribution from the reference's
    max_kl: float
    argmax_agreement: float  # share of positions
    num_prompts: int
    num_equal_texts: int  # prompts that both continue greedily with the same tokens


@dataclass(frozen=True)
class QualityResult:
    """`label` is what the user called the model, `reference` the path of the float32 weights."""

    label: str
    path: str
    reference: str
    quality: Quality

    @property
    def equal_text_share(self) -> float:
        return self.quality.num_equal_texts / self.quality.num_prompts

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.label,
            "path": self.path,
            "reference": self.reference,
            **asdict(self.quality),
            "equal_text_share": self.equal_text_share,
        }

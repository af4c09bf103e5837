"""The kernels run models: against PyTorch in float32, and equal to the bit however text is cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes
from rwkv_core.checkpoint.ggml_quantize import quantize_blocks
from rwkv_core.checkpoint.gguf_writer import GGUFWriter
from rwkv_core.checkpoint.names import GGUF, LERPS, LOW_RANK, block_leaf, num_dims
from rwkv_core.config import ModelConfig
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.executor import Segment
from rwkv_core.kernel_executor import KernelExecutor, plan_passes
from rwkv_core.loading import load_model
from rwkv_core.model import Model
from rwkv_core.state import State
from rwkv_core.torch_executor import TorchExecutor
from tests.core.test_loading import write_tokenizer
from tests.tools.gguf_files import SMALL
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import (
    TINY,
    random_tensors,
    write_hugging_face,
    write_pth,
    write_rwkv_cpp,
    write_safetensors,
)
from tests.tools.states import parts, same

# Rows of 256 values, which every block type fits, and heads of another size than TINY's.
WIDE = ModelConfig(
    n_layer=3,
    n_embd=256,
    head_size=64,
    vocab_size=300,
    n_ffn=512,
    decay_rank=32,
    iclr_rank=16,
    value_rank=8,
    gate_rank=24,
)

CONFIGS = {"tiny": TINY, "small": SMALL, "wide": WIDE}


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), max_rows=st.integers(1, 16))
def test_passes_cover_every_token_once_and_in_order(lengths: list[int], max_rows: int) -> None:
    passes = list(plan_passes(lengths, max_rows))
    read = [0] * len(lengths)
    for runs in passes:
        assert len({run.segment for run in runs}) == len(runs)
        assert [run.segment for run in runs] == sorted(run.segment for run in runs)
        for run in runs:
            assert read[run.segment] == run.start < run.end
            read[run.segment] = run.end
    assert read == lengths
    sizes = [sum(run.end - run.start for run in runs) for runs in passes]
    assert all(size == max_rows for size in sizes[:-1])
    assert 0 < sizes[-1] <= max_rows


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    require_kernels()


def write_gguf(
    path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, type_name: str
) -> None:
    """A GGUF file with all big matrices of one type, the rest as llama.cpp keeps it."""
    vectors = {name for name in tensors if num_dims(name) == 1 or name.endswith("r_k")}
    stored: dict[str, tuple[tuple[int, ...], str, Bytes]] = {}
    for name in tensors:
        leaf = (block_leaf(name) or (0, name))[1]
        kind = "F32" if name in vectors or leaf in LOW_RANK else type_name
        tensor = tensors[name]
        if leaf in LERPS:
            prefix = name.removesuffix(leaf)
            tensor = torch.stack([tensors[prefix + lerp] for lerp in LERPS])[:, None, None]
        elif leaf in LOW_RANK:
            tensor = tensor.t().contiguous()
        elif leaf == "att.r_k":
            tensor = tensor.reshape(-1)
        stored[GGUF.stored_name(name)] = (tuple(tensor.shape), kind, encoded(tensor, kind))
    with GGUFWriter(path) as writer:
        writer.add_metadata("general.architecture", "rwkv7")
        writer.add_metadata("rwkv7.wkv.head_size", config.head_size)
        for stored_name, (shape, kind, _) in stored.items():
            writer.add_tensor(stored_name, shape, kind)
        for stored_name, (_, _, packed) in stored.items():
            writer.write_tensor(stored_name, [packed])


def encoded(tensor: Tensor, type_name: str) -> Bytes:
    if LAYOUTS[type_name].is_quantized:
        return quantize_blocks(type_name, tensor.reshape(-1).numpy())
    plain = tensor.to(PLAIN_TYPES[type_name]).contiguous().view(-1).view(torch.uint8)
    return np.asarray(plain.numpy())


def models_of(path: Path) -> tuple[Model, Model]:
    """The model at `path` with the kernels, and as the float32 reference."""
    ours, reference = load_model(path), load_model(path, dtype=torch.float32)
    assert isinstance(ours.executor, KernelExecutor)
    assert isinstance(reference.executor, TorchExecutor)
    return ours, reference


def random_tokens(length: int, vocab_size: int = 300, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(vocab_size), k=length)


def assert_close(ours: Tensor, expected: Tensor, type_name: str) -> None:
    """Compares the root of the mean square of the differences with the standard deviation.

    Quantized weights meet activations of 8 bits, which costs a hundredth; float ones differ from
    PyTorch in the order of additions alone.
    """
    assert ours.shape == expected.shape
    error = (ours - expected).square().mean().sqrt() / expected.std()
    assert error < (3e-2 if LAYOUTS[type_name].is_quantized else 1e-5)


@pytest.mark.parametrize(
    ("type_name", "config_name"),
    [
        (type_name, name)
        for type_name, layout in LAYOUTS.items()
        for name, config in CONFIGS.items()
        if config.n_embd % layout.values_per_block == 0
    ],
)
def test_logits_and_states_equal_the_reference_s(
    tmp_path: Path, type_name: str, config_name: str
) -> None:
    config = CONFIGS[config_name]
    write_tokenizer(tmp_path)
    write_gguf(tmp_path / "a.gguf", random_tensors(config, seed=1), config, type_name)
    ours, reference = models_of(tmp_path / "a.gguf")
    assert ours.executor.type_name == type_name
    text = random_tokens(70)
    logits, state = ours.forward(text, all_logits=True)
    expected, expected_state = reference.forward(text, all_logits=True)
    assert_close(logits, expected, type_name)
    for part, expected_part in zip(parts(state), parts(expected_state), strict=True):
        assert_close(part, expected_part, type_name)
    for token in random_tokens(5, seed=2):
        logits, expected = ours.advance([token], state), reference.advance([token], expected_state)
        assert_close(logits, expected, type_name)


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_hugging_face(path, tensors, TINY, shards=2)
    (path.parent / "tokenizer.json").rename(path / "tokenizer.json")


def _rwkv_cpp(type_name: str) -> Callable[[Path, Mapping[str, Tensor]], None]:
    return lambda path, tensors: write_rwkv_cpp(path, tensors, type_name=type_name)


@pytest.mark.parametrize("write", [write_safetensors, _hugging_face, _rwkv_cpp("F32")])
def test_the_same_bits_out_of_every_format(
    tmp_path: Path, write: Callable[[Path, Mapping[str, Tensor]], None]
) -> None:
    tensors, text = random_tensors(TINY), random_tokens(20)
    write_tokenizer(tmp_path)
    write_pth(tmp_path / "model.pth", tensors)
    expected, _ = load_model(tmp_path / "model.pth", kernels=True).forward(text)
    write(tmp_path / "model", tensors)
    logits, _ = load_model(tmp_path / "model", kernels=True).forward(text)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_as_the_authors_publish_them(tmp_path: Path, dtype: torch.dtype) -> None:
    write_tokenizer(tmp_path)
    write_pth(tmp_path / "model.pth", random_tensors(TINY, dtype=dtype))
    ours, reference = models_of(tmp_path / "model.pth")
    assert PLAIN_TYPES[ours.executor.type_name] == dtype
    text = random_tokens(40)
    assert_close(ours.forward(text)[0], reference.forward(text)[0], ours.executor.type_name)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_rwkv_cpp_s_blocks(tmp_path: Path, type_name: str) -> None:
    write_tokenizer(tmp_path)
    write_rwkv_cpp(tmp_path / "model.bin", random_tensors(TINY), type_name=type_name)
    ours, reference = models_of(tmp_path / "model.bin")
    text = random_tokens(40)
    assert_close(ours.forward(text)[0], reference.forward(text)[0], type_name)


@pytest.fixture(scope="module", params=["F32", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder)
    path = folder / "a.gguf"
    write_gguf(path, random_tensors(WIDE, seed=5), WIDE, request.param)
    loaded = load_model(path, kernels=True)
    path.unlink()  # nothing of it is needed any more
    return loaded


def test_any_cut_gives_the_same_bits(model: Model) -> None:
    text = random_tokens(600)  # more than two passes
    whole, last_state = model.forward(text, all_logits=True)
    assert torch.equal(model.forward(text)[0], whole[-1])
    choices = random.Random(1)
    for _ in range(6):
        cuts = sorted(choices.sample(range(1, 600), choices.randrange(1, 40)))
        state = model.new_state()
        pieces = [
            model.advance(text[start:end], state, all_logits=True)
            for start, end in pairwise([0, *cuts, 600])
        ]
        assert torch.equal(torch.cat(pieces), whole)
        assert same(state, last_state)
    state = model.new_state()
    single = torch.stack([model.advance([token], state) for token in text[:50]])
    assert torch.equal(single, whole[:50])


def test_any_company_gives_the_same_bits(model: Model) -> None:
    choices = random.Random(2)
    for round_number in range(6):
        lengths = [choices.choice((1, 1, 2, 5, 31, 100, 256, 300)) for _ in range(9)]
        texts = [random_tokens(length, seed=index) for index, length in enumerate(lengths)]
        starts = [
            model.forward(random_tokens(3 + index))[1] if index % 2 else model.new_state()
            for index in range(len(texts))
        ]
        all_logits = round_number % 2 == 1
        states = [state.clone() for state in starts]
        together = model.advance_batch(
            [Segment(torch.tensor(text), state) for text, state in zip(texts, states, strict=True)],
            all_logits=all_logits,
        )
        alone = [
            model.forward(text, state, all_logits=all_logits)
            for text, state in zip(texts, starts, strict=True)
        ]
        expected = [logits.view(-1, logits.shape[-1]) for logits, _ in alone]
        assert torch.equal(together, torch.cat(expected))
        for state, (_, wanted) in zip(states, alone, strict=True):
            assert same(state, wanted)


def test_a_batch_of_equal_lengths_changes_views_of_one_state(model: Model) -> None:
    tokens = torch.tensor(random_tokens(120)).view(4, 30)
    logits, state = model.forward_batch(tokens)
    for row, alone_state in enumerate(state.split()):
        alone, wanted = model.forward(tokens[row].tolist())
        assert torch.equal(logits[row], alone)
        assert same(alone_state, wanted)


def test_forward_leaves_the_state_and_advance_changes_it(model: Model) -> None:
    _, state = model.forward(random_tokens(20))
    before = state.clone()
    logits, after = model.forward([1, 2, 3], state)
    assert same(state, before)
    assert not same(after, before)
    assert torch.equal(model.advance([1, 2, 3], state), logits)
    assert same(state, after)


def test_weights_take_what_the_file_takes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = replace(WIDE, vocab_size=304)  # whole panels of 16 rows
    for type_name in LAYOUTS:
        path = tmp_path / f"{type_name}.gguf"
        write_gguf(path, random_tensors(config), config, type_name)
        model = load_model(path, kernels=True)
        # The low-rank matrices, of less than a hundredth of a real model, are padded to panels.
        assert model.num_weight_bytes <= 1.02 * path.stat().st_size + (1 << 16)
        assert model.num_weight_bytes >= 0.9 * path.stat().st_size


def greedy(model: Model, state: State, logits: Tensor) -> list[int]:
    """What the model writes, up to the end of the text."""
    written = [int(logits.argmax())]
    while len(written) < 100 and written[-1] not in model.tokenizer.eos_token_ids:
        written.append(int(model.advance(written[-1:], state).argmax()))
    return written


def test_the_demo_model_as_it_is_served() -> None:
    ours, reference = models_of(EMBEDDED)
    text = ours.tokenizer.encode("User: What is 47 + 38?\n\nAssistant: <think")
    logits, state = ours.forward(text, all_logits=True)
    expected, expected_state = reference.forward(text, all_logits=True)
    assert_close(logits, expected, "Q8_0")
    written = greedy(ours, state, logits[-1])
    assert written == greedy(reference, expected_state, expected[-1])
    assert "85" in ours.tokenizer.decode(written)
    assert isinstance(ours.executor, KernelExecutor)
    zeros, channels = ours.executor.zero_channels()
    assert 0 < zeros < channels
    ours.executor.reset_counters()
    assert ours.executor.zero_channels() == (0, 0)

"""Whole passes of the kernels against PyTorch, with every instruction set."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from rwkv_core import formulas, kernels
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, dequantize
from rwkv_core.checkpoint.ggml_quantize import quantize_blocks
from rwkv_core.config import ModelConfig
from rwkv_core.formulas import Weights, is_matrix
from rwkv_core.instruction_sets import INSTRUCTION_SETS
from rwkv_core.kernels.interface import Floats, Int32s, NativeMatrix, NativeModel
from rwkv_core.state import State
from tests.tools.native import Operations, fake_quantized, relative, require_kernels
from tests.tools.random_checkpoint import TINY, random_tensors
from tests.tools.states import parts, same

WIDE = ModelConfig(
    n_layer=2,
    n_embd=256,
    head_size=64,
    vocab_size=275,
    n_ffn=512,
    decay_rank=32,
    iclr_rank=32,
    value_rank=64,
    gate_rank=96,
)
CONFIGS = {
    "tiny": TINY,
    "wide": WIDE,
    "heads of 32": replace(TINY, n_embd=96, head_size=32, n_ffn=32, vocab_size=17),
    "heads of 128": replace(TINY, n_embd=128, head_size=128, n_layer=1),
}


class Pair:
    """A random model of the kernels' and the same weights in PyTorch.

    Matrices named in `types` (by the end of their name, "" for all) have another type than F32.
    """

    def __init__(
        self,
        native: Operations,
        config: ModelConfig,
        types: dict[str, str],
        before_finish: Callable[[NativeModel], None] = lambda model: None,
    ) -> None:
        self.config = config
        self.model = native.Model(
            config.n_layer,
            config.n_embd,
            config.head_size,
            config.n_ffn,
            config.vocab_size,
            config.layer_norm_eps,
            config.group_norm_eps,
        )
        tensors = random_tensors(config, seed=3)
        self._quantized: set[int] = set()  # of the reference's tensors, by address
        for name, tensor in tensors.items():
            is_low_rank = is_matrix(name) and not name.endswith(".weight")
            if not is_matrix(name):
                self.model.set_vector(name, tensor.reshape(-1).numpy())
                continue
            type_name = next((types[end] for end in types if name.endswith(end)), "F32")
            stored = tensor.t().contiguous() if is_low_rank else tensor
            raw = _encoded(stored, type_name)
            if name == "emb.weight":
                self.model.set_embedding(LAYOUTS[type_name].type_id, raw)
            else:
                is_value = name.endswith("ffn.value.weight") and config.n_embd % 64 == 0
                by_columns = is_value and LAYOUTS[type_name].is_quantized
                slices = min(2, stored.shape[1] // LAYOUTS[type_name].values_per_block)
                matrix = kernels.pack(
                    type_name,
                    raw,
                    *stored.shape,
                    by_columns=by_columns,
                    slices=slices if by_columns else 1,
                )
                self.model.set_matrix(name, matrix)
            values = torch.from_numpy(dequantize(type_name, raw)).view(stored.shape)
            tensors[name] = values.t().contiguous() if is_low_rank else values
            if LAYOUTS[type_name].is_quantized:
                self._quantized.add(tensors[name].data_ptr())
        before_finish(self.model)
        self.model.finish()
        self.weights = Weights.load(config, tensors.__getitem__)

    def ours(self, lengths: Sequence[int], tokens: Tensor, states: Sequence[State]) -> Tensor:
        """All logits of one pass over segments of these lengths."""
        out = torch.empty(len(tokens), self.config.vocab_size)
        starts = np.cumsum([0, *lengths], dtype=np.int32)
        rows = np.arange(len(tokens), dtype=np.int32)
        kernels.forward(self.model, tokens.int().numpy(), starts, states, rows, out)
        return out

    def reference(
        self, tokens: Tensor, state: State, monkeypatch: pytest.MonkeyPatch
    ) -> tuple[Tensor, State]:
        """The same in PyTorch, where quantized matrices meet quantized activations too."""

        def rows_for(x: Tensor, weight: Tensor) -> Tensor:
            return fake_quantized(x) if weight.data_ptr() in self._quantized else x

        def linear(x: Tensor, weight: Tensor) -> Tensor:
            return rows_for(x, weight) @ weight.t()

        def low_rank(
            x: Tensor, down: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]
        ) -> Tensor:
            hidden = activation(rows_for(x, down) @ down)
            return rows_for(hidden, up) @ up

        with monkeypatch.context() as patch:
            patch.setattr(formulas, "linear", linear)
            patch.setattr(formulas, "low_rank", low_rank)
            hidden, state = formulas.forward_hidden(self.weights, self.config, tokens[None], state)
            return linear(hidden[0], self.weights.head), state


def _encoded(tensor: Tensor, type_name: str) -> npt.NDArray[np.uint8]:
    if LAYOUTS[type_name].is_quantized:
        return quantize_blocks(type_name, tensor.reshape(-1).numpy())
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    values = tensor.to(kinds[type_name]).reshape(-1).view(torch.uint8)
    return np.asarray(values.numpy())


def random_tokens(length: int, config: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(config.vocab_size, (length,), generator=generator)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 2, 17, 256])
def test_passes_equal_the_formulas(
    native: Operations, name: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name]
    pair = Pair(native, config, {})
    tokens, state = random_tokens(length, config), State.zeros(config)
    logits = pair.ours([length], tokens, [state])
    expected, expected_state = pair.reference(tokens, State.zeros(config), monkeypatch)
    assert relative(logits, expected) < 1e-4
    for part, expected_part in zip(parts(state), parts(expected_state), strict=True):
        assert relative(part, expected_part) < 1e-4


MIXTURES = {
    "as llama.cpp quantizes": {"1": "F16", "2": "F16", "weight": "Q8_0"},
    "all quantized": {"": "Q8_0"},
    "K types": {"ffn.value.weight": "Q6_K", "head.weight": "Q6_K", "weight": "Q4_K"},
    "floats among blocks": {"value.weight": "BF16", "w1": "Q5_1", "g2": "Q4_0", "weight": "Q5_0"},
    "blocks among floats": {"att.value.weight": "Q4_1", "v2": "Q8_0", "output.weight": "Q8_0"},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_quantized_activations_are_the_only_difference(
    native: Operations, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(native, WIDE, MIXTURES[name])
    for length in (1, 40):
        tokens, state = random_tokens(length, WIDE), State.zeros(WIDE)
        logits = pair.ours([length], tokens, [state])
        expected, expected_state = pair.reference(tokens, State.zeros(WIDE), monkeypatch)
        # Once in some thousand values rounding ends on the other side of a half, and the code is
        # another: what comes after is not as close.
        assert relative(logits[0], expected[0]) < 1e-5
        assert relative(logits, expected) < 0.1
        assert relative(state.wkv, expected_state.wkv) < 0.1


@pytest.mark.parametrize("name", ["as llama.cpp quantizes", "floats among blocks"])
def test_segments_threads_and_cuts_change_no_bit(native: Operations, name: str) -> None:
    pair = Pair(native, WIDE, MIXTURES[name])
    tokens = random_tokens(256, WIDE)
    state = State.zeros(WIDE)
    whole = pair.ours([256], tokens, [state])
    for threads in (1, 2, 5):
        native.set_num_threads(threads)
        again = State.zeros(WIDE)
        assert torch.equal(pair.ours([256], tokens, [again]), whole)
        assert same(again, state)
        # The same text five times, each further along: those that end go, and others come.
        lengths = (1, 3, 100, 7, 1)
        states = [State.zeros(WIDE) for _ in lengths]
        done = [0] * len(lengths)
        while any(position < 20 for position in done):
            segments = [
                min(length, 20 - position) for length, position in zip(lengths, done, strict=True)
            ]
            active = [index for index, length in enumerate(segments) if length]
            logits = pair.ours(
                [segments[index] for index in active],
                torch.cat(
                    [tokens[done[index] : done[index] + segments[index]] for index in active]
                ),
                [states[index] for index in active],
            )
            expected = [whole[done[index] : done[index] + segments[index]] for index in active]
            assert torch.equal(logits, torch.cat(expected))
            done = [position + length for position, length in zip(done, segments, strict=True)]
        assert all(same(each, states[0]) for each in states)


def test_no_number_hides_one_that_is_not_finite(native: Operations) -> None:
    """A state that was lost must show in the logits."""
    for types in ({}, MIXTURES["as llama.cpp quantizes"]):
        pair = Pair(native, WIDE, types)
        state = State.zeros(WIDE)
        state.time_shift[0, 0, 5] = torch.nan
        assert pair.ours([1], torch.tensor([1]), [state]).isnan().all()


def test_zero_channels_are_counted(native: Operations) -> None:
    pair = Pair(native, WIDE, MIXTURES["as llama.cpp quantizes"])
    pair.ours([40], random_tokens(40, WIDE), [State.zeros(WIDE)])
    zeros, total = pair.model.zero_channels()
    assert total == 40 * WIDE.n_ffn
    assert len(zeros) == WIDE.n_layer
    assert all(0.2 < each / total < 0.8 for each in zeros)
    pair.model.reset_counters()
    assert pair.model.zero_channels() == ([0] * WIDE.n_layer, 0)


# ---- what is refused -----------------------------------------------------------------------------


def test_passes_that_cannot_be_are_refused(native: Operations) -> None:
    model = Pair(native, TINY, {}).model
    address = State.zeros(TINY)
    good_states = np.array([address.addresses], np.int64)

    def run(
        tokens: Sequence[int] = (1, 2),
        starts: Sequence[int] = (0, 2),
        states: npt.NDArray[np.int64] = good_states,
        rows: Sequence[int] = (1,),
        out: Floats | None = None,
    ) -> None:
        logits: Floats = np.zeros((len(rows), TINY.vocab_size), np.float32) if out is None else out
        model.forward(_int32(tokens), _int32(starts), states, _int32(rows), logits)

    run()
    run(rows=())
    two = np.concatenate([good_states, good_states])
    wrong: list[tuple[dict[str, object], str]] = [
        ({"tokens": (1, 300)}, "token 300 is not in the vocabulary of 300"),
        ({"tokens": (-1, 2)}, "token -1 is not"),
        ({"tokens": (), "starts": (0, 0), "rows": ()}, "too many or no tokens"),
        ({"tokens": [1] * 257, "starts": (0, 257)}, "too many or no tokens"),
        ({"starts": (0, 1)}, "not all rows"),
        ({"starts": (1, 2)}, "not all rows"),
        ({"starts": (0,)}, "no segments"),
        ({"starts": (0, 2, 2), "states": two}, "one token at least"),
        ({"starts": (0, 3, 2), "states": two}, "one token at least"),
        ({"states": two}, "six numbers for every segment"),
        ({"states": np.zeros((1, 6), np.int64)}, "a state is missing"),
        ({"rows": (2,)}, "a row is wanted that is not there"),
        ({"rows": (-1,)}, "a row is wanted that is not there"),
        (
            {"out": np.zeros((2, TINY.vocab_size), np.float32)},
            "does not fit its array",
        ),
        (
            {"out": np.zeros((1, TINY.vocab_size - 1), np.float32)},
            "does not fit its array",
        ),
    ]
    for arguments, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            run(**arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        run(out=np.zeros((1, TINY.vocab_size)))  # type: ignore[arg-type]
    run()


def test_a_matrix_is_replaced_by_the_same_in_another_layout_alone(native: Operations) -> None:
    types = {"ffn.value.weight": "Q8_0", "ffn.key.weight": "Q8_0"}
    pair = Pair(native, WIDE, types)
    name, shape = "blocks.1.ffn.value.weight", (WIDE.n_embd, WIDE.n_ffn)
    before = pair.ours([9], random_tokens(9, WIDE), [State.zeros(WIDE)])
    wrong: list[tuple[str, NativeMatrix, str]] = [
        (name, kernels.empty_matrix("F16", *shape), "another type or size"),
        (name, kernels.empty_matrix("Q8_0", shape[0], shape[1] // 2), "another type or size"),
        (
            "blocks.9.ffn.value.weight",
            kernels.empty_matrix("Q8_0", *shape),
            "no place in the model",
        ),
        (
            "blocks.1.ffn.key.weight",
            kernels.empty_matrix("Q8_0", *shape[::-1], by_columns=True),
            "packed by columns",
        ),
    ]
    for place, matrix, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            pair.model.replace_matrix(place, matrix)
        assert torch.equal(pair.ours([9], random_tokens(9, WIDE), [State.zeros(WIDE)]), before)
    raw = _encoded(random_tensors(WIDE, seed=3)[name], "Q8_0")
    pair.model.replace_matrix(name, kernels.pack("Q8_0", raw, *shape, slices=2))
    assert torch.equal(pair.ours([9], random_tokens(9, WIDE), [State.zeros(WIDE)]), before)
    pair.model.replace_matrix(name, kernels.pack("Q8_0", np.zeros_like(raw), *shape, slices=2))
    assert not torch.equal(pair.ours([9], random_tokens(9, WIDE), [State.zeros(WIDE)]), before)
    with pytest.raises(ValueError, match="not loaded"):
        _empty_model(native).replace_matrix(name, kernels.empty_matrix("Q8_0", *shape))


def _int32(values: Sequence[int]) -> Int32s:
    return np.array(values, np.int32)


def _empty_model(native: Operations, **changes: float) -> NativeModel:
    sizes = {
        "n_layer": 1,
        "n_embd": 64,
        "head_size": 16,
        "n_ffn": 64,
        "vocab_size": 10,
        "layer_norm_eps": 1e-5,
        "group_norm_eps": 1e-5,
    }
    return native.Model(**{**sizes, **changes})  # type: ignore[arg-type]


def test_models_that_cannot_be_are_refused(native: Operations) -> None:
    for changes, problem in (
        ({"n_layer": 0}, "impossible model sizes"),
        ({"n_ffn": -64}, "impossible model sizes"),
        ({"head_size": 48}, "heads of 16, 32, 64 and 128"),
        ({"n_embd": 80}, "whole heads and blocks"),
        ({"n_ffn": 72}, "whole blocks"),
    ):
        with pytest.raises(ValueError, match=problem):
            _empty_model(native, **changes)
    model = _empty_model(native)
    with pytest.raises(ValueError, match=r"emb\.weight is missing"):
        model.finish()
    with pytest.raises(ValueError, match="640 bytes and not 2560"):
        model.set_embedding(0, np.zeros(640, np.uint8))
    model.set_embedding(0, np.zeros(2560, np.uint8))
    with pytest.raises(ValueError, match=r"blocks\.0\.ln0\.weight is missing"):
        model.finish()
    model.set_vector("blocks.0.ln0.weight", np.zeros(63, np.float32))
    with pytest.raises(ValueError, match=r"ln0\.weight has the size 63 and not 64"):
        model.finish()
    with pytest.raises(ValueError, match="not loaded"):
        model.forward(
            _int32([0]),
            _int32([0, 1]),
            np.zeros((1, 6), np.int64),
            _int32([]),
            np.zeros((0, 10), np.float32),
        )


def test_weights_without_a_place_are_refused(native: Operations) -> None:
    config = replace(TINY, n_layer=1)
    surplus = np.zeros(config.n_embd, np.float32)

    def with_vector(model: NativeModel) -> None:
        model.set_vector("blocks.0.att.v0", surplus)  # layer 0 has none

    def with_shape(model: NativeModel) -> None:
        model.set_matrix("blocks.0.att.w1", native.Matrix(0, 32, 32, False, 1))

    def with_layout(model: NativeModel) -> None:
        model.set_matrix("blocks.0.ffn.key.weight", native.Matrix(8, 256, 64, True, 1))

    for change, problem in (
        (with_vector, r"blocks\.0\.att\.v0 has no place"),
        (with_shape, r"blocks\.0\.att\.w1 has the size 32 x 32 and not 32 x 64"),
        (with_layout, r"blocks\.0\.ffn\.key\.weight is read by rows"),
    ):
        changed = replace(config, n_ffn=256)
        with pytest.raises(ValueError, match=problem):
            Pair(native, changed, {}, before_finish=change)
    model = Pair(native, config, {}).model
    with pytest.raises(ValueError, match="loaded already"):
        model.set_vector("ln_out.bias", surplus)


# ---- the machine ---------------------------------------------------------------------------------


def _run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_caps_instructions_and_threads() -> None:
    supported = require_kernels().supported_isas()
    assert supported[-1] == "portable"
    assert set(supported) <= set(INSTRUCTION_SETS)
    code = "import _rwkv_kernels as k; print(k.isa(), k.num_threads())"
    for place, isa in enumerate(INSTRUCTION_SETS):
        run = _run_python(code, ANSER_ISA=isa, ANSER_THREADS="3")
        best = next(name for name in INSTRUCTION_SETS[place:] if name in supported)
        assert run.stdout.split() == [best, "3"]
    for wrong in ({"ANSER_ISA": "sse9"}, {"ANSER_THREADS": "0"}, {"ANSER_THREADS": "two"}):
        (name,) = wrong
        run = _run_python(code, **wrong)
        assert f"ValueError: {name}={wrong[name]} is no" in run.stderr
        if name == "ANSER_ISA":
            assert "of " + ", ".join(reversed(INSTRUCTION_SETS)) in run.stderr


def test_threads_are_as_many_as_asked_for(native: Operations) -> None:
    for count in (0, -1, 257):
        with pytest.raises(ValueError, match="from 1 to 256"):
            native.set_num_threads(count)
    with pytest.raises(ValueError, match="no kernels"):
        native.set_isa("sse9")
    assert native.num_threads() == 2
    native.set_num_threads(5)
    assert native.num_threads() == 5
    assert 1e8 < native.read_bandwidth(1 << 24) < 1e13


def _multiply() -> float:
    matrix = kernels.pack("F32", np.ones(64 * 64 * 4, np.uint8), 64, 64)
    return float(kernels.matmul(matrix, torch.ones(1, 64)).sum())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_has_threads_of_its_own(native: Operations) -> None:
    expected = _multiply()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_multiply).get(timeout=60) == expected
    assert _multiply() == expected

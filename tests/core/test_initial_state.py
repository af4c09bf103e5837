"""Tuned initial states: the numbers are the authors' runtime's, and only such files are taken."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_core import load_model
from rwkv_core.cache.key import state_digest
from rwkv_core.config import ModelConfig
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.engine import Engine, GenerationRequest
from rwkv_core.errors import CheckpointError
from rwkv_core.formulas import Weights
from rwkv_core.initial_state import encode_initial_state, read_initial_state
from rwkv_core.model import Model
from rwkv_core.sampler import SamplingOptions
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.native import require_kernels
from tests.tools.oracle import Reading, oracle_logits
from tests.tools.random_checkpoint import TINY, random_tensors, write_hugging_face, write_pth
from tests.tools.receiver import Receiver
from tests.tools.states import same
from tests.tools.time_states import Tensors, state_behind, time_state, write_time_state

# Of the logits' standard deviation, as in test_oracle.py.
TOLERANCE = 1e-3
# The oracle computes with heads of 64 only.
OF_ORACLE = replace(TINY, n_embd=128, head_size=64, n_ffn=512)
TOKENS = [5, 17, 290, 1, 44, 44, 201, 99, 3, 250, 128, 7]


def model_of(tensors: Tensors, config: ModelConfig = TINY) -> Model:
    weights = Weights.load(config, tensors.__getitem__)
    return Model(config, TorchExecutor(config, weights), WorldTokenizer.world())


def worst(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in standard deviations of the logits."""
    return ((ours - theirs).abs().max() / theirs.std()).item()


def test_logits_equal_the_oracle_s(tmp_path: Path) -> None:
    tensors = random_tensors(OF_ORACLE, dtype=torch.bfloat16)
    write_pth(tmp_path / "model.pth", tensors)
    tuned = time_state(OF_ORACLE)
    path = write_time_state(tmp_path / "tuned.pth", tuned)
    turned = {name: values.transpose(1, 2).contiguous() for name, values in tuned.items()}
    other = write_time_state(tmp_path / "turned.pth", turned)
    expected, of_turned = oracle_logits(
        [Reading(tmp_path / "model.pth", TOKENS, 4, each) for each in (path, other)]
    )
    plain = model_of({name: each.float() for name, each in tensors.items()}, OF_ORACLE)
    model = plain.with_initial_state(read_initial_state(path, OF_ORACLE))
    logits, _ = model.forward(TOKENS, all_logits=True)
    assert worst(logits, expected.sequence) < TOLERANCE
    assert worst(logits[-4:], expected.single) < TOLERANCE
    state = model.new_state()
    for token, wanted in zip(TOKENS, expected.sequence, strict=True):
        assert worst(model.advance([token], state), wanted) < TOLERANCE
    # The way round matters, and so does the state.
    assert worst(of_turned.sequence, expected.sequence) > 0.1
    assert worst(plain.forward(TOKENS, all_logits=True)[0], expected.sequence) > 0.1


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_file_gives_its_values_transposed(
    tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    tuned = time_state(TINY, dtype=dtype)
    state = read_initial_state(write_time_state(tmp_path / f"tuned{suffix}", tuned), TINY)
    for layer in range(TINY.n_layer):
        values = tuned[f"blocks.{layer}.att.time_state"].float()
        assert torch.equal(state.wkv[layer, 0], values.transpose(1, 2))
    assert not state.time_shift.any()
    assert not state.channel_shift.any()
    assert state.wkv.shape == (TINY.n_layer, 1, TINY.n_head, TINY.head_size, TINY.head_size)


def test_what_is_encoded_is_read_back_and_always_the_same(tmp_path: Path) -> None:
    tuned = time_state(TINY, dtype=torch.bfloat16)
    state = read_initial_state(write_time_state(tmp_path / "tuned.pth", tuned), TINY)
    data = encode_initial_state(state)
    (tmp_path / "blob").write_bytes(data)
    again = read_initial_state(tmp_path / "blob", TINY)
    assert same(again, state)
    assert encode_initial_state(again) == data
    upside_down = dict(reversed(tuned.items()))
    other = write_time_state(tmp_path / "other.st", upside_down)
    assert encode_initial_state(read_initial_state(other, TINY)) == data
    assert state_digest(again) == state_digest(state)


def test_every_text_begins_at_a_copy(tmp_path: Path) -> None:
    plain = model_of(random_tensors(TINY))
    path = write_time_state(tmp_path / "tuned.pth", time_state(TINY))
    model = plain.with_initial_state(read_initial_state(path, TINY))
    assert model.executor is plain.executor
    first = model.forward(TOKENS)[0]
    batch = model.new_state(3)
    assert batch.batch_size == 3
    texts = torch.tensor([TOKENS, TOKENS[::-1], TOKENS])
    logits = model.forward_batch(texts, batch)[0]
    assert worst(logits[0], first) < TOLERANCE
    assert worst(logits[2], first) < TOLERANCE
    model.new_state().wkv.fill_(float("nan"))
    assert torch.equal(model.forward(TOKENS)[0], first)
    assert not plain.new_state().wkv.any()
    assert torch.equal(model.with_initial_state(None).forward(TOKENS)[0], plain.forward(TOKENS)[0])


def test_two_engines_on_the_same_weights_at_once(tmp_path: Path) -> None:
    require_kernels()
    plain = load_model(EMBEDDED, kernels=True)
    told = "User: My name is Ada.\n\nAssistant: Nice to meet you, Ada!\n\n"
    path = write_time_state(tmp_path / "tuned.pth", state_behind(plain, told))
    tuned = plain.with_initial_state(read_initial_state(path, plain.config))
    questions = ("What is my name?", "Hello!", "What is 3 + 4?", "Who am I?")
    encode = plain.tokenizer.encode
    prompts = [tuple(encode(f"User: {each}\n\nAssistant:")) for each in questions]

    def texts(models: list[Model]) -> list[list[str]]:
        """Of every model the reply to each prompt, all of them at once."""
        engines = [Engine(model) for model in models]
        try:
            receivers = [[Receiver() for _ in prompts] for _ in engines]
            for prompt, *each in zip(prompts, *receivers, strict=True):
                request = GenerationRequest(prompt, SamplingOptions(temperature=0), 32, ())
                for engine, receiver in zip(engines, each, strict=True):
                    engine.submit(request, receiver)
            for receiver in chain(*receivers):
                receiver.finished()
            return [[receiver.text for receiver in each] for each in receivers]
        finally:
            for engine in engines:
                engine.close()

    alone = [texts([model])[0] for model in (plain, tuned)]
    assert "Ada" in alone[1][0]
    assert "Ada" not in alone[0][0]
    assert texts([plain, tuned]) == alone


def with_(tensors: Tensors, **changes: Tensor) -> Tensors:
    return tensors | {name.replace("__", "."): value for name, value in changes.items()}


def without_last(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[:-1])


BAD: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "a layer too few": (without_last, "has states of 2 layers; the model has layers 0 to 2"),
    "a layer too many": (
        lambda tuned: time_state(replace(TINY, n_layer=4)),
        "has states of 4 layers; the model has layers 0 to 2",
    ),
    "another head size": (
        lambda tuned: time_state(replace(TINY, head_size=32)),
        "time_state has shape [2, 32, 32]; the model's is [4, 16, 16]: it is of another model",
    ),
    "a flat one": (
        lambda tuned: {name: values.flatten() for name, values in tuned.items()},
        "has shape [1024]; the model's is [4, 16, 16]",
    ),
    "not a number": (
        lambda tuned: with_(tuned, blocks__1__att__time_state=torch.full((4, 16, 16), torch.nan)),
        "tensor blocks.1.att.time_state has values that are not finite",
    ),
    "infinite": (
        lambda tuned: with_(tuned, blocks__2__att__time_state=torch.full((4, 16, 16), torch.inf)),
        "tensor blocks.2.att.time_state has values that are not finite",
    ),
    "LoRA": (
        lambda tuned: {
            "blocks.0.att.receptance.lora_A": torch.zeros(8, 64),
            "blocks.0.att.receptance.lora_B": torch.zeros(64, 8),
        },
        "is an adapter of weights (LoRA or the like); Anser loads tuned initial states",
    ),
    "LoRA of PEFT": (
        lambda tuned: {
            "base_model.model.model.layers.0.attn.r_proj.lora_A.weight": torch.zeros(8, 64)
        },
        "is an adapter of weights",
    ),
    "Bone": (lambda tuned: {"blocks.0.att.key.bone": torch.zeros(8, 8)}, "an adapter of weights"),
    "a model": (lambda tuned: random_tensors(TINY), "is a model, not an adapter"),
    "a model with a state": (
        lambda tuned: random_tensors(TINY) | tuned,
        "is a model, not an adapter",
    ),
    "something else": (
        lambda tuned: with_(tuned, optimizer=torch.zeros(3)),
        "is no tuned initial state: it has the tensor 'optimizer'",
    ),
    "whole numbers": (
        lambda tuned: {name: values.to(torch.int64) for name, values in tuned.items()},
        "as 'I64'; convert it to one of F32, F16, BF16",
    ),
}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_initial_state(path, TINY)
    assert caught.value.path.startswith(str(path))
    assert "\n" not in caught.value.problem
    assert len(caught.value.problem) < 300
    return caught.value.problem


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    change, problem = BAD[name]
    path = tmp_path / f"bad{suffix}"
    assert problem in refusal(write_time_state(path, change(time_state(TINY))))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    good = write_time_state(tmp_path / "good.pth", time_state(TINY)).read_bytes()
    files = {
        "cut.pth": (good[: len(good) // 2], "damaged or truncated"),
        "empty.pth": (b"", "is empty"),
        "text.pth": (b"once upon a time", "is no .pth"),
        "lora.gguf": (b"GGUF\x03\0\0\0", "is a GGUF file; a tuned initial state is .pth or"),
    }
    for name, (data, problem) in files.items():
        (tmp_path / name).write_bytes(data)
        assert problem in refusal(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", "x")
    assert "none that torch.save wrote" in refusal(tmp_path / "photos.zip")
    assert "no such file" in refusal(tmp_path / "absent.pth")
    folder = tmp_path / "folder"
    write_hugging_face(folder, random_tensors(TINY), TINY)
    assert "is a model, not an adapter" in refusal(folder)

"""`load_model`: every format gives the same model, in the right types, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from rwkv_core import loading
from rwkv_core.checkpoint import open_checkpoint, read_config
from rwkv_core.checkpoint.base import PLAIN_TYPES
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.config import ModelConfig
from rwkv_core.errors import (
    AnserError,
    CheckpointError,
    ModelTooLargeError,
    OptionError,
    TokenizerError,
)
from rwkv_core.formulas import is_matrix
from rwkv_core.loading import find_tokenizer, load_model
from rwkv_core.model import Model
from rwkv_core.tokenizer import WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from tests.tools.native import require_kernels
from tests.tools.random_checkpoint import (
    TINY,
    random_tensors,
    write_hugging_face,
    write_pth,
    write_rwkv_cpp,
    write_safetensors,
)

TOKENS = [1, 17, 0, 299, 42, 42, 7]


def write_tokenizer(folder: Path, num_tokens: int = TINY.vocab_size) -> None:
    """A byte-level tokenizer.json: one token for every byte, and others that nothing matches."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"<unused{index}>" for index in range(num_tokens - len(alphabet)))]
    tokenizer = RustTokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def _weights(model: Model) -> dict[str, Tensor]:
    """All weights of a model in PyTorch under their canonical names."""
    assert isinstance(model.executor, TorchExecutor)
    found: dict[str, Tensor] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, Tensor):
            is_bare = prefix.rpartition(".")[2] in ("emb", "head", *_PROJECTIONS)
            found[prefix + ".weight" if is_bare else prefix] = value
        elif value is not None:
            for name, part in vars(value).items():
                walk(f"{prefix}.{name}", part)

    for name, value in vars(model.executor.weights).items():
        if name == "layers":
            for index, layer in enumerate(value):
                walk(f"blocks.{index}", layer)
        else:
            walk("blocks.0.ln0" if name == "ln0" else name, value)
    return found


_PROJECTIONS = ("receptance", "key", "value", "output")


def _hugging_face(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_hugging_face(path, tensors, TINY, shards=2)
    (path.parent / "tokenizer.json").rename(path / "tokenizer.json")


def _rwkv_cpp(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_rwkv_cpp(path, tensors, type_name="F32")


@pytest.mark.parametrize("write", [write_pth, write_safetensors, _hugging_face, _rwkv_cpp])
def test_the_same_model_out_of_every_format(
    tmp_path: Path, write: Callable[[Path, Mapping[str, Tensor]], None]
) -> None:
    write_tokenizer(tmp_path)
    tensors = random_tensors(TINY)
    write(tmp_path / "model", tensors)
    model = load_model(tmp_path / "model", kernels=False)
    assert model.config == TINY
    weights = _weights(model)
    assert weights.keys() == tensors.keys()
    assert all(torch.equal(weights[name], tensors[name]) for name in tensors)

    logits, _ = model.forward(TOKENS)
    assert logits.shape == (TINY.vocab_size,)
    assert logits.isfinite().all()
    assert model.tokenizer.decode(model.tokenizer.encode("Hi, wörld")) == "Hi, wörld"


@pytest.mark.parametrize(
    ("stored", "asked", "matrices"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float32),  # PyTorch's float16 products on a CPU are very slow
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_types(
    tmp_path: Path, stored: torch.dtype, asked: torch.dtype | None, matrices: torch.dtype
) -> None:
    write_tokenizer(tmp_path)
    tensors = random_tensors(TINY, dtype=stored)
    write_pth(tmp_path / "model.pth", tensors)
    model = load_model(tmp_path / "model.pth", dtype=asked, kernels=False)
    assert PLAIN_TYPES[model.executor.type_name] == matrices
    for name, tensor in _weights(model).items():
        expected = matrices if is_matrix(name) else torch.float32
        assert tensor.dtype == expected, name
        assert torch.equal(tensor, tensors[name].to(expected)), name


def test_quantized_weights_become_float32_on_a_cpu(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_rwkv_cpp(tmp_path / "model.bin", random_tensors(TINY), type_name="Q5_1")
    assert load_model(tmp_path / "model.bin", kernels=False).executor.type_name == "F32"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"dtype": torch.int8}, "dtype must be float32, bfloat16 or float16"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: dict[str, object], problem: str) -> None:
    with pytest.raises(OptionError, match=problem) as caught:
        load_model(tmp_path / "never opened", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# Small, but with as many rows as the World vocabulary.
WORLD = replace(
    TINY, n_layer=1, n_embd=8, head_size=4, n_ffn=8, vocab_size=65536, value_rank=0, gate_rank=2
)


def test_a_model_with_65536_rows_speaks_world(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, random_tensors(WORLD))
    assert load_model(path).tokenizer is WorldTokenizer.world()
    write_tokenizer(tmp_path, 300)  # of another model in the same folder
    assert load_model(path).tokenizer is WorldTokenizer.world()
    write_tokenizer(tmp_path, 65530)
    assert load_model(path).tokenizer.vocab_size == 65530


def _error(path: Path) -> AnserError:
    with pytest.raises(AnserError) as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path.parent))
    assert "\n" not in str(caught.value)
    return caught.value


def test_tokenizers_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, random_tensors(TINY))
    error = _error(path)
    assert isinstance(error, TokenizerError)
    assert "300 tokens" in str(error)
    assert "put the model's tokenizer.json beside it" in str(error)

    write_tokenizer(tmp_path, 301)
    assert "its tokenizer has 301 tokens, the model only 300" in str(_error(path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert isinstance(_error(path), TokenizerError)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    assert "UTF-8" in str(_error(path))


def test_a_bad_model_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    tensors = random_tensors(TINY)
    write_pth(path, {**tensors, "blocks.2.ffn.x_k": torch.ones(63)})
    error = _error(path)
    assert isinstance(error, CheckpointError)
    assert "blocks.2.ffn.x_k has shape [63], expected [64]" in str(error)


# An embedding and a head of 50 MB each in bfloat16: a copy of either that was kept would be seen.
LARGE = ModelConfig(
    n_layer=3,
    n_embd=512,
    head_size=64,
    vocab_size=49152,
    n_ffn=2048,
    decay_rank=32,
    iclr_rank=32,
    value_rank=32,
    gate_rank=64,
)


def _write_q8_0(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_pth(path.with_suffix(".pth"), tensors)
    with closing(open_checkpoint(path.with_suffix(".pth"))) as checkpoint:
        tokenizer = find_tokenizer(checkpoint, read_config(checkpoint))
        convert_to_gguf(checkpoint, tokenizer, path, name="large", quantize="q8_0")


MEASURE = """
import json, sys
from pathlib import Path
from rwkv_core.loading import load_model

def status(key):  # of this process image alone; ru_maxrss would inherit what pytest has used
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) << 10

kernels = sys.argv[3] == "kernels"
load_model(sys.argv[1], kernels=kernels)  # a tiny one, for everything that is paid once
before = status("VmRSS:")
model = load_model(sys.argv[2], kernels=kernels)
peak = status("VmHWM:") - before
json.dump([peak, model.executor.type_name, model.num_weight_bytes], sys.stdout)
"""


@pytest.fixture(scope="module")
def large_tensors() -> dict[str, Tensor]:
    return random_tensors(LARGE)


def _measure(folder: Path, runtime: str) -> tuple[int, str, int]:
    """Peak memory of loading `large`, its type and the bytes of its weights."""
    write_pth(folder / "tiny.pth", random_tensors(TINY))
    files = [str(folder / "tiny.pth"), str(folder / "large")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files, runtime], capture_output=True, text=True, check=True
    )
    peak, type_name, num_weight_bytes = json.loads(done.stdout)
    return peak, type_name, num_weight_bytes


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)


@needs_proc
@pytest.mark.parametrize(
    ("write", "stored", "loaded"),
    [
        (write_pth, torch.bfloat16, "BF16"),
        (write_safetensors, torch.float16, "F32"),
        (_write_q8_0, torch.float32, "F32"),
    ],
)
def test_loading_holds_one_tensor_beside_the_weights(
    tmp_path: Path,
    large_tensors: dict[str, Tensor],
    write: Callable[[Path, Mapping[str, Tensor]], None],
    stored: torch.dtype,
    loaded: str,
) -> None:
    write_tokenizer(tmp_path)
    write(tmp_path / "large", {name: value.to(stored) for name, value in large_tensors.items()})
    peak, type_name, num_weight_bytes = _measure(tmp_path, "torch")
    assert type_name == loaded
    item_bytes = PLAIN_TYPES[loaded].itemsize
    weights = item_bytes * sum(tensor.numel() for tensor in large_tensors.values())
    assert weights <= num_weight_bytes < 1.01 * weights  # vectors are float32
    largest = item_bytes * LARGE.vocab_size * LARGE.n_embd
    assert 0.95 * weights < peak < weights + largest + (32 << 20)


@needs_proc
@pytest.mark.parametrize(
    ("write", "stored", "loaded"),
    [
        (write_pth, torch.bfloat16, "BF16"),
        (write_safetensors, torch.float16, "F16"),
        (_write_q8_0, torch.float32, "Q8_0"),
    ],
)
def test_loading_for_the_kernels_holds_one_slice_beside_the_packed_weights(
    tmp_path: Path,
    large_tensors: dict[str, Tensor],
    write: Callable[[Path, Mapping[str, Tensor]], None],
    stored: torch.dtype,
    loaded: str,
) -> None:
    require_kernels()
    write_tokenizer(tmp_path)
    write(tmp_path / "large", {name: value.to(stored) for name, value in large_tensors.items()})
    file_bytes = (tmp_path / "large").stat().st_size
    peak, type_name, num_weight_bytes = _measure(tmp_path, "kernels")
    assert type_name == loaded
    assert 0.98 * file_bytes < num_weight_bytes < 1.02 * file_bytes
    assert 0.95 * num_weight_bytes < peak < num_weight_bytes + (16 << 20) + (32 << 20)


def test_a_model_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.bin"
    write_rwkv_cpp(path, random_tensors(TINY), type_name="Q8_0")
    write_tokenizer(tmp_path)
    monkeypatch.setattr(loading, "_WORKING_BYTES", 0)
    monkeypatch.setattr(loading, "available_bytes", lambda: path.stat().st_size)
    for dtype in (torch.float32, None):  # as asked, and what the file becomes in PyTorch
        with pytest.raises(ModelTooLargeError, match="in F32, but only"):
            load_model(path, dtype=dtype, kernels=False)
    monkeypatch.setattr(loading, "available_bytes", lambda: path.stat().st_size // 2)
    with pytest.raises(ModelTooLargeError, match=r"needs . MB of memory in BF16, but only 0 MB"):
        load_model(path, dtype=torch.bfloat16)
    monkeypatch.setattr(loading, "available_bytes", lambda: None)
    assert load_model(path).forward(TOKENS)[0].isfinite().all()


def test_a_model_that_fits_packed_is_loaded_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_kernels()
    path = tmp_path / "model.bin"
    write_rwkv_cpp(path, random_tensors(TINY), type_name="Q8_0")
    write_tokenizer(tmp_path)
    monkeypatch.setattr(loading, "_WORKING_BYTES", 0)
    monkeypatch.setattr(loading, "available_bytes", lambda: path.stat().st_size)
    assert load_model(path).forward(TOKENS)[0].isfinite().all()
    monkeypatch.setattr(loading, "available_bytes", lambda: path.stat().st_size // 2)
    with pytest.raises(ModelTooLargeError, match="memory in Q8_0, but only 0 MB are free"):
        load_model(path)

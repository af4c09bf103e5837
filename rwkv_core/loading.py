"""From a path to a model that is ready to run."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.base import PLAIN_TYPES, main_type
from rwkv_core.checkpoint.metadata_keys import (
    GGUF_MODEL_KEY,
    GGUF_TOKENS_KEY,
    HUGGING_FACE_JSON_KEY,
)
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.config import ModelConfig
from rwkv_core.errors import CheckpointError, OptionError, TokenizerError
from rwkv_core.formulas import Weights, is_matrix
from rwkv_core.kernel_executor import KernelExecutor, can_run
from rwkv_core.kernels import native
from rwkv_core.kernels.interface import Native
from rwkv_core.memory import available_bytes, require_memory, tightest_limit
from rwkv_core.model import Model
from rwkv_core.tokenizer import HuggingFaceTokenizer, Tokenizer, WorldTokenizer
from rwkv_core.torch_executor import TorchExecutor
from rwkv_core.zero_channels import skip_zero_channels

TOKENIZER_FILE = "tokenizer.json"

# Rows of an embedding with the World vocabulary: 65536 as released, or cut to the tokens there are,
# or with a few rows added for a fine-tune.
_WORLD_ROWS = range(65529, 65537 + 512)

# Beside the weights: activations of a pass, states, the tokenizer, a slice of the file, and before
# the first long pass a value matrix that gets another layout.
_WORKING_BYTES = 200 << 20

_MAX_TOKENIZER_BYTES = 256 << 20

_Data = TypeVar("_Data")


def load_model(
    path: str | PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    kernels: bool | None = None,
    skips_zero_channels: bool = True,
) -> Model:
    """Loads an RWKV-7 model and its tokenizer from a file or folder of any supported format.

    On a CPU the kernels run it on weights as they are stored; `kernels` False, or a `dtype`, means
    PyTorch instead, True an error where they cannot. In PyTorch `dtype` (float32, bfloat16 or
    float16) is the type of the matrices; vectors are always float32. None keeps what the file has,
    except that on a CPU float16 and quantized weights become float32 (PyTorch's float16 products
    are a hundred times slower there), and elsewhere quantized weights become float16. One tensor at
    a time is held beside the weights. The kernels skip channels that are zero in the layers where a
    short text finds that faster; `skips_zero_channels` False spares the search, and no number
    depends on it. Raises CheckpointError, TokenizerError, OptionError or
    ModelTooLargeError.
    """
    target = _device(device)
    if dtype not in (None, *PLAIN_TYPES.values()):
        raise OptionError(f"dtype must be float32, bfloat16 or float16, not {dtype}")
    with closing(open_checkpoint(path)) as checkpoint:
        config = read_config(checkpoint)
        extension = _extension(config, target, dtype, kernels)
        matrix_dtype = dtype or default_dtype(checkpoint, target)
        if target.type == "cpu":
            _require_memory(checkpoint, None if extension else matrix_dtype)
        tokenizer = find_tokenizer(checkpoint, config)
        if extension is None:
            in_torch = _load_in_torch(config, checkpoint, target, matrix_dtype)
            return Model(config, in_torch, tokenizer, metadata=checkpoint.metadata)
        executor = KernelExecutor.load(extension, config, checkpoint)
        model = Model(config, executor, tokenizer, metadata=checkpoint.metadata)
        if skips_zero_channels:
            skip_zero_channels(model, executor, checkpoint)
        return model


def _extension(
    config: ModelConfig, device: torch.device, dtype: torch.dtype | None, wanted: bool | None
) -> Native | None:
    """The kernels, if they are to run the model; OptionError if they must and cannot."""
    if wanted is False:
        return None
    obstacle = None
    if device.type != "cpu":
        obstacle = f"run on a CPU, not on {device}"
    elif dtype is not None:
        obstacle = f"compute with weights as they are stored, not as {dtype}"
    elif not can_run(config):
        obstacle = "are not made for the sizes of this model"
    extension = native() if obstacle is None else None
    if wanted and extension is None:
        raise OptionError(f"the kernels {obstacle or 'are not built, or turned off'}")
    return extension


def _require_memory(checkpoint: Checkpoint, matrix_dtype: torch.dtype | None) -> None:
    """Raises ModelTooLargeError if the weights do not fit, in this type or (None) as stored."""
    num_values = {name: math.prod(info.shape) for name, info in checkpoint.tensors.items()}
    if matrix_dtype is None:
        type_name = main_type(checkpoint)
        weight_bytes = sum(info.nbytes for info in checkpoint.tensors.values())
        other_bytes = _WORKING_BYTES
    else:
        type_name = next(name for name, kind in PLAIN_TYPES.items() if kind == matrix_dtype)
        weight_bytes = sum(
            count * (matrix_dtype if is_matrix(name) else torch.float32).itemsize
            for name, count in num_values.items()
        )
        # Beside the weights there is one tensor as it was read.
        other_bytes = _WORKING_BYTES + max(num_values.values()) * matrix_dtype.itemsize
    require_memory(
        checkpoint.path,
        type_name=type_name,
        weight_bytes=weight_bytes,
        other_bytes=other_bytes,
        num_parameters=sum(num_values.values()),
        available=available_bytes(),
        group_limit=tightest_limit(),
        stays_packed=matrix_dtype is None,
    )


def _load_in_torch(
    config: ModelConfig, checkpoint: Checkpoint, device: torch.device, matrix_dtype: torch.dtype
) -> TorchExecutor:
    def read(name: str) -> Tensor:
        kind = matrix_dtype if is_matrix(name) else torch.float32
        return checkpoint.read(name).to(device=device, dtype=kind)

    return TorchExecutor(config, Weights.load(config, read))


def default_dtype(checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The type for the matrices in PyTorch when none is asked for."""
    dtype = PLAIN_TYPES.get(main_type(checkpoint), torch.float16)
    is_slow = device.type == "cpu" and dtype == torch.float16
    return torch.float32 if is_slow else dtype


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """A model's tokenizer without its weights. Raises CheckpointError, TokenizerError."""
    with closing(open_checkpoint(path)) as checkpoint:
        return find_tokenizer(checkpoint, read_config(checkpoint))


def find_tokenizer(checkpoint: Checkpoint, config: ModelConfig) -> Tokenizer:
    """The model's tokenizer: inside the file, in a `tokenizer.json` beside it, or else World's.

    Raises TokenizerError when there is none that fits the model's vocabulary.
    """
    tokenizer = _tokenizer_inside(checkpoint) or _tokenizer_beside(checkpoint, config)
    if tokenizer is None:
        if config.vocab_size not in _WORLD_ROWS:
            raise TokenizerError(
                f"{checkpoint.path}: has a vocabulary of {config.vocab_size} tokens, which is not "
                f"RWKV World's; put the model's {TOKENIZER_FILE} beside it"
            )
        return WorldTokenizer.world()
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"{checkpoint.path}: its tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{config.vocab_size}; use the {TOKENIZER_FILE} that the model was trained with"
        )
    return tokenizer


def _tokenizer_inside(checkpoint: Checkpoint) -> Tokenizer | None:
    metadata = checkpoint.metadata
    json_text = metadata.get(HUGGING_FACE_JSON_KEY)
    if isinstance(json_text, str):
        return _made(checkpoint.path, HuggingFaceTokenizer, json_text)
    if metadata.get(GGUF_MODEL_KEY) != "rwkv":
        return None
    tokens = metadata.get(GGUF_TOKENS_KEY)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{checkpoint.path}: its {GGUF_TOKENS_KEY} is no list of tokens")
    return _made(checkpoint.path, WorldTokenizer.from_gguf, tokens)


def _tokenizer_beside(checkpoint: Checkpoint, config: ModelConfig) -> Tokenizer | None:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    tokenizer = _made(path, HuggingFaceTokenizer, _read_text(path))
    # A folder of downloads may hold World models beside the one that the file belongs to.
    is_world = config.vocab_size in _WORLD_ROWS
    return None if is_world and tokenizer.vocab_size not in _WORLD_ROWS else tokenizer


def _made(path: Path, make: Callable[[_Data], Tokenizer], data: _Data) -> Tokenizer:
    """`make(data)`, its errors with the name of the file that the data came from."""
    try:
        return make(data)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read_text(path: Path) -> str:
    with RandomAccessFile(path) as file:
        if file.size > _MAX_TOKENIZER_BYTES:
            raise CheckpointError(path, f"has {file.size} bytes, too many for a tokenizer")
        try:
            return file.read(0, file.size).decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"{path}: is not UTF-8 text") from None


def _device(device: str | torch.device) -> torch.device:
    """The device, once a tensor has been made on it."""
    try:
        target = torch.device(device)
        torch.empty(1, device=target)
    # PyTorch raises AssertionError when it was built without the device, RuntimeError for the rest.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"device {str(device)!r} cannot be used: {reason}") from None
    return target

"""Opens a model file of any format by what is in it."""

from __future__ import annotations

import os
from pathlib import Path

from rwkv_core.checkpoint.base import StoredCheckpoint
from rwkv_core.checkpoint.gguf import GGUFCheckpoint
from rwkv_core.checkpoint.pth import PthCheckpoint
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.checkpoint.rwkv_cpp import MAGIC as RWKV_CPP_MAGIC
from rwkv_core.checkpoint.rwkv_cpp import RwkvCppCheckpoint
from rwkv_core.checkpoint.safetensors import INDEX_NAME, open_safetensors, open_sharded
from rwkv_core.errors import CheckpointError

# A folder with several of these is ambiguous: the user must name the file.
_MODEL_SUFFIXES = (".safetensors", ".st", ".gguf", ".pth", ".bin")

# Files that look like a model in a listing but are none: what they are, and what to do.
_KNOWN_STRANGERS = {
    b"version https://git-lfs": "is only a Git LFS pointer; get the file itself (git lfs pull)",
    b"\x80\x02": "was saved by PyTorch before 1.6; load it there and save it again with torch.save",
    b"lmgg": "is a ggml file from before rwkv.cpp's own format; convert the original model again",
    b"tjgg": "is a GGJT file of llama.cpp, an old format without RWKV; convert the original model",
    b"<": "is a web page, not a model; the download went wrong",
}


def open_checkpoint(path: str | os.PathLike[str]) -> StoredCheckpoint:
    """Opens a model file, or a folder in Hugging Face's layout, by what is in it.

    Extensions do not matter, so a nameless blob opens too. Raises CheckpointError for anything that
    is no model file or that is damaged; whether the tensors are RWKV-7's, `read_config` says.
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises where a folder above must not be entered
        return _open_folder(path)
    with RandomAccessFile(path) as file:
        size, start = file.size, file.read(0, min(file.size, 24))
    if size == 0:
        raise CheckpointError(path, "is empty")
    if start.startswith(b"GGUF"):
        return GGUFCheckpoint(path)
    if start.startswith(b"PK\x03\x04"):
        return PthCheckpoint(path)
    if start.startswith(RWKV_CPP_MAGIC):
        return RwkvCppCheckpoint(path)
    if start[8:9] == b"{":  # after the header's length, whose bytes may be anything
        return open_safetensors(path)
    if start.lstrip().startswith(b"{"):
        return open_sharded(path)
    strangers = (what for magic, what in _KNOWN_STRANGERS.items() if start.startswith(magic))
    raise CheckpointError(path, next(strangers, "is no .pth, safetensors, GGUF or rwkv.cpp file"))


def _open_folder(path: Path) -> StoredCheckpoint:
    index = path / INDEX_NAME
    if index.is_file():
        return open_sharded(index, path)
    whole = path / "model.safetensors"
    if whole.is_file():
        return open_checkpoint(whole)
    try:
        files = sorted(p for p in path.iterdir() if p.suffix in _MODEL_SUFFIXES and p.is_file())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    if not files:
        raise CheckpointError(path, "is a folder without a model file")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise CheckpointError(path, f"holds several model files ({names}); name one of them")
    return open_checkpoint(files[0])

"""safetensors files: the authors' naming (Ai00's `.st`) or Hugging Face's, in one file or sharded.

A file is a little-endian uint64, that many bytes of JSON (name -> dtype, shape, data_offsets), and
the data. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from rwkv_core.checkpoint.base import (
    PLAIN_TYPES,
    TensorInfo,
    TranslatedCheckpoint,
    choose_naming,
    plain_size,
    unreadable_type,
)
from rwkv_core.checkpoint.ggml_blocks import Bytes
from rwkv_core.checkpoint.metadata_keys import CHAT_TEMPLATE_KEY, LAYER_NORM_EPS_KEY
from rwkv_core.checkpoint.names import HUGGING_FACE
from rwkv_core.checkpoint.random_access import RandomAccessFile
from rwkv_core.errors import CheckpointError, quoted

INDEX_NAME = "model.safetensors.index.json"
# Newer folders have it beside tokenizer_config.json, older ones inside it.
_CHAT_TEMPLATE_FILE = "chat_template.jinja"

# The header of a 61-layer model has 0.3 MB. The limit bounds what parsing hostile JSON can cost.
MAX_JSON_BYTES = 8 << 20
_MAX_SHARDS = 500


class SafetensorsFile:
    """One safetensors file: names, shapes and places of its tensors."""

    def __init__(self, path: Path) -> None:
        self._file = RandomAccessFile(path)
        try:
            self.tensors, self._offsets = _read_header(self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        return self._file.read_tensor(self._offsets[name], info.shape, info.type_name)

    def slices(self, name: str, slice_bytes: int) -> Iterator[Bytes]:
        """A tensor's bytes, so many at a time; each slice is valid until the next."""
        return self._file.read_slices(self._offsets[name], self.tensors[name].nbytes, slice_bytes)

    def close(self) -> None:
        self._file.close()


class SafetensorsCheckpoint(TranslatedCheckpoint):
    """A model in one or more safetensors files."""

    def __init__(self, path: Path, shards: Mapping[str, SafetensorsFile]) -> None:
        """`shards`: for every stored tensor, the opened file with it. Takes over the files."""
        self._shards = shards
        stored = {name: shard.tensors[name] for name, shard in shards.items()}
        naming = choose_naming(stored)
        folder = path if path.is_dir() else path.parent
        metadata = _hugging_face_metadata(folder) if naming is HUGGING_FACE else {}
        super().__init__(path, "safetensors", naming, stored, metadata=metadata)

    def _read_stored(self, stored_name: str) -> Tensor:
        return self._shards[stored_name].read(stored_name)

    def _stored_slices(self, stored_name: str, slice_bytes: int) -> Iterator[Bytes]:
        return self._shards[stored_name].slices(stored_name, slice_bytes)

    def close(self) -> None:
        _close_all(self._shards)


def open_safetensors(path: Path) -> SafetensorsCheckpoint:
    """Opens a single file."""
    file = SafetensorsFile(path)
    return _opened(path, dict.fromkeys(file.tensors, file))


def open_sharded(index_path: Path, path: Path | None = None) -> SafetensorsCheckpoint:
    """Opens all files that a `model.safetensors.index.json` names; the model's path if another."""
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index_path, "has no weight_map, so it does not list a model's files")
    for file_name in weight_map.values():
        if not isinstance(file_name, str) or not _is_plain_file_name(file_name):
            raise CheckpointError(
                index_path, f"names {quoted(str(file_name))}, which is no file of its folder"
            )
    file_names = sorted(set(weight_map.values()))
    if len(file_names) > _MAX_SHARDS:
        raise CheckpointError(index_path, f"names {len(file_names)} files, more than {_MAX_SHARDS}")
    files: dict[str, SafetensorsFile] = {}
    try:
        for file_name in file_names:
            files[file_name] = SafetensorsFile(index_path.with_name(file_name))
        shards = {name: files[file_name] for name, file_name in weight_map.items()}
        for name, shard in shards.items():
            if name not in shard.tensors:
                raise CheckpointError(
                    index_path, f"expects tensor {quoted(name)} in {weight_map[name]}; it has none"
                )
    except BaseException:
        _close_all(files)
        raise
    return _opened(path or index_path, shards)


def read_json_object(path: Path) -> dict[str, Any]:
    """A small JSON file with an object in it; CheckpointError for anything else."""
    with RandomAccessFile(path) as file:
        if file.size > MAX_JSON_BYTES:
            raise CheckpointError(path, f"is no model's JSON file: it has {file.size} bytes")
        return _parse_json(path, file.read(0, file.size), "the file")


def _opened(path: Path, shards: Mapping[str, SafetensorsFile]) -> SafetensorsCheckpoint:
    try:
        return SafetensorsCheckpoint(path, shards)
    except BaseException:
        _close_all(shards)
        raise


def _close_all(files: Mapping[str, SafetensorsFile]) -> None:
    for file in files.values():
        file.close()


def _is_plain_file_name(name: str) -> bool:
    return re.fullmatch(r"[\w.+-][\w .+-]*", name) is not None and name not in (".", "..")


def _read_header(file: RandomAccessFile) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Infos and absolute offsets of all tensors."""
    if file.size < 8:
        raise CheckpointError(file.path, "is too short for a safetensors file")
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if header_bytes > file.size - 8:
        raise CheckpointError(
            file.path, f"says its header has {header_bytes} bytes, more than the whole file"
        )
    if header_bytes > MAX_JSON_BYTES:
        raise CheckpointError(file.path, f"has a header of {header_bytes} bytes, no model needs it")
    header = _parse_json(file.path, file.read(8, header_bytes), "its header")
    header.pop("__metadata__", None)
    if not header:
        raise CheckpointError(file.path, "holds no tensors")
    start = 8 + header_bytes
    infos: dict[str, TensorInfo] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        infos[name], begin = _tensor_info(file.path, name, entry, file.size - start)
        places.append((begin, begin + infos[name].nbytes, name))
    end = 0
    for begin, tensor_end, name in sorted(places):
        if begin != end:
            problem = "overlaps the one before it" if begin < end else "has unused bytes before it"
            raise CheckpointError(file.path, f"is damaged: tensor {quoted(name)} {problem}")
        end = tensor_end
    return infos, {name: start + begin for begin, _, name in places}


def _tensor_info(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[TensorInfo, int]:
    """The info of one header entry, and where its data begins after the header."""
    values = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = values.get("shape"), values.get("data_offsets"), values.get("dtype")
    if not _is_list_of_int(shape) or not _is_list_of_int(offsets) or len(offsets) != 2:
        raise CheckpointError(path, f"is damaged: its entry for tensor {quoted(name)} is malformed")
    if not isinstance(dtype, str) or dtype not in PLAIN_TYPES:
        raise unreadable_type(path, name, str(dtype))
    nbytes = plain_size(path, name, shape, dtype, data_bytes)
    begin, end = offsets
    if not 0 <= begin <= end <= data_bytes:
        raise CheckpointError(
            path, f"says tensor {quoted(name)} is outside the file: it is truncated or damaged"
        )
    if end - begin != nbytes:
        raise CheckpointError(
            path, f"gives tensor {quoted(name)} {end - begin} bytes; its shape needs {nbytes}"
        )
    return TensorInfo(name, tuple(shape), dtype, nbytes), begin


def _is_list_of_int(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _parse_json(path: Path, text: bytes, what: str) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        items = dict(pairs)
        if len(items) != len(pairs):
            raise ValueError("it has a key twice")
        return items

    try:
        parsed = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, huge integers
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(path, f"{what} is not valid JSON: {problem}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(path, f"{what} is not a JSON object")
    return parsed


def _hugging_face_metadata(folder: Path) -> dict[str, Any]:
    """The one number of config.json that the tensors do not show, and the chat template."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = read_json_object(path)
    model_type = config.get("model_type", "rwkv7")
    if model_type != "rwkv7":
        problem = f"describes a {quoted(str(model_type))} model; Anser runs RWKV-7"
        raise CheckpointError(path, problem)
    metadata: dict[str, Any] = {LAYER_NORM_EPS_KEY: config.get("norm_eps", 1e-5)}
    template = _chat_template(folder)
    return metadata | ({CHAT_TEMPLATE_KEY: template} if template else {})


def _chat_template(folder: Path) -> str:
    """The template of a folder from Hugging Face; "" when it has none that can be read.

    A model runs without it, so that nothing is refused for its sake.
    """
    file, config = folder / _CHAT_TEMPLATE_FILE, folder / "tokenizer_config.json"
    try:
        if file.is_file() and file.stat().st_size <= MAX_JSON_BYTES:
            return file.read_text(encoding="utf-8")
        template = read_json_object(config).get("chat_template") if config.is_file() else ""
        if not isinstance(template, str):  # a list of templates by name
            return ""
        template.encode()  # JSON can hold what is no text
        return template
    except (OSError, UnicodeError, CheckpointError):
        return ""

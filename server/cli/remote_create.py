"""`anser create` on another machine: files are sent to the server there, which does the work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.cli.client import Client
from server.cli.errors import CommandError
from server.cli.terminal import ProgressBar
from server.creating.modelfile import Modelfile
from server.store.local_files import local_path

_PIECE_BYTES = 1 << 20
_VOCABULARY = "tokenizer.json"
# What belongs to a model in a folder of Hugging Face's layout, and what is one by itself.
_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".pth", ".gguf", ".bin", ".st"})


def create_remotely(
    client: Client,
    name: str,
    modelfile: Modelfile,
    folder: Path,
    quantize: str | None,
    bar: ProgressBar,
) -> None:
    """Makes the model on the server. Raises CommandError for files that cannot be sent."""
    request: dict[str, Any] = {"model": name, **_texts(modelfile)}
    source = local_path(modelfile.source, folder)
    if source is None:
        request["from"] = modelfile.source
    else:
        request["files"] = {each.name: _send(client, each, bar) for each in _files(source)}
    adapter = modelfile.last("adapter")
    if adapter is not None:
        path = local_path(adapter, folder)
        if path is None:
            problem = f"there is no file of that name in {folder.resolve()}"
            raise CommandError(f"ADAPTER {adapter}: {problem}")
        request["adapters"] = {path.name: _send(client, path, bar)}
    if quantize:
        request["quantize"] = quantize
    for status in client.create(request):
        bar.update(str(status["status"]), status.get("completed", 0), status.get("total", 0))


def _texts(modelfile: Modelfile) -> dict[str, Any]:
    """What a Modelfile says beside its files, in the request's words."""
    texts = {
        key: modelfile.last(key) for key in ("template", "system", "requires", "renderer", "parser")
    }
    lists = {
        "license": [each.value for each in modelfile.all("license")],
        "messages": modelfile.messages,
        "parameters": modelfile.parameters,
    }
    return {key: value for key, value in {**texts, **lists}.items() if value}


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        vocabulary = source.with_name(_VOCABULARY)  # read with a model file that it lies beside
        return [source, vocabulary] if vocabulary.is_file() else [source]
    try:
        files = sorted(
            path for path in source.iterdir() if path.is_file() and path.suffix in _SUFFIXES
        )
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}; check the path") from error
    if not files:
        raise CommandError(f"{source}: is a folder without a model file")
    return files


def _send(client: Client, path: Path, bar: ProgressBar) -> str:
    """The digest of a file, which the server has afterwards."""
    try:
        size = path.stat().st_size
        sha = hashlib.sha256()
        for piece in _pieces(path, size, f"hashing {path.name}", bar):
            sha.update(piece)
        digest = f"sha256:{sha.hexdigest()}"
        if not client.has_blob(digest):
            client.send_blob(digest, size, _pieces(path, size, f"sending {path.name}", bar))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}; check the path") from error
    return digest


def _pieces(path: Path, size: int, stage: str, bar: ProgressBar) -> Iterator[bytes]:
    num_done = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            num_done += len(piece)
            bar.update(stage, num_done, size)
            yield piece

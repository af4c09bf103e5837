"""What a request to `/api/create` asks for, as a NewModel.

A client names models and blobs of the store, never files of this machine.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rwkv_core.checkpoint.recipes import RECIPES, Recipe, find_recipe
from rwkv_core.errors import CheckpointError, OptionError, TokenizerError
from server.creating.create import make_model
from server.creating.new_model import CreateError, NewModel, Progress, check_words
from server.store.demo_model import find_stored
from server.store.manifests import DamagedModelError
from server.store.names import ModelName
from server.store.short_names import full_name
from server.store.store import Store
from server.store.stored_model import MESSAGE_ROLES, ForeignModelError, StoredModel
from server.wire.errors import ApiError, model_not_found
from server.wire.manage_schemas import CreateRequest
from server.wire.schemas import Message

_VERSION = re.compile(r"v?\d{1,9}(\.\d{1,9}){0,2}([-+][0-9A-Za-z.+-]{1,100})?")
# Ollama's shorter word for one of them.
_RECIPE_ALIASES = {"q4_k": "q4_k_m", "q5_k": "q5_k_m"}


def check_request(asked: CreateRequest) -> ModelName:
    """The name to create; what can be said before any work begins, and before anything is pulled.

    Raises ApiError (400), OptionError and InvalidNameError.
    """
    for files in (asked.files, asked.draft_files):
        for file in files or {}:
            if not _is_relative(file):
                raise ApiError(400, "file path must be relative")
    for files in (asked.files, asked.draft_files, asked.adapters):
        if "" in (files or {}).values():
            raise ApiError(400, "invalid digest format")
    name = ModelName.parse(asked.model or asked.name)
    _check_fields(asked)
    try:
        check_words(asked.parameters, asked.template, asked.requires)
    except CreateError as error:
        raise ApiError(400, str(error)) from error
    return name


def _check_fields(asked: CreateRequest) -> None:
    if not asked.source and asked.files is None:
        raise ApiError(400, "neither 'from' or 'files' was specified")
    if not asked.source and not asked.files:
        raise ApiError(400, "no files provided to convert")
    if asked.draft_files:
        raise ApiError(400, "draft models are not supported")
    if asked.remote_host:
        raise ApiError(400, "remote models are not supported")
    if len(asked.adapters or {}) > 1:
        raise ApiError(400, "only one adapter is currently supported")
    if asked.requires and not _VERSION.fullmatch(asked.requires):
        raise ApiError(400, "requires must be a valid semver (e.g. 0.14.0)")
    _recipe(asked.quantize or asked.quantization)
    for message in asked.messages:
        _message(message)


def missing_source(store: Store, asked: CreateRequest) -> ModelName | None:
    """The model that the new one is to be made from, if that is one that must be pulled first.

    Raises InvalidNameError, and ApiError (400) for an adapter that is not there.
    """
    if not asked.source:
        return None
    name = ModelName.parse(asked.source)
    for digest in (asked.adapters or {}).values():
        _blob(store, digest)
    try:
        is_stored = find_stored(store, asked.source) is not None
    except (DamagedModelError, ForeignModelError):
        return None  # the create says what is wrong with it
    return None if is_stored else full_name(name)


def create_from_request(
    store: Store, name: ModelName, asked: CreateRequest, progress: Progress
) -> None:
    """Registers what `check_request` has found good. Raises ApiError, InvalidNameError,
    DamagedModelError and StoreError; nothing stays behind then.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="anser-create-") as folder:
            make_model(store, name, _describe(store, name, asked, Path(folder)), progress)
    except CheckpointError as error:
        raise ApiError(400, f"{Path(error.path).name}: {error.problem}") from error
    except (CreateError, TokenizerError, ForeignModelError) as error:
        raise ApiError(400, str(error)) from error


def _describe(store: Store, name: ModelName, asked: CreateRequest, work: Path) -> NewModel:
    """Files of the request get links with their names in the folder `work`."""
    return NewModel(
        source=_source(store, name, asked, work),
        adapter=_adapter(store, asked.adapters, work / "adapters"),
        recipe=_recipe(asked.quantize or asked.quantization),
        system=asked.system,
        template=asked.template,
        parameters=asked.parameters,
        messages=tuple(_message(each) for each in asked.messages),
        licenses=tuple(asked.license),
        requires=asked.requires.removeprefix("v"),
        renderer=asked.renderer,
        parser=asked.parser,
    )


def _source(store: Store, name: ModelName, asked: CreateRequest, work: Path) -> Path | StoredModel:
    if asked.source:
        ModelName.parse(asked.source)
        parent = find_stored(store, asked.source)
        if parent is None:
            raise model_not_found(asked.source)
        return parent
    # The folder's name becomes the title of files whose own names say nothing (model.safetensors).
    links = _link(store, asked.files or {}, work / "files" / name.model)
    return links[0] if len(links) == 1 else work / "files" / name.model


def _adapter(store: Store, files: Mapping[str, str] | None, folder: Path) -> Path | None:
    if not files:
        return None
    file, digest = next(iter(files.items()))
    # The name is for errors only: Ollama takes any, also one that leads elsewhere.
    name = PurePosixPath(file).name
    return _link(store, {name if _is_relative(name) else "adapter": digest}, folder)[0]


def _link(store: Store, files: Mapping[str, str], folder: Path) -> list[Path]:
    """Links to the blobs, under the files' names. Raises ApiError (400)."""
    links = []
    for file, digest in files.items():
        blob = _blob(store, digest)
        link = folder / file
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob.absolute())
        except (OSError, ValueError) as error:
            raise ApiError(400, f"the file name {file[:200]!r} cannot be used") from error
        links.append(link)
    return links


def _blob(store: Store, digest: str) -> Path:
    """Where it is. Raises ApiError (400) for one that is not there."""
    try:
        blob = store.blob_path(digest)
    except DamagedModelError as error:
        raise ApiError(400, str(error)) from error
    if not blob.is_file():
        raise ApiError(400, f'blob "{digest}" not found')
    return blob


def _is_relative(path: str) -> bool:
    """Whether it names a file below a folder, with no way out (Go's fs.ValidPath)."""
    return all(each not in ("", ".", "..") for each in path.split("/"))


def _recipe(word: str) -> Recipe | None:
    if not word:
        return None
    try:
        return find_recipe(_RECIPE_ALIASES.get(word.lower(), word))
    except OptionError as error:
        known = ", ".join(each.upper() for each in RECIPES)
        problem = f"unsupported quantization type {word.upper()[:100]} - supported types are"
        raise ApiError(400, f"{problem} {known}") from error


def _message(message: Message) -> dict[str, str]:
    role = message.role.lower()
    if role not in MESSAGE_ROLES:
        known = ", ".join(f'"{each}"' for each in MESSAGE_ROLES)
        raise ApiError(400, f"message role must be one of {known}")
    return {"role": role, "content": message.content}

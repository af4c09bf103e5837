"""What is to be created: one description, whoever says it: a Modelfile or a request."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_core.checkpoint.recipes import Recipe, find_recipe
from rwkv_core.errors import AnserError
from server.creating.modelfile import Modelfile, ModelfileError
from server.store.demo_model import find_stored
from server.store.local_files import local_path
from server.store.store import Store
from server.store.stored_model import StoredModel

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing is measured). It may raise,
# which ends the work; nothing of it stays.
Progress = Callable[[str, int, int], None]

# Files with these names say nothing about the model in them; their folder's name does.
_NAMELESS_FILE = re.compile(r"(pytorch_)?model([-.].*)?", re.IGNORECASE)


class CreateError(AnserError):
    """A description that is well written but asks for what cannot be made."""


@dataclass(frozen=True)
class NewModel:
    """A model to be made of a file or folder, or of a stored model and its parts.

    `adapter` is the file of a tuned initial state, `recipe` how the weights are quantized. Empty
    texts, parameters and messages are those of the stored model; licenses are added to its own.
    `requires` is a version of Ollama; `renderer` and `parser` are kept for Ollama, unused here.
    """

    source: Path | StoredModel
    adapter: Path | None = None
    recipe: Recipe | None = None
    system: str = ""
    template: str = ""
    parameters: Mapping[str, Any] | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    requires: str = ""
    renderer: str = ""
    parser: str = ""


def describe_modelfile(
    store: Store, modelfile: Modelfile, folder: Path, quantize: str | None = None
) -> NewModel:
    """What a Modelfile asks for; relative files in it are relative to `folder`.

    `quantize` names one of `rwkv_core.checkpoint.recipes.RECIPES`. Raises ModelfileError,
    CreateError for a file or model that is not there, OptionError for an unknown quantization, and
    what `open_model` raises.
    """
    recipe = find_recipe(quantize) if quantize is not None else None
    _check_supported(modelfile)
    return NewModel(
        source=_find_source(store, modelfile.source, folder),
        adapter=_find_adapter(modelfile, folder),
        recipe=recipe,
        system=modelfile.last("system") or "",
        template=modelfile.last("template") or "",
        parameters=modelfile.parameters,
        messages=tuple(modelfile.messages),
        licenses=tuple(each.value for each in modelfile.all("license") if each.value),
        requires=(modelfile.last("requires") or "").removeprefix("v"),
        renderer=modelfile.last("renderer") or "",
        parser=modelfile.last("parser") or "",
    )


def _check_supported(modelfile: Modelfile) -> None:
    for command in modelfile.all("draft"):
        problem = "DRAFT needs a second model; Anser drafts from the text itself: leave it out"
        raise ModelfileError(problem, command.line)
    adapters = list(modelfile.all("adapter"))
    if len(adapters) > 1:
        problem = "a second ADAPTER; a model has one initial state"
        raise ModelfileError(problem, adapters[1].line)


def version_of(text: str) -> tuple[int, ...]:
    """The three numbers of a version, whatever follows them."""
    numbers = [int(each) for each in re.findall(r"\d+", re.split("[-+]", text)[0])]
    return (*numbers, 0, 0)[:3]


def _find_source(store: Store, source: str, folder: Path) -> Path | StoredModel:
    found = local_path(source, folder) or find_stored(store, source)
    if found is None:
        raise CreateError(
            f"FROM {source}: there is neither a file of that name in {folder.resolve()}, "
            "nor a model in `anser list`; correct it, or fetch the model with `anser pull` first"
        )
    return found


def _find_adapter(modelfile: Modelfile, folder: Path) -> Path | None:
    name = modelfile.last("adapter")
    if name is None:
        return None
    path = local_path(name, folder)
    if path is None:
        raise CreateError(f"ADAPTER {name}: there is no file of that name in {folder.resolve()}")
    return path


def model_title(path: Path) -> str:
    """What a file's name says about its model: the prompt format is chosen by it."""
    path = Path(os.path.abspath(path))  # not resolved: a link's name says more than a blob's
    if path.is_dir():
        return path.name
    return path.parent.name if _NAMELESS_FILE.fullmatch(path.stem) else path.stem

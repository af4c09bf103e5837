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
from server.go_template import TemplateError
from server.go_template import parse as parse_template
from server.replies.options import read_options
from server.store.demo_model import find_stored
from server.store.local_files import local_path
from server.store.names import InvalidNameError, ModelName
from server.store.store import Store
from server.store.stored_model import StoredModel
from server.version import OLLAMA_VERSION

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing is measured). It may raise,
# which ends the work; nothing of it stays.
Progress = Callable[[str, int, int], None]

# What is meant as a file, whether it is there or not.
MODEL_SUFFIXES = frozenset({".gguf", ".pth", ".safetensors", ".bin", ".st"})
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


def check_words(parameters: Mapping[str, Any] | None, template: str, requires: str) -> None:
    """What can be said of a new model before its files are looked for.

    Raises OptionError, ApiError (400) and CreateError.
    """
    read_options(parameters or {}, {})
    if template:
        try:
            parse_template(template)
        except TemplateError as error:
            raise CreateError(f"template error: {error}") from error
    if requires and version_of(requires) > version_of(OLLAMA_VERSION):
        raise CreateError(f"REQUIRES Ollama {requires}; Anser does what {OLLAMA_VERSION} does")


def describe_modelfile(
    store: Store,
    modelfile: Modelfile,
    folder: Path,
    quantize: str | None = None,
    fetch: Callable[[str], None] | None = None,
) -> NewModel:
    """What a Modelfile asks for; relative files in it are relative to `folder`.

    `quantize` names one of `rwkv_core.checkpoint.recipes.RECIPES`. `fetch` is called with the name
    of a model in FROM that is not there, when all else is found good; it may raise. Raises
    ModelfileError, CreateError for a file or model that is not there, OptionError for an unknown
    quantization, and what `check_words` and `open_model` raise.
    """
    recipe = find_recipe(quantize) if quantize is not None else None
    _check_supported(modelfile)
    template, requires = modelfile.last("template") or "", modelfile.last("requires") or ""
    check_words(modelfile.parameters, template, requires)
    adapter = _find_adapter(modelfile, folder)
    return NewModel(
        source=_find_source(store, modelfile.source, folder, fetch),
        adapter=adapter,
        recipe=recipe,
        system=modelfile.last("system") or "",
        template=template,
        parameters=modelfile.parameters,
        messages=tuple(modelfile.messages),
        licenses=tuple(each.value for each in modelfile.all("license") if each.value),
        requires=requires.removeprefix("v"),
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


def _find_source(
    store: Store, source: str, folder: Path, fetch: Callable[[str], None] | None
) -> Path | StoredModel:
    found = local_path(source, folder) or find_stored(store, source)
    if found is not None:
        return found
    problem = (
        f"FROM {source}: there is neither a file of that name in {folder.resolve()}, "
        "nor a model in `anser list`"
    )
    if fetch is None or not may_be_fetched(source):
        raise CreateError(f"{problem}; correct it")
    try:
        fetch(source)
    except AnserError as error:
        raise CreateError(f"{problem}, and it cannot be pulled: {error}") from error
    found = find_stored(store, source)
    if found is None:
        raise CreateError(
            f"{problem}; it was pulled by a server that keeps its models elsewhere: "
            "set OLLAMA_MODELS to that folder"
        )
    return found


def may_be_fetched(source: str) -> bool:
    """Whether FROM means a model of a registry rather than a file that is not there."""
    if source.startswith((".", "/", "~")) or Path(source).suffix in MODEL_SUFFIXES:
        return False
    try:
        ModelName.parse(source)
    except InvalidNameError:
        return False
    return True


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

"""Making a model in the store from a Modelfile: the work behind `anser create`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.checkpoint.recipes import Recipe, find_recipe
from rwkv_core.errors import AnserError, CheckpointError
from rwkv_core.initial_state import encode_initial_state, read_initial_state
from rwkv_core.loading import GGUF_MODEL_KEY, HUGGING_FACE_JSON_KEY, find_tokenizer
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer
from server.demo_model import find_stored
from server.manifests import ADAPTER_TYPE, MODEL_TYPE, Manifest
from server.modelfile import Modelfile, ModelfileError
from server.names import ModelName
from server.options import read_options
from server.store import Blob, Store, StoreError
from server.stored_model import ModelParts, StoredModel, write_model
from server.version import OLLAMA_VERSION

log = logging.getLogger(__name__)

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing can be measured)
Progress = Callable[[str, int, int], None]

# Files with these names say nothing about the model in them; their folder's name does.
_NAMELESS_FILE = re.compile(r"(pytorch_)?model([-.].*)?", re.IGNORECASE)


class CreateError(AnserError):
    """A Modelfile that is well written but asks for what cannot be made."""


def create_model(
    store: Store,
    name: ModelName,
    modelfile: Modelfile,
    folder: Path,
    progress: Progress,
    *,
    quantize: str | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Manifest:
    """Registers `name` as `modelfile` describes it; relative files in it are relative to `folder`.

    `quantize` names one of `rwkv_core.checkpoint.recipes.RECIPES`; a model that is of that type
    already is taken as it is. `warn` gets one line where the result may be less than was hoped for.
    Nothing is registered and nothing stays behind when it fails or is interrupted. Raises
    ModelfileError, OptionError or CreateError for what cannot be made, CheckpointError and
    TokenizerError for a file that is no usable RWKV-7 model, StoreError for a store that cannot be
    written.
    """
    recipe = find_recipe(quantize) if quantize is not None else None
    _check_supported(modelfile)
    read_options(modelfile.parameters, {})
    work = _Work(store, recipe, progress, warn)
    parent = None
    path = _local_path(modelfile.source, folder)
    if path is None:
        parent = _find_parent(store, modelfile.source, folder)
        path = parent.path
    # Before the weights, which take longer: it may be another model's.
    adapter_file = _read_adapter(modelfile, folder, path)
    if parent is not None:
        blob, source, title = work.take_model(parent), parent.name.shortest, parent.title
    else:
        blob, source, title = work.import_file(path), "", model_title(path)
    new_blobs = [blob]
    try:
        parts = _parts(modelfile, parent)
        if adapter_file is not None:
            adapter = store.add_blob(adapter_file)
            new_blobs.append(adapter)
            parts = replace(parts, adapter=adapter.as_layer(ADAPTER_TYPE))
        progress("writing the manifest", 0, 0)
        return write_model(store, name, blob, parts, source=source, title=title)
    except BaseException:
        for each in new_blobs:
            if each.is_new:
                store.blob_path(each.digest).unlink(missing_ok=True)
        raise


def _check_supported(modelfile: Modelfile) -> None:
    reasons = {
        "template": "TEMPLATE is not supported yet (configs/prompts holds the prompts of "
        "RWKV-7 models); leave the line out",
    }
    for command in modelfile.commands:
        if command.name in reasons:
            raise ModelfileError(reasons[command.name], command.line)
        if command.name == "requires" and _version(command.value) > _version(OLLAMA_VERSION):
            problem = f"REQUIRES Ollama {command.value}; Anser does what {OLLAMA_VERSION} does"
            raise ModelfileError(problem, command.line)
    adapters = list(modelfile.all("adapter"))
    if len(adapters) > 1:
        problem = "a second ADAPTER; a model has one initial state"
        raise ModelfileError(problem, adapters[1].line)


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(each) for each in re.findall(r"\d+", re.split("[-+]", text)[0])]
    return (*numbers, 0, 0)[:3]


def _local_path(source: str, folder: Path) -> Path | None:
    """The file or folder that FROM names; None when there is none of that name."""
    try:
        path = folder / Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long, no home, a null character
        return None


def _read_adapter(modelfile: Modelfile, folder: Path, model: Path) -> bytes | None:
    """The tuned initial state that ADAPTER names, as the store keeps it; None without the line.

    Raises CreateError when there is no such file, CheckpointError when it is none for `model`.
    """
    name = modelfile.last("adapter")
    if name is None:
        return None
    path = _local_path(name, folder)
    if path is None:
        raise CreateError(f"ADAPTER {name}: there is no file of that name in {folder.resolve()}")
    with closing(open_checkpoint(model)) as checkpoint:
        config = read_config(checkpoint)
    return encode_initial_state(read_initial_state(path, config))


def _find_parent(store: Store, source: str, folder: Path) -> StoredModel:
    """The model that FROM names. Raises CreateError when there is none."""
    model = find_stored(store, source)
    if model is None:
        raise CreateError(
            f"FROM {source}: there is neither a file of that name in {folder.resolve()}, "
            "nor a model in `anser list`"
        )
    return model


def _parts(modelfile: Modelfile, parent: StoredModel | None) -> ModelParts:
    """The Modelfile's parts over those of the model that it is made from, merged as Ollama does."""
    system, messages = modelfile.last("system"), tuple(modelfile.messages)
    licenses = tuple(each.value for each in modelfile.all("license") if each.value)
    if parent is None:
        return ModelParts(
            system=system or "",
            parameters=modelfile.parameters,
            messages=messages,
            licenses=licenses,
        )
    old = tuple({"role": each.role, "content": each.content} for each in parent.messages)
    return ModelParts(
        adapter=parent.manifest.layer(ADAPTER_TYPE),
        system=system or parent.system,
        template=parent.template,
        parameters={**parent.parameters, **modelfile.parameters},
        messages=messages or old,
        licenses=(*parent.licenses, *licenses),
    )


@dataclass(frozen=True)
class _Work:
    """Brings a model's weights into the store: a copy, a conversion, or quantized."""

    store: Store
    recipe: Recipe | None
    progress: Progress
    warn: Callable[[str], None]

    def take_model(self, parent: StoredModel) -> Blob:
        """The blob of a stored model, or a new one with its weights quantized."""
        layer = parent.manifest.layer(MODEL_TYPE)
        assert layer is not None  # every stored model has one
        if self.recipe is None:
            return Blob(layer.digest, layer.size, is_new=False)
        label = parent.name.shortest
        self.progress(f"reading {label}", 0, 0)
        with closing(open_checkpoint(parent.path)) as checkpoint:
            if self._is_done(checkpoint):
                return Blob(layer.digest, layer.size, is_new=False)
            tokenizer = find_tokenizer(checkpoint, read_config(checkpoint))
            return self._convert(checkpoint, tokenizer, label, parent.title or label)

    def import_file(self, path: Path) -> Blob:
        """Checks the model at `path` by its header, then stores it as a GGUF blob."""
        label = path.name or str(path)
        self.progress(f"reading {label}", 0, 0)
        with closing(open_checkpoint(path)) as checkpoint:
            tokenizer = find_tokenizer(checkpoint, read_config(checkpoint))
            if checkpoint.format == "gguf" and (self.recipe is None or self._is_done(checkpoint)):
                _check_vocabulary(checkpoint, tokenizer)
                return self._copy(checkpoint.path)
            label, title = checkpoint.path.name, model_title(checkpoint.path)
            return self._convert(checkpoint, tokenizer, label, title)

    def _is_done(self, checkpoint: Checkpoint) -> bool:
        """Whether it is of the wanted type already."""
        wanted = self.recipe.file_type if self.recipe else None
        return checkpoint.metadata.get("general.file_type") == wanted

    def _copy(self, path: Path) -> Blob:
        size = path.stat().st_size

        def report(num_done: int) -> None:
            self.progress(f"copying {path.name}", num_done, size)

        return self.store.add_blob(path, progress=report)

    def _convert(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, label: str, title: str
    ) -> Blob:
        """`label` is shown; `title` becomes the file's name for itself, if it has none."""
        stage = f"converting {label} to GGUF"
        if self.recipe is not None:
            stage = f"quantizing {label} to {self.recipe.name.upper()}"
            self._warn_of_quantized(checkpoint, label)

        def report(num_done: int, num_total: int) -> None:
            self.progress(stage, num_done, num_total)

        own_name = checkpoint.metadata.get("general.name")
        temporary = self.store.temporary_file()
        try:
            convert_to_gguf(
                checkpoint,
                tokenizer,
                temporary,
                name=own_name if isinstance(own_name, str) and own_name else title,
                quantize=self.recipe.name if self.recipe else None,
                progress=report,
            )
            self.progress("hashing", 0, 0)
            return self.store.adopt(temporary)
        except CheckpointError as error:
            if Path(error.path) != temporary:
                raise
            raise StoreError(f"{self.store.root}: {error.problem}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _warn_of_quantized(self, checkpoint: Checkpoint, label: str) -> None:
        num_bytes = Counter[str]()
        for info in checkpoint.tensors.values():
            if LAYOUTS[info.type_name].is_quantized:
                num_bytes[info.type_name] += info.nbytes
        if num_bytes:
            kind = num_bytes.most_common(1)[0][0]
            self.warn(
                f"{label} is quantized already ({kind}) and loses a little more now; "
                "the original file would give a better model"
            )


def _check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """A GGUF file is taken as it is, so a vocabulary that lies beside it would get lost."""
    metadata = checkpoint.metadata
    is_inside = metadata.get(GGUF_MODEL_KEY) == "rwkv" or HUGGING_FACE_JSON_KEY in metadata
    if not is_inside and not isinstance(tokenizer, WorldTokenizer):
        raise CheckpointError(
            checkpoint.path,
            "has no vocabulary that Anser can read inside; create the model from its "
            "safetensors or .pth file, beside its tokenizer.json",
        )


def model_title(path: Path) -> str:
    """What a file's name says about its model: the prompt format is chosen by it."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if _NAMELESS_FILE.fullmatch(path.stem) else path.stem

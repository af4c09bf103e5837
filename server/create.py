"""Making a model in the store from a Modelfile: the work behind `anser create`."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.errors import AnserError, CheckpointError
from rwkv_core.loading import GGUF_MODEL_KEY, HUGGING_FACE_JSON_KEY, find_tokenizer
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer
from server.demo_model import DEMO_NAME, ensure_demo_model
from server.manifests import MODEL_TYPE, Manifest
from server.modelfile import Modelfile, ModelfileError
from server.names import InvalidNameError, ModelName
from server.options import read_options
from server.store import Blob, Store, StoreError
from server.stored_model import ModelParts, StoredModel, open_model, write_model
from server.version import OLLAMA_VERSION

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing can be measured)
Progress = Callable[[str, int, int], None]

# Files with these names say nothing about the model in them; their folder's name does.
_NAMELESS_FILE = re.compile(r"(pytorch_)?model([-.].*)?", re.IGNORECASE)


class CreateError(AnserError):
    """A Modelfile that is well written but asks for what cannot be made."""


def create_model(
    store: Store, name: ModelName, modelfile: Modelfile, folder: Path, progress: Progress
) -> Manifest:
    """Registers `name` as `modelfile` describes it; relative files in it are relative to `folder`.

    Nothing is registered and nothing stays behind when it fails or is interrupted. Raises
    ModelfileError, OptionError or CreateError for what cannot be made, CheckpointError and
    TokenizerError for a file that is no usable RWKV-7 model, StoreError for a store that cannot be
    written.
    """
    _check_supported(modelfile)
    read_options(modelfile.parameters, {})
    path = _local_path(modelfile.source, folder)
    if path is None:
        parent = _find_parent(store, modelfile.source, folder)
        layer = parent.manifest.layer(MODEL_TYPE)
        assert layer is not None  # every stored model has one
        blob, source = Blob(layer.digest, layer.size, is_new=False), parent.name.shortest
        title = parent.title
    else:
        parent, source, title = None, "", model_title(path)
        blob = _import_file(store, path, progress)
    try:
        progress("writing the manifest", 0, 0)
        return write_model(store, name, blob, _parts(modelfile, parent), source=source, title=title)
    except BaseException:
        if blob.is_new:
            store.blob_path(blob.digest).unlink(missing_ok=True)
        raise


def _check_supported(modelfile: Modelfile) -> None:
    reasons = {
        "adapter": "ADAPTER is not supported yet; leave the line out",
        "template": "TEMPLATE is not supported yet (configs/prompts holds the prompts of "
        "RWKV-7 models); leave the line out",
    }
    for command in modelfile.commands:
        if command.name in reasons:
            raise ModelfileError(reasons[command.name], command.line)
        if command.name == "requires" and _version(command.value) > _version(OLLAMA_VERSION):
            problem = f"REQUIRES Ollama {command.value}; Anser does what {OLLAMA_VERSION} does"
            raise ModelfileError(problem, command.line)


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


def _find_parent(store: Store, source: str, folder: Path) -> StoredModel:
    """The model that FROM names. Raises CreateError when there is none."""
    try:
        name = ModelName.parse(source)
        if name.key == DEMO_NAME.key:
            ensure_demo_model(store)
        model = open_model(store, name)
    except InvalidNameError:
        model = None
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
        system=system or parent.system,
        template=parent.template,
        parameters={**parent.parameters, **modelfile.parameters},
        messages=messages or old,
        licenses=(*parent.licenses, *licenses),
    )


def _import_file(store: Store, path: Path, progress: Progress) -> Blob:
    """Checks the model at `path` by its header, then brings it into the store as a GGUF blob."""
    progress(f"reading {path.name or path}", 0, 0)
    with closing(open_checkpoint(path)) as checkpoint:
        tokenizer = find_tokenizer(checkpoint, read_config(checkpoint))
        if checkpoint.format == "gguf":
            _check_vocabulary(checkpoint, tokenizer)
            return _copy(store, checkpoint.path, progress)
        return _convert(store, checkpoint, tokenizer, progress)


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


def _copy(store: Store, path: Path, progress: Progress) -> Blob:
    size = path.stat().st_size

    def report(num_done: int) -> None:
        progress(f"copying {path.name}", num_done, size)

    return store.add_blob(path, progress=report)


def _convert(
    store: Store, checkpoint: Checkpoint, tokenizer: Tokenizer, progress: Progress
) -> Blob:
    path = checkpoint.path

    def report(num_done: int, num_total: int) -> None:
        progress(f"converting {path.name} to GGUF", num_done, num_total)

    temporary = store.temporary_file()
    try:
        convert_to_gguf(checkpoint, tokenizer, temporary, name=model_title(path), progress=report)
        progress("hashing", 0, 0)
        return store.adopt(temporary)
    except CheckpointError as error:
        if Path(error.path) != temporary:
            raise
        raise StoreError(f"{store.root}: {error.problem}") from error
    finally:
        temporary.unlink(missing_ok=True)


def model_title(path: Path) -> str:
    """What a file's name says about its model: the prompt format is chosen by it."""
    path = path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if _NAMELESS_FILE.fullmatch(path.stem) else path.stem

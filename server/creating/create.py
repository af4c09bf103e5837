"""Making a model in the store: the work behind `anser create` and `/api/create`."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.checkpoint.recipes import Recipe
from rwkv_core.errors import CheckpointError
from rwkv_core.initial_state import encode_initial_state, read_initial_state
from rwkv_core.loading import GGUF_MODEL_KEY, HUGGING_FACE_JSON_KEY, find_tokenizer
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer
from server.creating.modelfile import Modelfile
from server.creating.new_model import CreateError, NewModel, describe_modelfile, version_of
from server.go_template import TemplateError
from server.go_template import parse as parse_template
from server.replies.options import read_options
from server.store.manifests import ADAPTER_TYPE, MODEL_TYPE, Layer, Manifest
from server.store.names import ModelName
from server.store.store import Blob, StagedBlob, Store, StoreError
from server.store.stored_model import ModelParts, StoredModel, write_model
from server.version import OLLAMA_VERSION

__all__ = ["CreateError", "Progress", "create_model", "make_model", "model_title"]

log = logging.getLogger(__name__)

# (what is being done, bytes done, bytes of all; 0 of 0 where nothing is measured). It may raise,
# which ends the work; nothing of it stays.
Progress = Callable[[str, int, int], None]

# Files with these names say nothing about the model in them; their folder's name does.
_NAMELESS_FILE = re.compile(r"(pytorch_)?model([-.].*)?", re.IGNORECASE)


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
    """`make_model` of what a Modelfile describes (`describe_modelfile`). Raises what both do."""
    for key in modelfile.deprecated:
        warn(f"parameter {key} is deprecated")
    new = describe_modelfile(store, modelfile, folder, quantize)
    return make_model(store, name, new, progress, warn=warn)


def make_model(
    store: Store,
    name: ModelName,
    new: NewModel,
    progress: Progress,
    *,
    warn: Callable[[str], None] = log.warning,
) -> Manifest:
    """Registers `name` as `new` describes it, replacing a model of that name when all is done.

    A model that is of the wanted type already is taken as it is. `warn` gets one line where the
    result may be less than was hoped for; what `progress` is told are Ollama's words. Nothing is
    registered and nothing stays behind when it fails or is interrupted. Raises OptionError,
    ApiError (400) or CreateError for what cannot be made, CheckpointError and TokenizerError for a
    file that is no usable RWKV-7 model, StoreError for a store that cannot be written.
    """
    read_options(new.parameters or {}, {})
    if new.template:
        try:
            parse_template(new.template)
        except TemplateError as error:
            raise CreateError(f"template error: {error}") from error
    if new.requires and version_of(new.requires) > version_of(OLLAMA_VERSION):
        raise CreateError(f"REQUIRES Ollama {new.requires}; Anser does what {OLLAMA_VERSION} does")
    work = _Work(store, new.recipe, progress, warn)
    parent = new.source if isinstance(new.source, StoredModel) else None
    path = parent.path if parent else new.source
    assert isinstance(path, Path)  # one or the other
    staged: list[Blob | StagedBlob] = []
    try:
        # Before the weights, which take longer: it may be another model's.
        adapter = None
        if new.adapter is not None:
            progress("converting adapter", 0, 0)
            adapter = store.stage(_read_adapter(new.adapter, path))
            staged.append(adapter)
        blob = work.take_model(parent) if parent else work.import_file(path)
        staged.append(blob)
        return write_model(
            store,
            name,
            blob,
            _parts(new, parent, adapter),
            source=parent.name.shortest if parent else "",
            title=parent.title if parent else model_title(path),
            report=lambda status: progress(status, 0, 0),
        )
    finally:
        _discard(staged)


def _discard(blobs: Iterable[Blob | StagedBlob]) -> None:
    for each in blobs:
        if isinstance(each, StagedBlob):
            each.discard()


def _read_adapter(adapter: Path, model: Path) -> bytes:
    """A tuned initial state as the store keeps it. Raises CheckpointError if it is none for
    `model`.
    """
    with closing(open_checkpoint(model)) as checkpoint:
        config = read_config(checkpoint)
    return encode_initial_state(read_initial_state(adapter, config))


def _parts(new: NewModel, parent: StoredModel | None, adapter: StagedBlob | None) -> ModelParts:
    """The new parts over those of the model that it is made from, merged as Ollama does."""
    own = {key: value for key, value in (new.parameters or {}).items() if value is not None}
    if parent is None:
        return ModelParts(
            adapter=adapter,
            system=new.system,
            template=new.template,
            parameters=own,
            messages=new.messages,
            licenses=new.licenses,
            requires=new.requires,
            renderer=new.renderer,
            parser=new.parser,
        )
    old_adapter: Layer | None = parent.manifest.layer(ADAPTER_TYPE)
    old_messages = tuple({"role": each.role, "content": each.content} for each in parent.messages)
    return ModelParts(
        adapter=adapter or old_adapter,
        system=new.system or parent.system,
        template=new.template or parent.template,
        parameters={**parent.parameters, **own},
        messages=new.messages or old_messages,
        licenses=(*parent.licenses, *new.licenses),
        requires=new.requires or _word(parent.config, "requires"),
        renderer=new.renderer or _word(parent.config, "renderer"),
        parser=new.parser or _word(parent.config, "parser"),
    )


def _word(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class _Work:
    """Brings a model's weights into the store: a copy, a conversion, or quantized."""

    store: Store
    recipe: Recipe | None
    progress: Progress
    warn: Callable[[str], None]

    def take_model(self, parent: StoredModel) -> Blob | StagedBlob:
        """The blob of a stored model, or a new one with its weights quantized."""
        layer = parent.manifest.layer(MODEL_TYPE)
        assert layer is not None  # every stored model has one
        if self.recipe is None:
            return Blob(layer.digest, layer.size, is_new=False)
        label = parent.name.shortest
        with closing(open_checkpoint(parent.path)) as checkpoint:
            if self._is_done(checkpoint):
                return Blob(layer.digest, layer.size, is_new=False)
            tokenizer = find_tokenizer(checkpoint, read_config(checkpoint))
            return self._convert(checkpoint, tokenizer, label, parent.title or label)

    def import_file(self, path: Path) -> Blob | StagedBlob:
        """Checks the model at `path` by its header, then makes a GGUF blob of it, or takes the one
        that it is.
        """
        with closing(open_checkpoint(path)) as checkpoint:
            if checkpoint.format == "gguf":
                self.progress("parsing GGUF", 0, 0)
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

    def _copy(self, path: Path) -> Blob | StagedBlob:
        blob = self.store.blob_at(path)
        if blob is not None:
            return blob
        size = path.stat().st_size

        def report(num_done: int) -> None:
            self.progress(f"copying {path.name}", num_done, size)

        return self.store.stage(path, progress=report)

    def _convert(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer, label: str, title: str
    ) -> StagedBlob:
        """`label` is shown; `title` becomes the file's name for itself, if it has none."""
        stage = "converting model"
        if self.recipe is not None:
            types = _types(checkpoint)
            stage = f"quantizing {types[0]} model to {self.recipe.name.upper()}"
            self._warn_of_quantized(types, label)

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
        except CheckpointError as error:
            temporary.unlink(missing_ok=True)
            if Path(error.path) != temporary:
                raise
            raise StoreError(f"{self.store.root}: {error.problem}") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        size = temporary.stat().st_size

        def verify(num_done: int) -> None:
            self.progress("verifying conversion", num_done, size)

        return self.store.stage_file(temporary, progress=verify)

    def _warn_of_quantized(self, types: Sequence[str], label: str) -> None:
        quantized = [each for each in types if LAYOUTS[each].is_quantized]
        if quantized:
            self.warn(
                f"{label} is quantized already ({quantized[0]}) and loses a little more now; "
                "the original file would give a better model"
            )


def _types(checkpoint: Checkpoint) -> list[str]:
    """The types of its tensors, the one that most bytes have first."""
    num_bytes = Counter[str]()
    for info in checkpoint.tensors.values():
        num_bytes[info.type_name] += info.nbytes
    return [name for name, _ in num_bytes.most_common()]


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
    path = Path(os.path.abspath(path))  # not resolved: a link's name says more than a blob's
    if path.is_dir():
        return path.name
    return path.parent.name if _NAMELESS_FILE.fullmatch(path.stem) else path.stem

"""Bringing weights into the store: a copy, a conversion, or quantized; and tuned initial states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rwkv_core.checkpoint import Checkpoint, open_checkpoint, read_config
from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.checkpoint.ggml_blocks import LAYOUTS
from rwkv_core.checkpoint.metadata_keys import GGUF_MODEL_KEY, HUGGING_FACE_JSON_KEY
from rwkv_core.checkpoint.recipes import Recipe
from rwkv_core.errors import CheckpointError
from rwkv_core.initial_state import encode_initial_state, read_initial_state
from rwkv_core.loading import find_tokenizer
from rwkv_core.tokenizer import Tokenizer, WorldTokenizer
from server.creating.new_model import Progress, model_title
from server.store.store import Blob, StagedBlob, Store, StoreError
from server.store.stored_model import StoredModel


def encode_adapter(adapter: Path, model: Path) -> bytes:
    """A tuned initial state as the store keeps it. Raises CheckpointError if it is none for
    `model`.
    """
    with closing(open_checkpoint(model)) as checkpoint:
        config = read_config(checkpoint)
    return encode_initial_state(read_initial_state(adapter, config))


@dataclass(frozen=True)
class WeightsImport:
    """Brings a model's weights into the store: a copy, a conversion, or quantized."""

    store: Store
    recipe: Recipe | None
    progress: Progress
    warn: Callable[[str], None]

    def take_model(self, parent: StoredModel) -> Blob | StagedBlob:
        """A stored model with its weights quantized; its own blob if they are so already."""
        label = parent.name.shortest
        with closing(open_checkpoint(parent.path)) as checkpoint:
            if self._is_done(checkpoint):
                return Blob(parent.weights.digest, parent.weights.size, is_new=False)
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

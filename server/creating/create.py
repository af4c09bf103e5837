"""Making a model in the store: the work behind `anser create` and `/api/create`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from server.creating.modelfile import Modelfile
from server.creating.new_model import (
    NewModel,
    Progress,
    describe_modelfile,
    model_title,
)
from server.store.manifests import ADAPTER_TYPE, Layer, Manifest
from server.store.names import ModelName
from server.store.store import Blob, StagedBlob, Store
from server.store.stored_model import ModelParts, StoredModel, write_model

log = logging.getLogger(__name__)


def create_model(
    store: Store,
    name: ModelName,
    modelfile: Modelfile,
    folder: Path,
    progress: Progress,
    *,
    quantize: str | None = None,
    fetch: Callable[[str], None] | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Manifest:
    """`make_model` of what a Modelfile describes (`describe_modelfile`). Raises what both do."""
    for key in modelfile.deprecated:
        warn(f"parameter {key} is deprecated")
    new = describe_modelfile(store, modelfile, folder, quantize, fetch)
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
    registered and nothing stays behind when it fails or is interrupted. Raises CheckpointError and
    TokenizerError for a file that is no usable RWKV-7 model, StoreError for a store that cannot be
    written.
    """
    parent = new.source if isinstance(new.source, StoredModel) else None
    path = parent.path if parent else new.source
    assert isinstance(path, Path)  # one or the other
    staged: list[Blob | StagedBlob] = []
    try:
        # Before the weights, which take longer: it may be another model's.
        adapter = None
        if new.adapter is not None:
            progress("converting adapter", 0, 0)
            adapter = _stage_adapter(store, new.adapter, path)
            staged.append(adapter)
        blob = _bring_weights(store, new, progress, warn)
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


def _stage_adapter(store: Store, adapter: Path, model: Path) -> StagedBlob:
    # Imported here, as below: a model that shares another's weights needs no torch.
    from server.creating.weights import encode_adapter  # noqa: PLC0415

    return store.stage(encode_adapter(adapter, model))


def _bring_weights(
    store: Store, new: NewModel, progress: Progress, warn: Callable[[str], None]
) -> Blob | StagedBlob:
    """The model's GGUF file: a blob that is there, or a new one."""
    if isinstance(new.source, StoredModel) and new.recipe is None:
        layer = new.source.weights
        return Blob(layer.digest, layer.size, is_new=False)
    from server.creating.weights import WeightsImport  # noqa: PLC0415

    work = WeightsImport(store, new.recipe, progress, warn)
    if isinstance(new.source, StoredModel):
        return work.take_model(new.source)
    return work.import_file(new.source)


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

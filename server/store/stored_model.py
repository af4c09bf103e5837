"""A model out of the store: its manifest, what its layers say, and what its file is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_core.chat.messages import Message
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format
from rwkv_core.errors import AnserError, CheckpointError
from server.chat_templates import ChatTemplate, ThinkingTags, model_template
from server.go_template import TemplateError
from server.store.gguf_facts import ARCHITECTURE, GGUFFacts, read_facts
from server.store.manifests import (
    ADAPTER_TYPE,
    CONFIG_TYPE,
    LICENSE_TYPE,
    MESSAGES_TYPE,
    MODEL_TYPE,
    PARAMS_TYPE,
    SYSTEM_TYPE,
    TEMPLATE_TYPE,
    DamagedModelError,
    Layer,
    Manifest,
)
from server.store.names import ModelName
from server.store.pruning import remove_unused_blobs, replace_manifest
from server.store.short_names import find_name
from server.store.store import Blob, StagedBlob, Store

# Texts and parameters are small; a larger blob under their media types is damage.
_MAX_TEXT_BYTES = 16 << 20
MESSAGE_ROLES = ("system", "user", "assistant", "tool")


# In the config blob: a file's name often says what its `general.name` does not (World or G1).
_TITLE = "anser_title"


class ForeignModelError(AnserError):
    """A stored model that is no RWKV-7 GGUF."""


@dataclass(frozen=True)
class StoredModel:
    """A runnable model. `name` is written as it is stored.

    `title` is the name of the file that it was made from, "" if it is not known.
    """

    name: ModelName
    title: str
    manifest: Manifest
    path: Path
    adapter: Path | None  # a tuned initial state
    facts: GGUFFacts
    prompt_format: PromptFormat
    config: Mapping[str, Any]
    system: str
    template: str
    parameters: Mapping[str, Any]
    messages: tuple[Message, ...]
    licenses: tuple[str, ...]

    @property
    def weights(self) -> Layer:
        layer = self.manifest.layer(MODEL_TYPE)
        assert layer is not None  # `read_model` refuses a manifest without one
        return layer

    @property
    def chat_template(self) -> ChatTemplate | None:
        """What its prompts are made with; None for the built-in `prompt_format`.

        Raises TemplateError for a TEMPLATE that is none.
        """
        names = (self.name.shortest, self.facts.name, self.title)
        return model_template(self.template, self.facts, *names)

    @property
    def shown_template(self) -> str:
        """The template in force, or the TEMPLATE that is not; "" for none."""
        try:
            template = self.chat_template
        except TemplateError:
            return self.template
        return template.text if template else self.template

    @property
    def thinking_tags(self) -> ThinkingTags | None:
        """None for a model that does not think. Raises TemplateError as above."""
        template = self.chat_template
        if template is not None:
            return template.thinking_tags
        thinking = self.prompt_format.thinking
        return ThinkingTags(f"{thinking.on}>", thinking.close) if thinking else None

    @property
    def capabilities(self) -> list[str]:
        """In Ollama's words; what a model can do follows from its template or prompt format.

        "embedding" is not among them: every model embeds, but Ollama's clients take the word for
        one that can do nothing else, and its `run` would not chat.
        """
        try:
            template = self.chat_template
        except TemplateError:
            # It is still listed; a prompt for it says what is wrong.
            return ["completion"]
        own = self.prompt_format
        able = {
            "tools": template.tool_tag is not None if template else own.can_use_tools,
            "insert": template is not None and template.can_insert,
            "thinking": self.thinking_tags is not None,
        }
        return ["completion", *(name for name, is_able in able.items() if is_able)]

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": self.weights.source,
            "format": "gguf",
            "family": ARCHITECTURE,
            "families": [ARCHITECTURE],
            "parameter_size": self._said("model_type") or self.facts.parameter_size,
            "quantization_level": self.quantization,
        }

    @property
    def quantization(self) -> str:
        known = self._said("file_type")
        return known if known not in ("", "unknown") else self.facts.quantization

    def _said(self, key: str) -> str:
        """A text of the config, which anyone may have written; "" for anything else."""
        value = self.config.get(key)
        return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class ModelParts:
    """What a model is made of besides its file. Empty parts get no layer.

    `requires`, `renderer` and `parser` are words for Ollama in the config blob.
    """

    adapter: Layer | StagedBlob | None = None
    system: str = ""
    template: str = ""
    parameters: Mapping[str, Any] | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    requires: str = ""
    renderer: str = ""
    parser: str = ""


def _say_nothing(_: str) -> None:
    pass


def open_model(store: Store, name: ModelName) -> StoredModel | None:
    """The model stored under `name` in any case; None if there is none.

    Raises ForeignModelError if it is no RWKV-7 model, DamagedModelError if it cannot be read.
    """
    canonical = find_name(store, name)
    if canonical is None:
        return None
    try:
        manifest = store.read_manifest(canonical)
        return read_model(store, canonical, manifest) if manifest else None
    except DamagedModelError as error:
        raise DamagedModelError(
            f"{canonical.shortest}: {error}; create or pull it again"
        ) from error
    except OSError as error:
        raise DamagedModelError(f"{canonical.shortest}: {error.strerror}") from error


def list_models(store: Store) -> list[StoredModel]:
    """Every runnable model, newest first.

    Damaged ones are skipped with a warning, foreign ones silently.
    """
    models = []
    for name in store.names():
        try:
            model = open_model(store, name)
        except ForeignModelError:
            continue
        except DamagedModelError as error:
            store.warn_once(store.manifest_path(name), str(error))
            continue
        if model:
            models.append(model)
    return sorted(models, key=lambda model: model.manifest.modified_ns, reverse=True)


def write_model(
    store: Store,
    name: ModelName,
    model: Blob | StagedBlob,
    parts: ModelParts,
    *,
    source: str = "",
    note: str = "",
    title: str = "",
    report: Callable[[str], None] = _say_nothing,
) -> Manifest:
    """Registers the GGUF `model` with its parts; `note` and `title` are kept in the config blob.

    `title` is the name of the file that it was made from, `source` that of the model. `report` is
    told of each layer in Ollama's words. All blobs get their names here, under the store's lock, so
    what fails leaves none of them; those of a model of that name that was there before go.

    Raises StoreError when the store cannot be written, CheckpointError when the blob is no GGUF
    file.
    """
    path = model.path if isinstance(model, StagedBlob) else store.blob_path(model.digest)
    facts = read_facts(path)
    with store.lock():
        layers = _Layers(store)
        try:
            layers.add(MODEL_TYPE, model, source)
            layers.add_parts(parts)
            config: dict[str, Any] = {
                "model_format": "gguf",
                "model_family": facts.architecture,
                "model_families": [facts.architecture],
                "model_type": facts.parameter_size,
                "file_type": facts.quantization,
                # An image registry asks for a platform; Ollama writes this one for every model.
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [each.digest for each in layers.layers]},
            }
            optional = {
                "requires": parts.requires,
                "renderer": parts.renderer,
                "parser": parts.parser,
                "anser": note,
                _TITLE: title,
            }
            config |= {key: value for key, value in optional.items() if value}
            blob = layers.place(json.dumps(config).encode())
            for status in (*layers.statuses, "writing manifest"):
                report(status)
            return replace_manifest(store, name, blob.as_layer(CONFIG_TYPE), tuple(layers.layers))
        except BaseException:
            remove_unused_blobs(store, layers.new_digests)
            raise


class _Layers:
    """Layers of a model that is being registered, under the store's lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.layers: list[Layer] = []
        self.statuses: list[str] = []
        self.new_digests: list[str] = []

    def place(self, content: bytes | StagedBlob) -> Blob:
        staged = self._store.stage(content) if isinstance(content, bytes) else content
        blob = self._store.place(staged)
        if blob.is_new:
            self.new_digests.append(blob.digest)
        return blob

    def add(self, media_type: str, content: str | Blob | StagedBlob, source: str = "") -> None:
        data = content.encode() if isinstance(content, str) else content
        self._append((data if isinstance(data, Blob) else self.place(data)), media_type, source)

    def _append(self, blob: Blob, media_type: str, source: str) -> None:
        self.layers.append(blob.as_layer(media_type, source))
        words = "creating new layer" if blob.is_new else "using existing layer"
        self.statuses.append(f"{words} {blob.digest}")

    def add_parts(self, parts: ModelParts) -> None:
        adapter = parts.adapter
        if isinstance(adapter, Layer):
            self._append(Blob(adapter.digest, adapter.size, False), ADAPTER_TYPE, adapter.source)
        elif adapter is not None:
            self.add(ADAPTER_TYPE, adapter)
        if parts.template:
            self.add(TEMPLATE_TYPE, parts.template)
        if parts.system:
            self.add(SYSTEM_TYPE, parts.system)
        if parts.parameters:
            self.add(PARAMS_TYPE, json.dumps(dict(parts.parameters), ensure_ascii=False))
        if parts.messages:
            messages = [dict(each) for each in parts.messages]
            self.add(MESSAGES_TYPE, json.dumps(messages, ensure_ascii=False))
        for text in parts.licenses:
            self.add(LICENSE_TYPE, text)


def read_model(store: Store, name: ModelName, manifest: Manifest) -> StoredModel:
    """The model that `manifest` describes, registered or not. Raises as `open_model` does."""
    config = _read_json(store, manifest.config.digest, dict)
    family = config.get("model_family")
    if family and family != ARCHITECTURE:
        raise ForeignModelError(foreign_model(name, str(family)))
    layer = manifest.layer(MODEL_TYPE)
    if layer is None:
        raise ForeignModelError(no_gguf_file(name))
    path = _existing(store, layer)
    try:
        facts = read_facts(path)
    except CheckpointError as error:
        if family:
            raise DamagedModelError(f"its file {error.problem}") from error
        raise ForeignModelError(f"{name.shortest} {error.problem}") from error
    if facts.architecture != ARCHITECTURE:
        raise ForeignModelError(foreign_model(name, facts.architecture))

    def texts(media_type: str) -> list[str]:
        return [_read_text(store, each.digest) for each in manifest.all(media_type)]

    title = str(config.get(_TITLE, ""))
    params = manifest.layer(PARAMS_TYPE)
    messages = manifest.layer(MESSAGES_TYPE)
    return StoredModel(
        name=name,
        title=title,
        manifest=manifest,
        path=path,
        adapter=_find_adapter(store, name, manifest),
        facts=facts,
        prompt_format=choose_prompt_format(name.shortest, facts.name, title),
        config=config,
        system="".join(texts(SYSTEM_TYPE)[-1:]),
        template="".join(texts(TEMPLATE_TYPE)[-1:]),
        parameters=_read_json(store, params.digest, dict) if params else {},
        messages=_read_messages(_read_json(store, messages.digest, list)) if messages else (),
        licenses=tuple(texts(LICENSE_TYPE)),
    )


def _find_adapter(store: Store, name: ModelName, manifest: Manifest) -> Path | None:
    adapters = manifest.all(ADAPTER_TYPE)
    if len(adapters) > 1:
        raise ForeignModelError(
            f"{name.shortest} has {len(adapters)} adapters; Anser runs models with one at most"
        )
    return _existing(store, adapters[0]) if adapters else None


def _existing(store: Store, layer: Layer) -> Path:
    path = store.blob_path(layer.digest)
    if not path.is_file():
        raise DamagedModelError(f"its file {path.name} is missing")
    return path


def foreign_model(name: ModelName, family: str) -> str:
    """What to say of a model of another architecture."""
    return (
        f'{name.shortest} is no RWKV-7 model (its family is "{family}"); Anser runs RWKV-7 models'
    )


def no_gguf_file(name: ModelName) -> str:
    return f"{name.shortest} has no GGUF file; Anser runs RWKV-7 models in GGUF files"


def _read_text(store: Store, digest: str) -> str:
    path = store.blob_path(digest)
    if not path.is_file():
        raise DamagedModelError(f"its blob {path.name} is missing")
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise DamagedModelError(f"its blob {path.name} is too large for a text")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedModelError(f"its blob {path.name} is no UTF-8 text") from error


def _read_json(store: Store, digest: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(_read_text(store, digest))
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"its blob {digest} is not JSON") from error
    if not isinstance(value, kind):
        raise DamagedModelError(f"its blob {digest} is not a JSON {kind.__name__}")
    return value


def _read_messages(values: list[Any]) -> tuple[Message, ...]:
    messages = []
    for value in values:
        role, content = (
            (value.get("role"), value.get("content")) if isinstance(value, dict) else (0, 0)
        )
        if role not in MESSAGE_ROLES or not isinstance(content, str):
            raise DamagedModelError("its messages are not a list of roles and contents")
        messages.append(Message(role=role, content=content))
    return tuple(messages)

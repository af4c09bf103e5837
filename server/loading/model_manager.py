"""The models in memory, as requests see them: loaded on demand, kept for a while.

Everything here runs on the event loop; loading and unloading themselves run in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from rwkv_core.cache import DiskTier, TokenArray
from rwkv_core.loading import load_tokenizer
from server.loading.model_loading import LoadedModel, ModelLoader, model_key
from server.loading.model_slots import ModelSlots
from server.metrics import ServerMetrics, note_model
from server.replies.prompt_tokens import TextEncoder
from server.settings import Settings
from server.store.names import ModelName
from server.store.stored_model import StoredModel
from server.wire.durations import FOREVER_NS

__all__ = ["LoadedModel", "ModelManager"]

_SECOND_NS = 1_000_000_000

# Ollama's number for a machine without a GPU, or with one.
_MAX_LOADED = 3


class ModelManager:
    """Owns the loaded models.

    Models are told apart by the digests of their files, so names can share one.
    """

    def __init__(self, settings: Settings) -> None:
        self.metrics = ServerMetrics()
        self._loader = ModelLoader(settings, self.metrics)
        self._slots: ModelSlots[LoadedModel] = ModelSlots(
            self._loader,
            max_loaded=settings.max_loaded_models or _MAX_LOADED,
            max_waiting=settings.max_queue,
            on_idle=self._start_clock,
        )

    def loaded(self) -> list[LoadedModel]:
        """What is in memory, longest to live first."""
        return sorted(self._slots.loaded(), key=lambda each: each.expires_at_ns, reverse=True)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a model because others are in memory, or being loaded."""
        return self._slots.num_waiting

    @property
    def disk_tier(self) -> DiskTier | None:
        """The states on disk; None before a model has been loaded, or when none are kept."""
        return self._loader.disk_tier

    @asynccontextmanager
    async def use(
        self, stored: StoredModel, keep_alive_ns: int | None = None
    ) -> AsyncIterator[LoadedModel]:
        """The loaded model, for as long as the block runs. Concurrent calls load it once.

        Waits where others have to be done with their models first. Raises ApiError (500) naming the
        model when it cannot be loaded, EngineBusyError when too many wait, EngineStoppedError.
        """
        key = model_key(stored)
        async with self._slots.use(key, partial(self._loader.load, stored)) as loaded:
            loaded.stored = stored  # the name last asked for is the one that is shown
            note_model(stored.name.shortest)
            if keep_alive_ns is not None:
                loaded.keep_alive_ns = keep_alive_ns
            loaded.stop_clock()
            yield loaded

    def unload(self, stored: StoredModel) -> None:
        """Lets go of the model now, or when the requests that use it are done."""
        key = model_key(stored)
        loaded = self._slots.get(key)
        if loaded:
            loaded.keep_alive_ns = 0
            self._slots.unload_idle(key)

    def let_go_of(self, name: ModelName, current: StoredModel | None) -> None:
        """Unloads what was loaded as `name` and is not `current`, what it is now (None: deleted),
        and every model whose files are gone; in use, it goes when its requests are done.
        """
        for loaded in self.loaded():
            stored = loaded.stored
            is_other = current is None or model_key(current) != model_key(stored)
            is_gone = not stored.path.is_file() or (stored.adapter and not stored.adapter.is_file())
            if is_gone or (stored.name.key == name.key and is_other):
                self.unload(stored)

    def encoder_of(self, stored: StoredModel) -> TextEncoder:
        """A model's, whether it is in memory or not; reading one takes a while.

        Raises CheckpointError, TokenizerError.
        """
        loaded = self._slots.get(model_key(stored))
        return loaded.encoder if loaded else TextEncoder(load_tokenizer(stored.path))

    def forget_states(self, beginning: TokenArray) -> None:
        """Deletes the states behind texts that begin with these tokens, in memory and on disk;
        takes a while.
        """
        self._loader.forget(beginning)

    async def close(self) -> None:
        """Stops every engine; requests in flight end with an error. States that wait to be written
        are, within a few seconds.
        """
        await self._slots.close()
        await self._loader.close()

    def _start_clock(self, loaded: LoadedModel) -> None:
        """Lets a model that nobody uses expire, at once when it is not to be kept."""
        loaded.stop_clock()
        loaded.idle_since_ns = time.time_ns()
        key = model_key(loaded.stored)
        if loaded.keep_alive_ns <= 0:
            self._slots.unload_idle(key)
        elif loaded.keep_alive_ns < FOREVER_NS:
            seconds = loaded.keep_alive_ns / _SECOND_NS
            loop = asyncio.get_running_loop()
            loaded.timer = loop.call_later(seconds, self._slots.unload_idle, key)

"""Where the commands that look after models do their work: on the server, or in the store.

A server that answers at OLLAMA_HOST is asked, as its models are what the user sees. Where none
answers on this machine, the work is done in this machine's models folder, by the code that the
server would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from server.cli.client import Client, Json
from server.cli.errors import CommandError
from server.settings import Settings
from server.store.store import Store


class Models(Protocol):
    """What can be done with models that are stored. All raise AnserError in one line."""

    def show(self, model: str, *, verbose: bool = False) -> Json:
        """The answer of /api/show."""

    def copy(self, source: str, destination: str) -> None: ...

    def delete(self, model: str) -> None: ...


class LocalModels:
    """The models of a folder of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def show(self, model: str, *, verbose: bool = False) -> Json:
        # Imported here: copying and deleting need neither templates nor model files.
        from server.store.demo_model import find_stored  # noqa: PLC0415
        from server.store.show import show_json  # noqa: PLC0415

        stored = find_stored(self._store, model)
        if stored is None:
            raise CommandError(f"model '{model}' not found")
        return show_json(stored, verbose=verbose)

    def copy(self, source: str, destination: str) -> None:
        from server.store.model_changes import copy_model  # noqa: PLC0415

        copy_model(self._store, source, destination)

    def delete(self, model: str) -> None:
        from server.store.model_changes import delete_model  # noqa: PLC0415

        delete_model(self._store, model)


def is_this_machine(settings: Settings) -> bool:
    """Whether OLLAMA_HOST names this machine, so that its models folder is meant."""
    return settings.listens_on_loopback or settings.host in ("0.0.0.0", "::")


@contextmanager
def models_of(settings: Settings) -> Iterator[Models]:
    """Raises CommandError when no server answers at an address that is elsewhere."""
    with Client(settings.url) as client:
        if client.is_up():
            yield client
        elif is_this_machine(settings):
            yield LocalModels(Store(settings.models))
        else:
            raise no_server(settings.url)


@contextmanager
def server_of(settings: Settings) -> Iterator[Client]:
    """Raises CommandError when no server answers."""
    with Client(settings.url) as client:
        if not client.is_up():
            raise no_server(settings.url)
        yield client


def no_server(url: str) -> CommandError:
    return CommandError(
        f"no server answers at {url}; start it with `anser serve`, or correct OLLAMA_HOST"
    )

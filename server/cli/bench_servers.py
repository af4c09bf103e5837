"""Servers of their own for the models that `anser bench` measures over HTTP."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.cli.bench import BenchModel
from server.cli.bench_status import Status
from server.cli.client import Client
from server.cli.private_server import private_server


@dataclass(frozen=True)
class PreparedModel:
    """A model that can be served: its name, and the environment of servers for it."""

    name: str
    variables: Mapping[str, str]
    folder: Path  # for what belongs to one server


@dataclass(frozen=True)
class Served:
    client: Client
    pid: int  # of the server


@contextmanager
def prepared_model(
    model: BenchModel, arguments: argparse.Namespace, variables: Mapping[str, str], status: Status
) -> Iterator[PreparedModel]:
    """In a folder that is gone afterwards, with a store of its own when the model is a file."""
    with tempfile.TemporaryDirectory(prefix="anser-bench-") as name:
        folder = Path(name)
        variables = {**variables, "OLLAMA_KEEP_ALIVE": "-1"}
        for variable, value in (("ANSER_THREADS", arguments.threads), ("ANSER_ISA", arguments.isa)):
            if value is not None:
                variables[variable] = str(value)
        word = model.word
        if model.is_file:
            # Imported here: it needs torch, which takes a second.
            from server.bench.private_model import (  # noqa: PLC0415
                PRIVATE_NAME,
                add_private_model,
            )

            add_private_model(folder / "models", Path(model.path), status.show)
            variables["OLLAMA_MODELS"] = str(folder / "models")
            word = PRIVATE_NAME
        yield PreparedModel(word, variables, folder)


@contextmanager
def served(prepared: PreparedModel) -> Iterator[Served]:
    """A new server that has no states yet."""
    with ExitStack() as stack:
        states = stack.enter_context(tempfile.TemporaryDirectory(dir=prepared.folder))
        variables = {**prepared.variables, "ANSER_STATES": states}
        server = stack.enter_context(private_server(variables))
        yield Served(stack.enter_context(Client(server.url)), server.pid)

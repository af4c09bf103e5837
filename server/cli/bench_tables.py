"""`anser bench --tables`: what models cost here, beside llama.cpp's server if one is named."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import torch

from rwkv_core import kernels
from rwkv_core.bench.machine import processor_name
from rwkv_core.bench.options import DEFAULT_REPETITIONS
from rwkv_core.checkpoint import open_checkpoint, read_config
from rwkv_core.state import State
from server.bench.asking import Asker
from server.bench.conversation import script_of
from server.bench.llama_server import LlamaServer, check_peer, llama_server
from server.bench.overview import ModelFacts, OverviewResult, ServerResult
from server.bench.overview_plot import draw_overview
from server.bench.overview_tables import (
    NOTES,
    first_token_rows,
    first_token_table,
    memory_table,
    turn_rows,
    turn_table,
)
from server.bench.plot import check_plot
from server.bench.side_by_side import (
    ChatsPlan,
    OwnPlayer,
    Player,
    loaded_memory,
    play_side_by_side,
)
from server.cli.bench import BenchModel
from server.cli.bench_servers import PreparedModel, prepared_model, served
from server.cli.bench_status import Status
from server.cli.errors import CommandError
from server.settings import Settings
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import StoredModel, open_model

_NUM_TURNS = 10


def bench_tables(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    """Plays chats with one model after the other; its turns are written when they are known."""
    turns = arguments.turns or (_NUM_TURNS,)
    if len(turns) > 1:
        raise CommandError("--tables plays chats of one length; give --turns one number")
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.peer is not None:
        check_peer(arguments.peer)
    status = Status(sys.stderr)
    width = max(len(model.label) for model in models)
    table = turn_table(has_peer=arguments.peer is not None, label_width=width)
    results: list[OverviewResult] = []
    for model in models:
        with status.of(model.label):
            result = _measure(arguments, model, turns[0], status)
        if arguments.json:
            print(json.dumps(result.as_json()), flush=True)
        else:
            lines = [] if results else table.head()
            print("\n".join([*lines, *map(table.row, turn_rows(result))]), flush=True)
        results.append(result)
    if not arguments.json:
        print(f"\n{memory_table(results).whole(results)}\n")
        print(f"{first_token_table(results).whole(first_token_rows(results))}\n")
        print(_notes(arguments, results))
    if arguments.plot is not None:
        draw_overview(results, arguments.plot)
    return 0


def _measure(
    arguments: argparse.Namespace, model: BenchModel, num_turns: int, status: Status
) -> OverviewResult:
    script = script_of(Path(model.path), arguments.decode_tokens)
    plan = ChatsPlan(script, arguments.repetitions or DEFAULT_REPETITIONS, num_turns)
    with ExitStack() as stack:
        prepared = stack.enter_context(prepared_model(model, arguments, {}, status))
        stored = _stored(prepared)
        facts = _facts(model.label, stored, _num_threads(arguments))
        players: list[Player] = []
        names = ["Anser"]
        if arguments.peer is not None:
            # First, as it may be none.
            status.show("loading, the peer")
            peer = _peer(arguments.peer, stored, facts, script.num_predict, prepared.folder)
            players.append(stack.enter_context(peer))
            names.append(Path(arguments.peer).name)
        status.show("loading")
        server = stack.enter_context(served(prepared))
        asker = Asker(server.client, prepared.name, script.num_predict, has_drafts=False)
        players.insert(0, OwnPlayer(asker, server.pid))
        loaded = [loaded_memory(player) for player in players]
        played = play_side_by_side(players, plan, status.show)
    ours, *others = map(ServerResult, names, loaded, played)
    return OverviewResult(facts, ours, others[0] if others else None)


def _peer(
    path: str, stored: StoredModel, facts: ModelFacts, num_predict: int, folder: Path
) -> AbstractContextManager[LlamaServer]:
    """The peer's server of the same file, with replies that end as ours do."""
    options = {
        "temperature": 0,
        "seed": 1,
        "n_predict": num_predict,
        "stop": stored.prompt_format.stops,
    }
    return llama_server(
        path, stored.path, num_threads=facts.num_threads, options=options, folder=folder
    )


def _stored(prepared: PreparedModel) -> StoredModel:
    folder = prepared.variables.get("OLLAMA_MODELS") or Settings.from_environment().models
    stored = open_model(Store(Path(folder)), ModelName.parse(prepared.name))
    if stored is None:
        raise CommandError(f"{prepared.name}: is no longer there; somebody has removed it")
    return stored


def _facts(label: str, stored: StoredModel, num_threads: int) -> ModelFacts:
    with closing(open_checkpoint(stored.path)) as checkpoint:
        state_bytes = State.nbytes_of(read_config(checkpoint))
    return ModelFacts(
        label=label,
        size=stored.details["parameter_size"],
        type_name=stored.quantization,
        file_bytes=stored.path.stat().st_size,
        state_bytes=state_bytes,
        num_threads=num_threads,
    )


def _num_threads(arguments: argparse.Namespace) -> int:
    """Those of the kernels, or of PyTorch without them."""
    given: int | None = arguments.threads
    return given or kernels.num_threads() or torch.get_num_threads()


def _notes(arguments: argparse.Namespace, results: Sequence[OverviewResult]) -> str:
    """How all of it was measured."""
    given = {
        "--turns": results[0].num_turns,
        "-n": arguments.decode_tokens,
        "-r": len(results[0].ours.chats),
        "-t": arguments.threads,
        "--isa": arguments.isa,
        "--peer": Path(arguments.peer).name if arguments.peer else None,
    }
    words = [f"{option} {value}" for option, value in given.items() if value is not None]
    command = " ".join(["anser bench --tables", *words])
    threads = results[0].facts.num_threads
    return f"`{command}` on {processor_name()}, threads: {threads}. {NOTES}"

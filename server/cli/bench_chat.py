"""`anser bench --chat` and `--load`: chats over HTTP, on servers that are started for them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rwkv_core.bench.machine import processor_name
from server.bench.asking import Asker
from server.bench.chat import ChatPlan, play_chat
from server.bench.conversation import Script, script_of
from server.bench.load import LoadPlan, play_alone, play_together
from server.bench.plot import check_plot, draw
from server.bench.results import ChatResult, LoadResult, Memory, Stream, Turn
from server.bench.tables import CHAT_NOTES, chat_table, load_table, stream_table, turn_table
from server.cli.bench import BenchModel
from server.cli.bench_servers import prepared_model, served
from server.cli.bench_status import Status
from server.cli.errors import CommandError

_CHAT_TURNS = (10, 100)
_LOAD_TURNS = 10
_THINKING_PAUSE_S = 1.0


def bench_chat(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    """Plays chats of every length, without and with thinking, each on a new server."""
    if arguments.plot is not None:
        check_plot(arguments.plot)
    status = Status(sys.stderr)
    results = [result for model in models for result in _play_chats(arguments, model, status)]
    if not arguments.json:
        print(chat_table(results).whole(results))
        print(f"\n`{_command(arguments)}` on {processor_name()}. {CHAT_NOTES}")
    if arguments.plot is not None:
        draw(results, arguments.plot)
    return 0


def bench_load(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    """Plays chats alone on one server and at once on another; 1 if any text differs."""
    turns = arguments.turns or (_LOAD_TURNS,)
    if len(turns) > 1:
        raise CommandError("--load plays chats of one length; give --turns one number")
    status = Status(sys.stderr)
    results = []
    for model in models:
        with status.of(model.label):
            result = _play_load(arguments, model, turns[0], status)
        results.append(result)
        if arguments.json:
            print(json.dumps(result.as_json()), flush=True)
        else:
            print(f"{model.label}, {arguments.load} chats at once\n")
            print(stream_table().whole(result.streams), end="\n\n", flush=True)
    if not arguments.json:
        print(load_table(results).whole(results))
        print(f"\n`{_command(arguments)}` on {processor_name()}.")
    return 0 if all(result.are_equal for result in results) else 1


def _play_chats(
    arguments: argparse.Namespace, model: BenchModel, status: Status
) -> Iterator[ChatResult]:
    script = script_of(Path(model.path), arguments.decode_tokens)
    wanted = (False, True) if arguments.think is None else (arguments.think,)
    with status.of(model.label), prepared_model(model, arguments, {}, status) as prepared:
        for think in wanted:
            for num_turns in arguments.turns or _CHAT_TURNS:
                with served(prepared) as server:
                    asker = Asker(server.client, prepared.name, script.num_predict)
                    if think and not asker.can_think():
                        status.warn(f"{model.label} cannot think: played without it only")
                        break
                    pause = arguments.pause
                    if pause is None:
                        pause = _THINKING_PAUSE_S if think else 0.0
                    plan = ChatPlan(num_turns, think, pause)
                    result = _play_chat(arguments, model, plan, asker, script, status)
                if arguments.json:
                    print(json.dumps(result.as_json()), flush=True)
                yield result


def _play_chat(
    arguments: argparse.Namespace,
    model: BenchModel,
    plan: ChatPlan,
    asker: Asker,
    script: Script,
    status: Status,
) -> ChatResult:
    """Unless JSON is wanted, a row is written for each turn when it is over."""
    table = turn_table(plan.num_turns)
    turns: list[Turn] = []
    status.show("loading")
    asker.warm_up()
    for turn in play_chat(asker, script, plan, 0, status.show):
        if not arguments.json:
            if not turns:
                thinking = ", thinking" if plan.think else ""
                print(f"{model.label}, {plan.num_turns} turns{thinking}\n")
                print("\n".join(table.head()))
            print(table.row(turn), flush=True)
        turns.append(turn)
    if not arguments.json:
        print(flush=True)
    return ChatResult(model.label, plan.think, plan.pause_s, turns)


def _play_load(
    arguments: argparse.Namespace, model: BenchModel, num_turns: int, status: Status
) -> LoadResult:
    # A slot for each chat, unless the user says otherwise.
    variables = {"OLLAMA_NUM_PARALLEL": str(arguments.load)} | {
        name: os.environ[name] for name in ("OLLAMA_NUM_PARALLEL",) if os.environ.get(name)
    }
    think = bool(arguments.think)
    script = script_of(Path(model.path), arguments.decode_tokens)
    with prepared_model(model, arguments, variables, status) as prepared:
        status.show("loading")
        with served(prepared) as server:
            if think and not Asker(server.client, prepared.name, 1).can_think():
                raise CommandError(f"{model.word}: cannot think; leave --think out")
            plan = LoadPlan(arguments.load, num_turns, think, prepared.name, script)
            alone = play_alone(plan, server.client, status.show)
        # A new one, which knows none of the texts yet.
        with served(prepared) as server:
            together = play_together(plan, server.client, status.show)
            memory: Memory = Asker(server.client, prepared.name, 1).memory()
    streams = [
        Stream(number, *replies)
        for number, replies in enumerate(zip(alone, together, strict=True), start=1)
    ]
    return LoadResult(model.label, think, num_turns, streams, memory)


def _command(arguments: argparse.Namespace) -> str:
    """What was asked for, to measure the same again."""
    given = {
        "--load": arguments.load,
        "--turns": ",".join(map(str, arguments.turns)) if arguments.turns else None,
        "--think": None if arguments.think is None else str(arguments.think).lower(),
        "--pause": arguments.pause,
        "-n": arguments.decode_tokens,
        "-t": arguments.threads,
        "--isa": arguments.isa,
    }
    words = [f"{option} {value}" for option, value in given.items() if value is not None]
    return " ".join(["anser bench", *(["--chat"] if arguments.chat else []), *words])

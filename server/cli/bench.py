"""`anser bench FILE|NAME...`: how fast models run here, and how true their packed weights are."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rwkv_core.bench.machine import num_processors
from rwkv_core.bench.options import (
    DEFAULT_DECODE_TOKENS,
    DEFAULT_PROMPT_TOKENS,
    DEFAULT_REPETITIONS,
    SHORT_TEXT_TOKENS,
    BenchError,
    QualityOptions,
    Runtime,
    SpeedOptions,
)
from rwkv_core.bench.peer import Peer
from rwkv_core.bench.process import Listener
from rwkv_core.bench.results import QualityResult, SpeedResult
from rwkv_core.bench.runs import measure_quality, measure_speed
from rwkv_core.bench.tables import Table, quality_notes, quality_table, speed_notes, speed_table
from server.cli.bench_arguments import DESCRIPTION, add_arguments
from server.cli.bench_status import Status
from server.cli.create import sigterm_as_exception
from server.cli.errors import CommandError
from server.settings import Settings
from server.store.store import Store

__all__ = ["DESCRIPTION", "BenchModel", "add_arguments", "execute"]


class _Mode(Enum):
    """What is measured, by the option that asks for it."""

    SPEED = ""
    QUALITY = "--quality"
    CHAT = "--chat"
    LOAD = "--load"
    TABLES = "--tables"


# The options that not every mode knows.
_MODES_OF: Mapping[str, tuple[str, Sequence[_Mode]]] = {
    "prompt_tokens": ("-p", (_Mode.SPEED,)),
    "decode_tokens": ("-n", (_Mode.SPEED, _Mode.CHAT, _Mode.LOAD, _Mode.TABLES)),
    "repetitions": ("-r", (_Mode.SPEED, _Mode.TABLES)),
    "batch": ("-b", (_Mode.SPEED,)),
    "long": ("--long", (_Mode.SPEED,)),
    "peer": ("--peer", (_Mode.SPEED, _Mode.TABLES)),
    "text": ("--text", (_Mode.QUALITY,)),
    "reference": ("--reference", (_Mode.QUALITY,)),
    "turns": ("--turns", (_Mode.CHAT, _Mode.LOAD, _Mode.TABLES)),
    "think": ("--think", (_Mode.CHAT, _Mode.LOAD)),
    "pause": ("--pause", (_Mode.CHAT,)),
    "plot": ("--plot", (_Mode.CHAT, _Mode.TABLES)),
}


class _Result(Protocol):
    def as_json(self) -> dict[str, Any]: ...


_R = TypeVar("_R", bound=_Result)


@dataclass(frozen=True)
class BenchModel:
    """A model to measure. `word` is what the user called it, `label` what its row does.

    `is_file` tells a file or folder from a model of the store.
    """

    word: str
    label: str
    path: str
    is_file: bool


def execute(arguments: argparse.Namespace) -> int:
    """Measures the models one after the other; each one's row is written when it is known."""
    mode = _mode(arguments)
    _check(arguments, mode)
    models = [find_model(word) for word in arguments.models]
    if arguments.threads is not None and arguments.threads > num_processors():
        print(
            f"note: {arguments.threads} threads on {num_processors()} processors will wait for "
            "one another",
            file=sys.stderr,
        )
    measure = {
        _Mode.SPEED: _bench_speed,
        _Mode.QUALITY: _bench_quality,
        _Mode.CHAT: _bench_chat,
        _Mode.LOAD: _bench_load,
        _Mode.TABLES: _bench_tables,
    }[mode]
    with sigterm_as_exception():
        return measure(arguments, models)


def find_model(word: str) -> BenchModel:
    """The file or folder of that name, or else the model of the store. Raises CommandError."""
    path = Path(word)
    try:
        if path.exists():
            label = path.stem if path.is_file() else path.resolve().name
            return BenchModel(word, label, word, is_file=True)
    except (OSError, ValueError):  # a name too long, a null character
        pass
    # Imported here: what they need of PyTorch takes a second and memory.
    from server.store.demo_model import find_stored  # noqa: PLC0415

    stored = find_stored(Store(Settings.from_environment().models), word)
    if stored is None:
        raise CommandError(
            f"{word}: there is neither a file of that name nor a model in `anser list`"
        )
    label = stored.name.shortest.removesuffix(":latest")
    return BenchModel(word, label, str(stored.path), is_file=False)


def _mode(arguments: argparse.Namespace) -> _Mode:
    asked = [each for each in _Mode if each.value and getattr(arguments, each.value.strip("-"))]
    if len(asked) > 1:
        raise CommandError(f"{asked[0].value} and {asked[1].value}: measure one after the other")
    return asked[0] if asked else _Mode.SPEED


def _check(arguments: argparse.Namespace, mode: _Mode) -> None:
    """Refuses options that would have no effect, and a long text that is none."""
    for name, (option, modes) in _MODES_OF.items():
        if getattr(arguments, name) is not None and mode not in modes:
            *flags, last = (each.value for each in modes)
            problem = f"is only for {', '.join(flags)}{' and ' if flags else ''}{last}"
            if _Mode.SPEED in modes:
                problem = f"measures speed, not {mode.value}"
            raise CommandError(f"{option} {problem}; leave one of them out")
    if arguments.long is not None and arguments.long <= SHORT_TEXT_TOKENS:
        raise CommandError(
            f"--long {arguments.long}: must be more than the {SHORT_TEXT_TOKENS} tokens that it "
            "is compared with"
        )


def _bench_chat(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    # Imported here, as it needs a client, which the other measurements do not.
    from server.cli.bench_chat import bench_chat  # noqa: PLC0415

    return bench_chat(arguments, models)


def _bench_load(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    from server.cli.bench_chat import bench_load  # noqa: PLC0415

    return bench_load(arguments, models)


def _bench_tables(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    from server.cli.bench_tables import bench_tables  # noqa: PLC0415

    return bench_tables(arguments, models)


def _bench_speed(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    options = SpeedOptions(
        num_prompt_tokens=arguments.prompt_tokens or DEFAULT_PROMPT_TOKENS,
        num_decode_tokens=arguments.decode_tokens or DEFAULT_DECODE_TOKENS,
        num_repetitions=arguments.repetitions or DEFAULT_REPETITIONS,
        batch_size=arguments.batch,
        num_long_tokens=arguments.long,
    )
    runtime = Runtime(arguments.threads, arguments.isa)
    peer = Peer(arguments.peer) if arguments.peer is not None else None

    def measure(model: BenchModel, listener: Listener) -> SpeedResult:
        return measure_speed(
            model.label,
            model.path,
            options=options,
            runtime=runtime,
            peer=peer,
            listener=listener,
        )

    table = speed_table(options, has_peer=peer is not None, label_width=_width(models))
    results = _bench_all(models, measure, None if arguments.json else table)
    if not arguments.json:
        print(f"\n{speed_notes(results)}")
    return 0


def _bench_quality(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> int:
    reference = find_model(arguments.reference) if arguments.reference is not None else None
    options = QualityOptions(
        text=arguments.text, reference=reference.path if reference is not None else None
    )
    runtime = Runtime(arguments.threads, arguments.isa)

    def measure(model: BenchModel, listener: Listener) -> QualityResult:
        return measure_quality(
            model.label, model.path, options=options, runtime=runtime, listener=listener
        )

    table = quality_table(label_width=_width(models))
    results = _bench_all(models, measure, None if arguments.json else table)
    if not arguments.json:
        print(f"\n{quality_notes(results, reference.label if reference is not None else None)}")
    return 0


def _bench_all(
    models: Sequence[BenchModel],
    measure: Callable[[BenchModel, Listener], _R],
    table: Table[_R] | None,
) -> list[_R]:
    """Writes a row of `table` for each model, or without one a line of JSON."""
    results: list[_R] = []
    status = Status(sys.stderr)
    for model in models:
        try:
            with status.of(model.label):
                result = measure(model, status)
        except BenchError as error:
            raise CommandError(_naming(model, str(error))) from error
        if table is not None and not results:
            print("\n".join(table.head()))
        print(json.dumps(result.as_json()) if table is None else table.row(result), flush=True)
        results.append(result)
    return results


def _naming(model: BenchModel, problem: str) -> str:
    """The problem under the name that the user knows the model by."""
    if problem.startswith("--"):  # of an option
        return problem
    return f"{model.word}: {problem.removeprefix(f'{model.path}: ')}"


def _width(models: Sequence[BenchModel]) -> int:
    return max(len(model.label) for model in models)

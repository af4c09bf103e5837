"""`anser bench FILE|NAME...`: how fast models run here, and how true their packed weights are."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

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
from server.cli.create import sigterm_as_exception
from server.cli.errors import CommandError
from server.cli.terminal import has_colour
from server.names import InvalidNameError, ModelName
from server.settings import Settings
from server.store import Store

_SPEED_ONLY = {
    "prompt_tokens": "-p",
    "decode_tokens": "-n",
    "repetitions": "-r",
    "batch": "-b",
    "long": "--long",
    "peer": "--peer",
}
_QUALITY_ONLY = {"text": "--text", "reference": "--reference"}


class _Result(Protocol):
    def as_json(self) -> dict[str, Any]: ...


_R = TypeVar("_R", bound=_Result)


@dataclass(frozen=True)
class BenchModel:
    """A model to measure. `word` is what the user called it, `label` what its row does."""

    word: str
    label: str
    path: str


def execute(arguments: argparse.Namespace) -> int:
    """Measures the models one after the other; each one's row is written when it is known."""
    _check(arguments)
    models = [find_model(word) for word in arguments.models]
    if arguments.threads is not None and arguments.threads > num_processors():
        print(
            f"note: {arguments.threads} threads on {num_processors()} processors will wait for "
            "one another",
            file=sys.stderr,
        )
    with sigterm_as_exception():
        if arguments.quality:
            _bench_quality(arguments, models)
        else:
            _bench_speed(arguments, models)
    return 0


def find_model(word: str) -> BenchModel:
    """The file or folder of that name, or else the model of the store. Raises CommandError."""
    path = Path(word)
    try:
        if path.exists():
            return BenchModel(word, path.stem if path.is_file() else path.resolve().name, word)
    except (OSError, ValueError):  # a name too long, a null character
        pass
    # Imported here: what they need of PyTorch takes a second and memory.
    from server.demo_model import DEMO_NAME, ensure_demo_model  # noqa: PLC0415
    from server.stored_model import open_model  # noqa: PLC0415

    store = Store(Settings.from_environment().models)
    try:
        name = ModelName.parse(word)
        if name.key == DEMO_NAME.key:
            ensure_demo_model(store)
        stored = open_model(store, name)
    except InvalidNameError:
        stored = None
    if stored is None:
        raise CommandError(
            f"{word}: there is neither a file of that name nor a model in `anser list`"
        )
    return BenchModel(word, stored.name.shortest.removesuffix(":latest"), str(stored.path))


def _check(arguments: argparse.Namespace) -> None:
    """Refuses options that would have no effect, and a long text that is none."""
    useless = _SPEED_ONLY if arguments.quality else _QUALITY_ONLY
    for name, option in useless.items():
        if getattr(arguments, name) is not None:
            problem = "measures speed, not" if arguments.quality else "is only for"
            raise CommandError(f"{option} {problem} --quality; leave one of them out")
    if arguments.long is not None and arguments.long <= SHORT_TEXT_TOKENS:
        raise CommandError(
            f"--long {arguments.long}: must be more than the {SHORT_TEXT_TOKENS} tokens that it "
            "is compared with"
        )


def _bench_speed(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> None:
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


def _bench_quality(arguments: argparse.Namespace, models: Sequence[BenchModel]) -> None:
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


def _bench_all(
    models: Sequence[BenchModel],
    measure: Callable[[BenchModel, Listener], _R],
    table: Table[_R] | None,
) -> list[_R]:
    """Writes a row of `table` for each model, or without one a line of JSON."""
    results: list[_R] = []
    status = _Status(sys.stderr)
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


class _Status:
    """On a terminal: one line that says what is being done. Every warning is written once.

    The line changes when something new begins; nothing moves while something is being timed.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_drawn = has_colour(out)
        self._label = ""
        self._warnings: set[str] = set()

    @contextmanager
    def of(self, label: str) -> Iterator[None]:
        """What is shown inside is about the model `label`; the line is erased at the end."""
        self._label = label
        try:
            yield
        finally:
            self._draw("")

    def warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._draw("")
            print(f"note: {text}", file=self._out, flush=True)

    def show(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        self._draw(f"{self._label}: {text}"[: columns - 1])

    def _draw(self, text: str) -> None:
        if self._is_drawn:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()

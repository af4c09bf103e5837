"""Measurements of whole models, each in a process of its own."""

from __future__ import annotations

from dataclasses import asdict

from rwkv_core.bench.machine import processor_name
from rwkv_core.bench.options import QualityOptions, Runtime, SpeedOptions
from rwkv_core.bench.peer import Peer
from rwkv_core.bench.process import Listener, MeasuringProcess
from rwkv_core.bench.results import (
    Finished,
    Loaded,
    LongPoint,
    Quality,
    QualityResult,
    Repetition,
    SpeedResult,
)


def measure_speed(
    label: str,
    path: str,
    *,
    options: SpeedOptions,
    runtime: Runtime,
    peer: Peer | None,
    listener: Listener,
) -> SpeedResult:
    """Speed and memory of the model at `path`. Repetitions of ours and of the peer's alternate.

    Raises BenchError saying what could not be measured.
    """
    arguments = {"path": path, "options": asdict(options)}
    repetitions, peer_repetitions, long = [], [], []
    with MeasuringProcess("speed", arguments, runtime, listener) as process:
        loaded = Loaded(**process.call("load"))
        for index in range(options.num_repetitions):
            repetitions.append(Repetition(**process.call("repeat")))
            if peer is not None:
                listener.show(f"the peer, {index + 1} of {options.num_repetitions}")
                peer_repetitions.append(peer.run(path, options, loaded.num_threads))
        if options.num_long_tokens is not None:
            long = [LongPoint(**point) for point in process.call("long")]
        finished = Finished(**process.call("finish"))
    return SpeedResult(
        label=label,
        path=path,
        processor=processor_name(),
        runtime=runtime,
        options=options,
        loaded=loaded,
        repetitions=repetitions,
        long=long,
        finished=finished,
        peer=peer.path if peer else None,
        peer_repetitions=peer_repetitions,
    )


def measure_quality(
    label: str, path: str, *, options: QualityOptions, runtime: Runtime, listener: Listener
) -> QualityResult:
    """Quality of the model at `path`. Raises BenchError saying what could not be measured."""
    arguments = {"path": path, "options": asdict(options)}
    with MeasuringProcess("quality", arguments, runtime, listener) as process:
        quality = Quality(**process.call("measure"))
    return QualityResult(label, path, options.reference or path, quality)

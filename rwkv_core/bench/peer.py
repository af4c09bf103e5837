"""llama.cpp's `llama-bench` on the same file, for a comparison in the same minutes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from rwkv_core.bench.options import BenchError, SpeedOptions
from rwkv_core.bench.results import PeerRepetition


class Peer:
    """An executable that takes llama-bench's options. Raises BenchError if it is none."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file() or not os.access(path, os.X_OK):
            raise BenchError(f"--peer {path}: is no executable file; name a llama-bench")

    def run(self, file: str, options: SpeedOptions, num_threads: int) -> PeerRepetition:
        """One repetition, after the warm-up that the peer makes by itself.

        Raises BenchError when it fails or does not report both measurements.
        """
        counts = {
            "-p": options.num_prompt_tokens,
            "-n": options.num_decode_tokens,
            "-r": 1,
            "-t": num_threads,
        }
        words = [word for name, count in counts.items() for word in (name, str(count))]
        try:
            done = subprocess.run(
                # An absolute path: a bare name would be searched for in $PATH.
                [os.path.abspath(self.path), "-m", file, *words, "-o", "json"],
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise BenchError(f"--peer {self.path}: cannot be run: {error.strerror}") from error
        if done.returncode != 0:
            raise BenchError(
                f"--peer {self.path}: failed with exit code {done.returncode}: "
                f"{_last_line(done.stderr)}"
            )
        try:
            tests = json.loads(done.stdout)
            seconds = {
                (test["n_prompt"], test["n_gen"]): float(test["avg_ns"]) / 1e9 for test in tests
            }
            found = PeerRepetition(
                prefill_s=seconds[options.num_prompt_tokens, 0],
                decode_s=seconds[0, options.num_decode_tokens],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(
                f"--peer {self.path}: did not print llama-bench's JSON (-o json)"
            ) from error
        if not (found.prefill_s > 0 and found.decode_s > 0):
            raise BenchError(f"--peer {self.path}: reports that it took no time")
        return found


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")

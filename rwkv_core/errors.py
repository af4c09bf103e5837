"""Errors of the engine. `str(error)` is one line for the user: thing, problem, remedy."""

from __future__ import annotations

import os


def quoted(name: str) -> str:
    """A name out of a file, made fit for one line of an error."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


class AnserError(Exception):
    """Base of every error that Anser raises on purpose."""


class CheckpointError(AnserError):
    """A file that is not a usable RWKV-7 model. Callers may rename `path`."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = os.fspath(path)
        self.problem = problem


class ModelTooLargeError(CheckpointError):
    """A model that is sound, but needs more memory than there is: `missing` bytes more."""

    def __init__(self, path: str | os.PathLike[str], problem: str, missing: int = 0) -> None:
        super().__init__(path, problem)
        self.missing = missing


class TokenizerError(AnserError):
    """A vocabulary that is missing, damaged, or not the model's."""


class OptionError(AnserError):
    """A request option outside its range. The message names the option and the range."""


class GrammarError(OptionError):
    """A schema that cannot be compiled; the compiler's words."""


class EngineStoppedError(AnserError):
    """The engine was closed before it took the request, or while it held it."""


class EngineBusyError(AnserError):
    """As many requests wait as may; the client may try again."""


class GenerationError(AnserError):
    """A prefill or decode step failed; only the request that was being served is affected."""


class StateFileError(AnserError):
    """A saved state that is damaged, or of another model."""

"""What a user reads when a file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_core.checkpoint import open_checkpoint, read_config
from rwkv_core.errors import CheckpointError


def refusal(path: Path) -> str:
    """The problem that opening `path` as an RWKV-7 model ends in: one line, naming a file."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = open_checkpoint(path)
        try:
            read_config(checkpoint)
        finally:
            checkpoint.close()
    line = str(caught.value)
    assert line == f"{caught.value.path}: {caught.value.problem}"
    assert caught.value.path.startswith(str(path))
    assert "\n" not in line
    assert len(caught.value.problem) < 300
    return caught.value.problem

"""A server that is killed while chats go on; `tests/tools/crash_sessions.py` does it at length."""

from __future__ import annotations

from pathlib import Path

from tests.tools.crash_sessions import crash
from tests.tools.native import require_kernels
from tests.tools.running_server import needs_demo


@needs_demo
def test_kills_lose_nothing_that_was_written_and_mix_up_nothing(tmp_path: Path) -> None:
    require_kernels()  # without them, texts may depend on the company
    story = crash(tmp_path, num_chats=16, num_kills=2, seed=0)
    assert story.num_resumed >= 12

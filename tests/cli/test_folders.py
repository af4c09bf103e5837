"""Folders of a server that cannot be written: what it says, and the remedy in it."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from server.cli.errors import CommandError
from server.cli.folders import check_models_folder, states_remark


def test_folders_that_can_be_written(tmp_path: Path) -> None:
    check_models_folder(tmp_path / "models")
    assert states_remark(tmp_path / "anser" / "states") is None
    assert states_remark(None) is None
    assert stat.S_IMODE((tmp_path / "anser" / "states").stat().st_mode) == 0o700
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "states"
    assert states_remark(folder) == (
        f"{folder}: cannot keep the states of chats there (Not a directory); make it writable, or "
        "set ANSER_STATES to another folder, or to off; until then chats are read anew after a "
        "restart"
    )


def test_a_folder_of_another_user() -> None:
    folder = Path(tempfile.mkdtemp())  # unlike tmp_path, below what everybody may enter
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:  # who may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(CommandError) as caught:
            check_models_folder(folder)
        remark = str(states_remark(folder))
        remedy = f"give it to this user: chown -R {os.geteuid()}:{os.getegid()} {folder}, or set"
    finally:
        if is_root:
            os.seteuid(0)
        folder.rmdir()
    assert f"(Permission denied); {remedy} OLLAMA_MODELS" in str(caught.value)
    assert f"(Permission denied); {remedy} ANSER_STATES" in remark

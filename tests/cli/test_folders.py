"""Folders of a server that cannot be written: what it says, and the remedy in it."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import NoReturn

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


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root, as which tests may run, can write everywhere.
    def refuse(**_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    remedy = f"give it to this user: chown -R {os.getuid()}:{os.getgid()} {tmp_path}, or set"
    with pytest.raises(CommandError) as caught:
        check_models_folder(tmp_path)
    assert f"(Permission denied); {remedy} OLLAMA_MODELS" in str(caught.value)
    assert f"(Permission denied); {remedy} ANSER_STATES" in str(states_remark(tmp_path))

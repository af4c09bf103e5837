"""The extension module as it was built: from these sources, and without PyTorch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

from rwkv_core import kernels
from rwkv_core.kernels.sources import source_hash
from tests.tools.native import require_kernels

NATIVE = Path(kernels.__file__).with_name("native")


@pytest.fixture
def module() -> ModuleType:
    require_kernels()
    return importlib.import_module("_rwkv_kernels")


def test_hash_is_of_names_and_contents(tmp_path: Path) -> None:
    contents = {"b.cpp": b"b\r\n", "CMakeLists.txt": b"", "a.h": b"a", "c.inl": b"c"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.txt").write_bytes(b"of no matter")
    lines = [
        f"{sha256(contents[name]).hexdigest()}  {name}\n"
        for name in ("CMakeLists.txt", "a.h", "b.cpp", "c.inl")
    ]
    assert source_hash(tmp_path) == sha256("".join(lines).encode()).hexdigest()
    (tmp_path / "a.h").rename(tmp_path / "d.h")
    assert source_hash(tmp_path) != sha256("".join(lines).encode()).hexdigest()


@pytest.mark.skipif(not NATIVE.is_dir(), reason="an installed package has no sources")
def test_module_is_built_from_these_sources(module: ModuleType) -> None:
    assert source_hash(NATIVE) == module.SOURCE_HASH


def test_module_needs_no_pytorch(module: ModuleType) -> None:
    assert module.__file__
    path = Path(module.__file__)
    binary = path.read_bytes()
    assert b"libtorch" not in binary
    assert b"libc10" not in binary
    code = "import sys, _rwkv_kernels; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=True, timeout=60)

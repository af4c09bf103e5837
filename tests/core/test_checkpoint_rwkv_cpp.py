"""rwkv.cpp files with hostile headers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.tools.random_checkpoint import TINY, random_tensors, write_rwkv_cpp
from tests.tools.refusal import refusal


def _header(version: int = 101, type_id: int = 1) -> bytes:
    return struct.pack("<6i", 0x67676D66, version, 300, 64, 3, type_id)


def _tensor(
    sizes: tuple[int, ...] = (4,),
    name: bytes = b"emb.weight",
    type_id: int = 0,
    *,
    num_dims: int | None = None,
    name_bytes: int | None = None,
    data: bytes = bytes(64),
) -> bytes:
    dims = len(sizes) if num_dims is None else num_dims
    length = len(name) if name_bytes is None else name_bytes
    return (
        struct.pack("<3i", dims, length, type_id)
        + struct.pack(f"<{len(sizes)}i", *sizes)
        + name
        + data
    )


HOSTILE: dict[str, tuple[str, bytes]] = {
    "future version": ("unknown version 102", _header(102)),
    "negative version": ("unknown version -1", _header(-1)),
    "old quantization": ("quantize it again", _header(100, 2)),
    "header cut off": ("truncated", _header()[:20]),
    "no tensors": ("lacks the tensor emb.weight", _header()),
    "no dimensions": ("no tensor's header", _header() + _tensor(num_dims=0)),
    "many dimensions": ("no tensor's header", _header() + _tensor(num_dims=1 << 30)),
    "negative dimensions": ("no tensor's header", _header() + _tensor(num_dims=-1)),
    "long name": ("no tensor's header", _header() + _tensor(name_bytes=0x7FFFFFFF)),
    "negative name": ("no tensor's header", _header() + _tensor(name_bytes=-1)),
    "no name": ("no tensor's header", _header() + _tensor(name=b"")),
    "name cut off": ("truncated", _header() + _tensor(name_bytes=200)),
    "huge": ("ends inside", _header() + _tensor((0x7FFFFFFF,) * 3)),
    "negative size": ("impossible shape", _header() + _tensor((-4,))),
    "two negative sizes": ("impossible shape", _header() + _tensor((-4, -4))),
    "zero size": ("impossible shape", _header() + _tensor((0,))),
    "rows no blocks": ("impossible shape", _header() + _tensor((33,), type_id=2)),
    "removed type": ("type Q4_1_O", _header() + _tensor(type_id=4)),
    "unknown type": ("type 99", _header() + _tensor(type_id=99)),
    "negative type": ("type -1", _header() + _tensor(type_id=-1)),
    "twice": ("one too many", _header() + _tensor(data=bytes(16)) * 2),
    "data cut off": ("ends inside", _header() + _tensor((17,))),
    "bytes left over": ("truncated", _header() + _tensor((15,))),
    "name no UTF-8": ("lacks", _header() + _tensor((16,), name=b"\xff\n")),
    "fused lerps of five": (
        "expected [6, D]",
        _header() + _tensor((4, 4), b"blocks.0.att.x_rwkvag"),
    ),
    "flat lerps": ("expected [6, D]", _header() + _tensor((16,), b"blocks.0.att.x_rwkvag")),
}


@pytest.mark.parametrize(("problem", "content"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, problem: str, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert problem in refusal(path)


def test_a_flood_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    tensors = (_tensor((1,), str(index).encode(), data=bytes(4)) for index in range(20_001))
    path.write_bytes(_header() + b"".join(tensors))
    assert "one too many" in refusal(path)


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_rwkv_cpp(path, random_tensors(TINY), type_name="Q5_1")
    content = path.read_bytes()
    for size in (23, 25, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert "truncated" in refusal(path)

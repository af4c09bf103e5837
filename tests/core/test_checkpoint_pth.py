""".pth files: everything that torch.save writes for tensors is read, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_core.checkpoint.pickled_tensors import PickleError, read_pickled_tensors
from rwkv_core.checkpoint.pth import PthCheckpoint
from tests.tools.random_checkpoint import TINY, random_tensors, write_pth
from tests.tools.refusal import refusal


def _module_state() -> dict[str, Any]:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5, affine=True))
    return {name: tensor.float() for name, tensor in module.state_dict().items()}


def _views() -> dict[str, Any]:
    base = torch.arange(60, dtype=torch.float32)
    return {
        "part": base[7:19].view(3, 4),
        "transposed": base.view(6, 10).t(),
        "strided": base.view(6, 10)[::2, 1::3],
        "scalar": base[5],
        "whole": base,
        "tied": base,
        "empty": torch.empty(0, 4),
    }


SAVED: dict[str, Callable[[], dict[str, Any]]] = {
    "state of a module": lambda: torch.nn.Linear(
        3, 5
    ).state_dict(),  # an OrderedDict with _metadata
    "module with buffers": _module_state,
    "parameters": lambda: dict(torch.nn.Linear(3, 5).named_parameters()),
    "views": _views,
    "all types": lambda: {
        str(dtype): torch.randn(4, 4).to(dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    },
    "not only tensors": lambda: {
        "weight": torch.ones(2),
        "epoch": 3,
        "lr": 0.1,
        "tags": ["a", None],
    },
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("make", SAVED.values(), ids=SAVED)
def test_reads_what_torch_reads(
    tmp_path: Path, make: Callable[[], dict[str, Any]], protocol: int
) -> None:
    path = tmp_path / "model.pth"
    expected = make()
    torch.save(expected, path, pickle_protocol=protocol)
    if protocol == 2:  # the only one that PyTorch's own restricted reader takes without a warning
        expected = torch.load(path, weights_only=True)
    expected = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
    with closing(PthCheckpoint(path)) as checkpoint:
        assert list(checkpoint.tensors) == list(expected)
        for name, tensor in expected.items():
            read = checkpoint.read(name)
            assert read.dtype == tensor.dtype
            assert read.is_contiguous()
            assert torch.equal(read, tensor)


class _Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def _archive(path: Path, data_pkl: bytes, records: dict[str, bytes] | None = None) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data_pkl)
        for name, content in (records or {"data/0": bytes(64)}).items():
            archive.writestr(f"model/{name}", content)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", ["os.system", "os.mkdir", "builtins.eval", "builtins.exec"])
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    tmp_path: Path, function: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    if function == "os.system":
        call = _Call(os.system, f"mkdir {marker}")
    elif function == "os.mkdir":
        call = _Call(os.mkdir, str(marker))
    else:
        call = _Call(
            eval if "eval" in function else exec, f"__import__('os').mkdir({str(marker)!r})"
        )
    path = tmp_path / "model.pth"
    content = pickle.dumps({"emb.weight": call}, protocol)
    pickle.loads(content)  # it does what it says …
    marker.rmdir()

    _archive(path, content)
    problem = refusal(path)
    assert "nothing is run" in problem or "no model's tensors need" in problem
    path.write_bytes(content)  # without an archive, as PyTorch saved long ago
    assert refusal(path)
    assert not marker.exists()  # … but not here


def test_the_error_names_what_the_pickle_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"emb.weight": torch.ones(1), "x": _Call(os.system, "true")}, path)
    assert "'posix.system'" in refusal(path)


MALFORMED = {
    "unhashable bomb as a name": b"\x80\x02}q\x00(K\x01\x85" + b"2\x86" * 200 + b"K\x01u.",
    "bomb as a global": b"\x80\x04\x8c\x02os\x85" + b"2\x86" * 200 + b"\x8c\x06system\x93.",
    "huge memo index": b"\x80\x02]r\xff\xff\xff\xff.",
    "huge string": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.",
    "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1.",
    "no end": b"\x80\x02}",
    "empty": b"",
    "empty stack": b"\x80\x02a.",
    "no mark": b"\x80\x02u.",
    "reduce of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "call without arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "call with a number": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01R.",
    "ordered dict with arguments": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "storage of nothing": b"\x80\x02NQ.",
    "class instance": b"\x80\x02(cos\nsystem\no.",
    "instance by name": b"(S'true'\nios\nsystem\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "buffer": b"\x80\x05\x97.",
    "set state of a list": b"\x80\x02]}b.",
    "list": b"\x80\x02].",
    "unknown opcode": b"\x80\x02\xfe.",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_pickles(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickled_tensors(content)
    _archive(tmp_path / "model.pth", content)
    assert refusal(tmp_path / "model.pth")


def _tensor_pickle(
    *,
    offset: object = 0,
    size: object = (4, 4),
    stride: object = (4, 1),
    num_items: object = 16,
    key: object = "0",
    storage: str = "FloatStorage",
) -> bytes:
    """A dictionary with one tensor, with any numbers in it, as torch.save would write it."""

    def item(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without PROTO and STOP

    persistent_id = (
        b"(" + item("storage") + f"ctorch\n{storage}\n".encode() + item(key) + item("cpu")
    )
    persistent_id += item(num_items) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent_id
    call += item(offset) + item(size) + item(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}" + item("emb.weight") + call + b"s."


def test_the_pickle_builder_of_these_tests_is_right(tmp_path: Path) -> None:
    _archive(
        tmp_path / "model.pth",
        _tensor_pickle(),
        {"data/0": struct.pack("<16f", *range(16)), "byteorder": b"little"},
    )
    with closing(PthCheckpoint(tmp_path / "model.pth")) as checkpoint:
        assert torch.equal(checkpoint.read("emb.weight"), torch.arange(16.0).view(4, 4))


HOSTILE_TENSORS = {
    "huge": {"size": (1 << 40, 1 << 40), "stride": (1 << 40, 1)},
    "beyond 64 bits": {"size": (1 << 70,), "stride": (1,)},
    "one number repeated": {"size": (1 << 40,), "stride": (0,)},
    "negative size": {"size": (-4, 4)},
    "two negative sizes": {"size": (-4, -4)},
    "negative stride": {"stride": (-4, 1)},
    "strides beyond the end": {"stride": (5, 1)},
    "huge stride": {"stride": (1 << 62, 1)},
    "offset beyond the end": {"offset": 1},
    "negative offset": {"offset": -1},
    "fewer strides": {"stride": (1,)},
    "float size": {"size": (4.0, 4.0)},
    "size no tuple": {"size": 16},
    "no record": {"key": "1"},
    "record outside": {"key": "../../../etc/passwd"},
    "many dimensions": {"size": (1,) * 60, "stride": (1,) * 60},
    "doubles": {"storage": "DoubleStorage", "size": (2, 4)},
    "unknown storage": {"storage": "EvilStorage"},
    "storage that is a function": {"storage": "load"},
}


@pytest.mark.parametrize("values", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_tensors_that_do_not_fit_their_storage(tmp_path: Path, values: dict[str, Any]) -> None:
    _archive(tmp_path / "model.pth", _tensor_pickle(**values))
    assert refusal(tmp_path / "model.pth")


def test_hostile_archives(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    good = _tensor_pickle()

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # 64 MB in 64 kB
        archive.writestr("model/data.pkl", good)
        archive.writestr("model/data/0", bytes(64 << 20))
    assert "compressed" in refusal(path)

    _archive(path, good, {"data/0": bytes(64), "byteorder": b"big"})
    assert "big-endian" in refusal(path)

    _archive(path, bytes((16 << 20) + 1))
    assert "pickle of 16777217 bytes" in refusal(path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    assert "none that torch.save wrote" in refusal(path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, about two files of one name
        _archive(path, good, {"data/0": bytes(64), "data.pkl": good})
    assert "none that torch.save wrote" in refusal(path)

    # An end of the list that claims a list of 100 MB, in a file that has them (as a hole).
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(100 << 20)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 90 << 20, 10 << 20, 0))
    assert "too many records" in refusal(path)


def test_truncation_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_pth(path, random_tensors(TINY))
    content = path.read_bytes()
    for size in (4, 100, len(content) // 2, len(content) - 1000, len(content) - 1):
        path.write_bytes(content[:size])
        assert "truncated" in refusal(path)


def test_a_tuned_state_and_a_bare_tensor_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({f"blocks.{i}.att.time_state": torch.zeros(4, 16, 16) for i in range(3)}, path)
    assert "tuned initial state" in refusal(path)
    torch.save(torch.ones(3), path)
    assert "dictionary" in refusal(path)
    torch.save({"epoch": 1}, path)
    assert "no tensors" in refusal(path)
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refusal(path)

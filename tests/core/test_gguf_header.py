"""Every rule of the container that a file can break ends in one line that names the file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from rwkv_core.checkpoint.gguf import GGUFCheckpoint
from rwkv_core.checkpoint.gguf_file import GGUFFile
from rwkv_core.errors import CheckpointError
from tests.tools.gguf_files import array, gguf_bytes, key, string, tensor, text_key, uint_key

U64 = struct.Struct("<Q").pack
HUGE = 1 << 62
RWKV7 = text_key("general.architecture", "rwkv7")


def nested(depth: int) -> bytes:
    """The value of a key that holds `depth` arrays inside each other."""
    value = array(0, 0, b"")
    for _ in range(depth - 1):
        value = array(9, 1, value)
    return value


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "short": (b"GG", "is no GGUF file"),
    "other magic": (b"GGML" + bytes(60), "is no GGUF file"),
    "only magic": (b"GGUF", "it ends inside the header"),
    "version 1": (gguf_bytes(version=1), "is GGUF version 1; Anser reads versions 2 and 3"),
    "version 4": (gguf_bytes(version=4), "is GGUF version 4"),
    "version 0": (gguf_bytes(version=0), "is GGUF version 0"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "no counts": (gguf_bytes()[:12], "it ends inside the tensor count"),
    "many tensors": (gguf_bytes(num_tensors=HUGE), f"the tensor count is {HUGE}"),
    "many keys": (gguf_bytes(num_keys=HUGE), f"the metadata count is {HUGE}"),
    "more tensors than bytes": (gguf_bytes(num_tensors=60_000), "it ends inside the tensor count"),
    "more keys than bytes": (gguf_bytes(num_keys=60_000), "it ends inside the metadata count"),
    "missing key": (gguf_bytes([RWKV7], num_keys=2), "it ends inside metadata key 1"),
    "long key": (gguf_bytes([U64(HUGE) + bytes(60)]), f"metadata key 0 is {HUGE} bytes long"),
    "empty key": (gguf_bytes([uint_key("", 1)]), "metadata key 0 is 0 bytes long"),
    "key past the end": (gguf_bytes([U64(500) + bytes(60)]), "it ends inside metadata key 0"),
    "key no UTF-8": (gguf_bytes([key(b"\xff\xfe", 4, bytes(4))]), "metadata key 0 is not UTF-8"),
    "key twice": (gguf_bytes([RWKV7, RWKV7]), "'general.architecture' comes twice"),
    "value type": (gguf_bytes([key("a", 13, bytes(8))]), "'a' has the unknown type 13"),
    "no value": (gguf_bytes([key("a", 12, bytes(7))]), "it ends inside the metadata 'a'"),
    "long text": (gguf_bytes([key("a", 8, U64(HUGE))]), "it ends inside the metadata 'a'"),
    "text no UTF-8": (gguf_bytes([key("a", 8, string(b"\xc3"))]), "'a' is not UTF-8"),
    "long array": (gguf_bytes([key("a", 9, array(0, HUGE, b""))]), "too many for a model"),
    "array past the end": (gguf_bytes([key("a", 9, array(12, 9, bytes(64)))]), "it ends inside"),
    "texts past the end": (gguf_bytes([key("a", 9, array(8, 9, bytes(71)))]), "it ends inside"),
    "text in array past the end": (
        gguf_bytes([key("a", 9, array(8, 2, string("b") + U64(HUGE) + bytes(9)))]),
        "it ends inside the metadata 'a'",
    ),
    "text in array no UTF-8": (gguf_bytes([key("a", 9, array(8, 1, string(b"\xff")))]), "UTF-8"),
    "arrays past the end": (gguf_bytes([key("a", 9, array(9, 9, bytes(99)))]), "it ends inside"),
    "element type": (gguf_bytes([key("a", 9, array(77, 1, bytes(9)))]), "the unknown type 77"),
    "deep arrays": (gguf_bytes([key("a", 9, nested(4))]), "nests arrays more than 3 deep"),
    "very deep arrays": (gguf_bytes([key("a", 9, nested(5000))]), "nests arrays more than 3 deep"),
    "alignment 0": (gguf_bytes([uint_key("general.alignment", 0)]), "is '0', no power of two"),
    "alignment 24": (gguf_bytes([uint_key("general.alignment", 24)]), "is '24', no power of two"),
    "alignment text": (gguf_bytes([text_key("general.alignment", "32")]), "no power of two"),
    "missing tensor": (gguf_bytes([], [tensor("a", [8])], num_tensors=2), "it ends inside"),
    "no tensor name": (gguf_bytes([], [tensor("", [8])], bytes(32)), "a name of 0 bytes"),
    "long tensor name": (gguf_bytes([], [tensor("a" * 64, [8])], bytes(32)), "a name of 64 bytes"),
    "no dimensions": (gguf_bytes([], [tensor("a", [])], bytes(32)), "'a' has 0 dimensions"),
    "5 dimensions": (gguf_bytes([], [tensor("a", [1] * 5)], bytes(32)), "'a' has 5 dimensions"),
    "no values": (gguf_bytes([], [tensor("a", [4, 0])], bytes(32)), "the impossible shape [0, 4]"),
    "too many values": (gguf_bytes([], [tensor("a", [HUGE] * 4)], bytes(32)), "impossible shape"),
    "unknown type": (gguf_bytes([], [tensor("a", [8], 99)], bytes(32)), "has the type number 99"),
    "other type": (gguf_bytes([], [tensor("a", [256], 10)], bytes(84)), "has the type Q2_K, which"),
    "half a block": (gguf_bytes([], [tensor("a", [48], 8)], bytes(64)), "no whole Q8_0 blocks"),
    "unaligned": (gguf_bytes([], [tensor("a", [2], 0, 4)], bytes(64)), "no multiple of"),
    "past the end": (gguf_bytes([], [tensor("a", [9])], bytes(35)), "at byte 100, the file at 99"),
    "no data": (gguf_bytes([], [tensor("a", [9])]), "the file at 57; copy or download it again"),
    "far offset": (gguf_bytes([], [tensor("a", [8], 0, HUGE)], bytes(32)), "ends at byte"),
    "tensor twice": (gguf_bytes([], [tensor("a", [8])] * 2, bytes(64)), "'a' comes twice"),
    "overlap": (
        gguf_bytes([], [tensor("a", [9], 0, 32), tensor("b", [16], 0, 0)], bytes(99)),
        "the tensors 'b' and 'a' overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_in_one_line(case: str, tmp_path: Path) -> None:
    content, problem = DAMAGED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        GGUFFile(path)
    assert problem in caught.value.problem
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(caught.value.problem) < 250


FOREIGN: dict[str, tuple[list[bytes], str]] = {
    "llama": (
        [text_key("general.architecture", "llama")],
        "holds a llama model; Anser runs RWKV-7",
    ),
    "rwkv6": ([text_key("general.architecture", "rwkv6")], "holds an RWKV-6 model (rwkv6)"),
    "qrwkv": ([text_key("general.architecture", "rwkv6qwen2")], "an RWKV-6 hybrid (QRWKV)"),
    "arwkv": ([text_key("general.architecture", "arwkv7")], "holds an RWKV-7 hybrid (ARWKV) model"),
    "nothing": ([], "does not say what model it holds"),
    "a number": ([uint_key("general.architecture", 7)], "does not say what model it holds"),
    "lines": ([text_key("general.architecture", "a\nb")], "holds a a\\nb model"),
    "adapter": ([RWKV7, text_key("general.type", "adapter")], "'adapter' (general.type)"),
    "a part": ([RWKV7, key("split.count", 2, b"\3\0")], "is one of 3 parts of a model; join them"),
    "no head size": ([RWKV7], "has no usable rwkv7.wkv.head_size"),
    "head size 0": ([RWKV7, uint_key("rwkv7.wkv.head_size", 0)], "no usable rwkv7.wkv.head_size"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_other_models_are_named(case: str, tmp_path: Path) -> None:
    keys, problem = FOREIGN[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(keys))
    with pytest.raises(CheckpointError) as caught:
        GGUFCheckpoint(path)
    assert problem in caught.value.problem
    assert "\n" not in str(caught.value)


def test_another_architecture_is_named_before_its_unknown_tensor_types(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    llama = text_key("general.architecture", "llama")
    path.write_bytes(gguf_bytes([llama], [tensor("a", [256], 99)], bytes(64)))
    with pytest.raises(CheckpointError, match="holds a llama model"):
        GGUFCheckpoint(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.gguf: cannot be read: No such file"):
        GGUFFile(tmp_path / "missing.gguf")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        GGUFFile(tmp_path)


@pytest.mark.parametrize("kind", [0, 8, 9])
def test_a_hostile_array_in_a_large_file_allocates_nothing(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([key("a", 9, array(kind, 1 << 30, b""))]))
    with path.open("r+b") as file:
        file.truncate(64 << 30)  # sparse: the count fits the size of the file
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="too many for a model"):
        GGUFFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_hostile_text_in_a_large_file_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([key("a", 8, U64(32 << 30))]))
    with path.open("r+b") as file:
        file.truncate(64 << 30)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="the header is larger than 256 MB, at the metadata"):
        GGUFFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_version_2_and_a_custom_alignment_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    keys = [uint_key("general.alignment", 128)]
    tensors = [tensor("a", [2], 0, 0), tensor("b", [1], 0, 128)]
    data = struct.pack("<2f", 1, 2) + bytes(120) + struct.pack("<f", 3)
    path.write_bytes(gguf_bytes(keys, tensors, data, version=2, alignment=128))
    file = GGUFFile(path)
    assert file.version == 2
    assert [file.raw(name).tobytes() for name in "ab"] == [data[:8], data[128:]]
    file.close()

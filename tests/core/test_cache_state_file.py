"""States as files: to the bit, or refused."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from rwkv_core.cache import ModelKey, Snapshot, SnapshotKind, as_tokens, load_state, save_state
from rwkv_core.cache.state_file import (
    decode_state,
    encode_state,
    load_state_file,
    read_head,
    read_tokens,
)
from rwkv_core.config import ModelConfig
from rwkv_core.errors import StateFileError
from rwkv_core.state import State
from tests.tools.random_checkpoint import TINY
from tests.tools.snapshots import KEY, equal, snapshot_of
from tests.tools.states import parts

TOKENS = [7, 0, 299, 5]

# Every file is of these sizes, so that a test may try all of its bytes.
SMALL = ModelConfig(
    n_layer=1,
    n_embd=8,
    head_size=4,
    vocab_size=300,
    n_ffn=8,
    decay_rank=1,
    iclr_rank=1,
    value_rank=1,
    gate_rank=1,
)


@pytest.fixture(scope="module")
def data() -> bytes:
    return save_state(KEY, TOKENS, snapshot_of(TOKENS, SMALL))


def load(data: bytes) -> Snapshot:
    tokens, snapshot = load_state(data, KEY, SMALL)
    assert tokens.tolist() == TOKENS
    return snapshot


def edited(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with another header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def test_a_state_comes_back_to_the_bit(data: bytes) -> None:
    assert equal(load(data), snapshot_of(TOKENS, SMALL))


def test_bits_that_no_arithmetic_would_keep() -> None:
    bits = torch.tensor([0, 1, -1, 1 << 31, 0x7F800001, 0x7FC00000, 0x00400000, 0x7F800000])
    odd = bits.to(torch.int32).view(torch.float32)  # -0, NaN with a payload, denormal, infinity
    snapshot = snapshot_of(TOKENS, SMALL)
    for part in (*parts(snapshot.state), snapshot.logits):
        part.view(-1)[: len(odd)] = odd
    encoded = encode_state(KEY, as_tokens(TOKENS), snapshot, SnapshotKind.TURN)
    data = b"".join(encoded.parts)
    assert len(data) == encoded.num_bytes
    again = decode_state(BytesIO(data), len(data)).snapshot
    for one, other in zip(
        (*parts(snapshot.state), snapshot.logits),
        (*parts(again.state), again.logits),
        strict=True,
    ):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_any_reader_of_safetensors_reads_it(data: bytes, tmp_path: Any) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(data)
    tensors = safetensors.torch.load_file(path)
    snapshot = snapshot_of(TOKENS, SMALL)
    assert tensors.pop("tokens").tolist() == TOKENS
    assert torch.equal(tensors.pop("logits"), snapshot.logits)
    assert torch.equal(tensors.pop("wkv"), snapshot.state.wkv)
    assert torch.equal(tensors.pop("time_shift"), snapshot.state.time_shift)
    assert torch.equal(tensors.pop("channel_shift"), snapshot.state.channel_shift)
    assert not tensors
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["model"] == KEY.model


def test_the_head_and_the_tokens_can_be_read_alone() -> None:
    snapshot = snapshot_of(TOKENS, SMALL)
    encoded = encode_state(KEY, as_tokens(TOKENS), snapshot, SnapshotKind.PROMPT_END)
    source = BytesIO(b"".join(encoded.parts))
    head = read_head(source, encoded.num_bytes)
    assert (head.key, head.kind, head.num_tokens, head.checksum) == (
        KEY,
        SnapshotKind.PROMPT_END,
        4,
        encoded.checksum,
    )
    assert read_tokens(source, head).tolist() == TOKENS


@pytest.mark.parametrize("note", [b"x", bytes(range(256)) * 300])
def test_a_note_comes_back(note: bytes, tmp_path: Any) -> None:
    kind = SnapshotKind.TURN
    encoded = encode_state(KEY, as_tokens(TOKENS), snapshot_of(TOKENS, SMALL), kind, note)
    data = b"".join(encoded.parts)
    assert load_state_file(BytesIO(data), len(data), KEY, SMALL).note == note
    assert equal(load(data), snapshot_of(TOKENS, SMALL))
    head = read_head(BytesIO(data), len(data))
    assert head.num_note_bytes == len(note)
    assert data.endswith(note)
    path = tmp_path / "state.safetensors"
    path.write_bytes(data)
    assert safetensors.torch.load_file(path)["note"].numpy().tobytes() == note
    for place in (-1, -len(note)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(StateFileError, match="checksum"):
            load(bytes(damaged))
    with pytest.raises(StateFileError):
        load(data[:-1])
    with pytest.raises(StateFileError, match="entry for note"):
        load(edited(data, lambda header: header["note"].update(shape=[0])))


def test_every_changed_byte_is_noticed(data: bytes) -> None:
    expected = snapshot_of(TOKENS, SMALL)
    rng = random.Random(0)
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    # Blanks at the end of the header may become others: they say nothing.
    for place in {*range(header_bytes), *rng.sample(range(len(data)), 300)}:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        try:
            snapshot = load(bytes(damaged))
        except StateFileError:
            continue
        assert equal(snapshot, expected)
        assert header_bytes - 8 <= place < header_bytes


def test_every_truncation_is_noticed(data: bytes) -> None:
    for length in [*range(0, len(data), 7), len(data) - 1]:
        with pytest.raises(StateFileError):
            load(data[:length])
    with pytest.raises(StateFileError):
        load(data + b"\0")


def test_random_bytes_are_no_state() -> None:
    rng = random.Random(1)
    for _ in range(200):
        noise = rng.randbytes(rng.randrange(200))
        with pytest.raises(StateFileError):
            load(noise)
        with pytest.raises(StateFileError):
            load(len(noise).to_bytes(8, "little") + noise)


def shapes(name: str, shape: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(shape=shape)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.pop("wkv"),
        lambda header: header.pop("__metadata__"),
        lambda header: header.update(extra=header["wkv"]),
        lambda header: header["wkv"].update(dtype="F16"),
        lambda header: header["wkv"].update(data_offsets=[0, 4]),
        lambda header: header.update(time_shift=header["wkv"]),
        lambda header: header["__metadata__"].pop("checksum"),
        lambda header: header["__metadata__"].update(checksum="0" * 64),
        lambda header: header["__metadata__"].update(checksum=1),
        lambda header: header["__metadata__"].update(format="pt"),
        lambda header: header["__metadata__"].update(version="2"),
        lambda header: header["__metadata__"].update(kind=["TURN"]),
        lambda header: header["__metadata__"].update(kind="OTHER"),
        lambda header: header["__metadata__"].update(model=None),
        lambda header: header["__metadata__"].update(model="../../etc"),
        shapes("tokens", [0]),
        shapes("tokens", [4.0]),
        shapes("tokens", [True]),
        shapes("tokens", 4),
        shapes("tokens", [1 << 62]),
        shapes("wkv", [10**30, 1, 2, 4, 4]),
        shapes("wkv", [1, 1, 2, 4]),
        shapes("wkv", [1, 2, 1, 4, 4]),
        shapes("time_shift", [1, -1, 8]),
    ],
)
def test_other_headers_are_refused(data: bytes, edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(StateFileError, match=r"^the saved state "):
        load(edited(data, edit))


def test_a_header_written_in_another_way_is_read(data: bytes) -> None:
    def reverse(header: dict[str, Any]) -> None:
        items = list(header.items())
        header.clear()
        header.update(reversed(items))

    assert equal(load(edited(data, reverse)), snapshot_of(TOKENS, SMALL))


@pytest.mark.parametrize("header", ["[]", "1", "{", "[" * 10_000, '{"a": ' + "9" * 9000 + "}"])
def test_headers_that_are_none(header: str) -> None:
    text = header.encode()
    with pytest.raises(StateFileError):
        load(len(text).to_bytes(8, "little") + text)


def test_another_model_is_refused(data: bytes) -> None:
    with pytest.raises(StateFileError, match="of another model, tokenizer or initial state"):
        load_state(data, replace(KEY, model="c" * 64), SMALL)


def test_other_numerics_are_refused_unless_they_will_do(data: bytes) -> None:
    here = replace(KEY, numerics="c" * 64)
    with pytest.raises(StateFileError, match="rounds in another way"):
        load_state(data, here, SMALL)
    _, snapshot = load_state(data, here, SMALL, exact=False)
    assert equal(snapshot, snapshot_of(TOKENS, SMALL))
    with pytest.raises(StateFileError, match="another model"):
        load_state(data, ModelKey("c" * 64, "c" * 64), SMALL, exact=False)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(SMALL, vocab_size=301),
        replace(SMALL, n_layer=2),
        replace(SMALL, n_embd=12),
        replace(SMALL, head_size=2),
    ],
)
def test_other_sizes_are_refused(data: bytes, config: ModelConfig) -> None:
    with pytest.raises(StateFileError, match=r"has .* of shape"):
        load_state(data, KEY, config)


@pytest.mark.parametrize("token", [-1, 300])
def test_tokens_outside_the_vocabulary_are_refused(token: int) -> None:
    data = save_state(KEY, [1, token], snapshot_of(TOKENS, SMALL))
    with pytest.raises(StateFileError, match="vocabulary"):
        load_state(data, KEY, SMALL)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", range(4))
def test_values_that_are_not_finite_are_refused(index: int, value: float) -> None:
    snapshot = snapshot_of(TOKENS, SMALL)
    (*parts(snapshot.state), snapshot.logits)[index].view(-1)[-1] = value
    with pytest.raises(StateFileError, match="not finite"):
        load(save_state(KEY, TOKENS, snapshot))


def test_a_snapshot_is_whole_float32_on_the_cpu() -> None:
    batch = State.cat([snapshot_of([index]).state for index in range(3)])
    logits = torch.randn(3, TINY.vocab_size)
    view = batch.split()[1]
    with pytest.raises(ValueError, match="memory of its own"):
        Snapshot(view, logits[1].clone())
    with pytest.raises(ValueError, match="memory of its own"):
        Snapshot(view.clone(), logits[1])
    with pytest.raises(ValueError, match="float32"):
        Snapshot(snapshot_of([1]).state, logits[1].double())
    with pytest.raises(ValueError, match="one sequence"):
        Snapshot(batch, logits[1].clone())
    with pytest.raises(ValueError, match="one sequence"):
        Snapshot(snapshot_of([1]).state, logits)
    copy = Snapshot.of(view, logits[1])
    assert copy.nbytes == snapshot_of([1]).nbytes
    assert equal(Snapshot(snapshot_of([1]).state, logits[1].clone()), copy)
    batch.wkv.zero_()
    logits.zero_()
    assert equal(Snapshot.of(snapshot_of([1]).state, copy.logits), copy)


def test_a_file_of_read_only_tokens(data: bytes) -> None:
    tokens = np.array(TOKENS, np.int32)
    tokens.flags.writeable = False
    assert save_state(KEY, tokens, snapshot_of(TOKENS, SMALL)) == data


def test_snapshots_made_in_inference_mode() -> None:
    with torch.inference_mode():
        snapshot = Snapshot.of(snapshot_of(TOKENS, SMALL).state, torch.ones(300))
        data = save_state(KEY, TOKENS, snapshot)
        again = load(data)
    assert re.match(rb".{8}\{", data, re.DOTALL)
    assert equal(again, snapshot)
    copy = again.state.clone()
    copy.wkv.add_(1)

"""Cutting a blob into parts, and going on with them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.registry.errors import RegistryError
from server.registry.limits import Limits
from server.registry.partial_file import PartialFile, remove_stale_partials
from server.registry.parts import Part, is_cover, plan_parts
from server.store.store import Store
from tests.tools.registry import digest_of

# Small ones, so that a few bytes make many parts.
SMALL = Limits(num_parallel=4, min_part=3, max_part=8)


def opened(store: Store, digest: str, size: int) -> PartialFile:
    partial = PartialFile(store, digest, size, SMALL)
    try:
        partial.open()
    except BaseException:
        partial.close()
        raise
    return partial


@given(size=st.integers(0, 1 << 45))
def test_parts_make_up_the_blob_exactly_once(size: int) -> None:
    limits = Limits()
    parts = plan_parts(size, limits.part_size(size))
    assert is_cover(parts, size)
    assert all(part.size <= limits.max_part and not part.is_done for part in parts)
    # A blob that is not huge needs no more requests than may run at once.
    if size <= limits.num_parallel * limits.max_part:
        assert len(parts) <= limits.num_parallel


@given(
    parts=st.lists(
        st.builds(Part, st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=4
    ),
    size=st.integers(0, 20),
)
def test_a_cover_has_every_byte_once(parts: list[Part], size: int) -> None:
    bytes_of_parts = [byte for part in parts for byte in range(part.offset, part.end)]
    if is_cover(parts, size):
        assert bytes_of_parts == list(range(size))
    else:
        is_numbered = [part.number for part in parts] == list(range(len(parts)))
        has_empty = any(part.size == 0 for part in parts)
        assert bytes_of_parts != list(range(size)) or not is_numbered or has_empty


@given(part=st.builds(Part, st.integers(0, 99), st.integers(0), st.integers(9), st.integers(0, 9)))
def test_a_note_says_what_was_noted(part: Part) -> None:
    assert Part.from_json(part.to_json()) == part


@pytest.mark.parametrize(
    "note",
    [
        b"", b"{}", b"[]", b"null", b'"a"', b"{", b"\xff", b"[" * 100_000,
        b'{"N":0,"Offset":0,"Size":1}',
        b'{"N":0,"Offset":0,"Size":1,"Completed":2}',
        b'{"N":0,"Offset":-1,"Size":1,"Completed":0}',
        b'{"N":0,"Offset":true,"Size":1,"Completed":0}',
        b'{"N":0,"Offset":0.5,"Size":1,"Completed":0}',
        b'{"N":"0","Offset":0,"Size":1,"Completed":0}',
    ],
)  # fmt: skip
def test_a_note_that_is_none(note: bytes) -> None:
    assert Part.from_json(note) is None


@settings(max_examples=50, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=60),
    steps=st.lists(st.tuples(st.integers(0, 19), st.integers(1, 9)), max_size=30),
    reopened_after=st.sets(st.integers(0, 29)),
)
def test_no_byte_is_asked_for_twice_and_none_is_left_out(
    data: bytes, steps: list[tuple[int, int]], reopened_after: set[int]
) -> None:
    """Parts grow in any order, and the process may end between any two writes."""
    fetched = [0] * len(data)
    with tempfile.TemporaryDirectory() as folder:
        store, digest = Store(Path(folder)), digest_of(data)

        def fetch(partial: PartialFile, part: Part, count: int) -> None:
            end = min(part.start + count, part.end)
            for byte in range(part.start, end):
                fetched[byte] += 1
            partial.write(part, data[part.start : end])

        partial = opened(store, digest, len(data))
        for number, (choice, count) in enumerate(steps):
            if number in reopened_after:
                before = partial.completed
                partial.close()
                partial = opened(store, digest, len(data))
                assert partial.completed == before
            part = partial.parts[choice % len(partial.parts)]
            if not part.is_done:
                fetch(partial, part, count)
        for part in partial.parts:
            fetch(partial, part, part.size)
        assert fetched == [1] * len(data)
        assert store.adopt(partial.path, expected_digest=digest).digest == digest
        partial.remove_notes()
        partial.close()
        assert [path.name for path in (store.root / "blobs").iterdir()] == [
            store.blob_path(digest).name
        ]


def begun(store: Store, data: bytes) -> PartialFile:
    partial = opened(store, digest_of(data), len(data))
    partial.write(partial.parts[0], data[:2])
    partial.write(partial.parts[1], data[partial.parts[1].start :][:1])
    return partial


def test_notes_are_ollamas(tmp_path: Path) -> None:
    data = bytes(range(12))
    partial = begun(Store(tmp_path), data)
    partial.close()
    note = partial.path.with_name(f"{partial.path.name}-1").read_text()
    assert note == '{"N": 1, "Offset": 3, "Size": 3, "Completed": 1}'
    assert partial.path.stat().st_size == len(data)


@pytest.mark.parametrize("damage", ["no note", "bad note", "too many notes", "size", "no data"])
def test_what_cannot_be_trusted_is_begun_anew(tmp_path: Path, damage: str) -> None:
    store, data = Store(tmp_path), bytes(range(12))
    partial = begun(store, data)
    partial.close()
    path = partial.path
    if damage == "no note":
        path.with_name(f"{path.name}-1").unlink()
    elif damage == "bad note":
        path.with_name(f"{path.name}-1").write_text("{")
    elif damage == "too many notes":
        path.with_name(f"{path.name}-4").write_bytes(Part(4, 12, 3).to_json())
    elif damage == "size":
        path.write_bytes(data + b"more")
    else:
        path.unlink()
    partial = opened(store, digest_of(data), len(data))
    assert partial.completed == 0
    assert not partial.was_begun
    assert is_cover(partial.parts, len(data))
    assert path.stat().st_size == len(data)
    assert len(list(path.parent.glob(f"{path.name}-*"))) == len(partial.parts)
    partial.close()


def test_only_one_has_the_file(tmp_path: Path) -> None:
    store, data = Store(tmp_path), bytes(range(12))
    partial = begun(store, data)
    with pytest.raises(RegistryError, match="another process is downloading sha256:"):
        opened(store, digest_of(data), len(data))
    partial.close()
    opened(store, digest_of(data), len(data)).close()


def test_old_downloads_are_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = begun(store, bytes(12)), begun(store, bytes(13))
    old.close()
    new.close()
    os.utime(old.path, (1.0, 1.0))
    remove_stale_partials(store)
    left = [path.name for path in (tmp_path / "blobs").iterdir()]
    assert left
    assert all(name.startswith(new.path.name) for name in left)

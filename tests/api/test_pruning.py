"""Deleting blobs that no manifest names: what goes, what stays, and who waits for whom."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server.settings import Settings
from server.store.manifests import Layer
from server.store.names import ModelName
from server.store.pruning import remove_forgotten_blobs, remove_unused_blobs, replace_manifest
from server.store.store import Blob, Store, StoreError
from tests.tools.anser_command import REPOSITORY
from tests.tools.running_server import running
from tests.tools.waiting import wait_until

ONE, TWO = ModelName.parse("one"), ModelName.parse("two")
# Another process that keeps the store locked until its standard input ends.
_HOLDER = """\
import sys
from pathlib import Path
from server.store.store import Store
with Store(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def add(store: Store, *texts: str) -> list[Blob]:
    return [store.add_blob(text.encode()) for text in texts]


def register(store: Store, name: ModelName, config: Blob, *blobs: Blob) -> None:
    layers = tuple(each.as_layer("text") for each in blobs)
    replace_manifest(store, name, config.as_layer("config"), layers)


def has(store: Store, *blobs: Blob) -> list[bool]:
    return [store.has_blob(each.digest) for each in blobs]


def test_only_what_no_manifest_names_goes(store: Store) -> None:
    config, shared, own, free, kept = add(store, "config", "shared", "own", "free", "kept")
    register(store, ONE, config, shared, own)
    register(store, TWO, config, shared)
    store.remove_manifest(ONE)
    remove_unused_blobs(store, [each.digest for each in (config, shared, own, free)] + ["nonsense"])
    assert has(store, config, shared, own, free, kept) == [True, True, False, False, True]


def test_what_is_replaced_goes(store: Store) -> None:
    config, old, new = add(store, "config", "old", "new")
    register(store, ONE, config, old)
    register(store, ModelName.parse("ONE"), config, new)
    assert has(store, config, old, new) == [True, False, True]


def test_a_damaged_manifest_still_names_its_blobs(store: Store) -> None:
    config, text = add(store, "config", "text")
    register(store, ONE, config, text)
    path = store.manifest_path(ONE)
    path.write_bytes(path.read_bytes()[:-1])
    deep = path.parents[3] / "a" / "b" / "c" / "d" / "e" / "f"
    other = store.add_blob(b"other")
    deep.parent.mkdir(parents=True)
    deep.write_text(f"of a later version: {other.digest.replace(':', '-')}")
    remove_unused_blobs(store, [config.digest, text.digest, other.digest])
    assert has(store, config, text, other) == [True] * 3


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that breaks")
def test_nothing_goes_where_a_manifest_cannot_be_read(store: Store) -> None:
    config, text, free = add(store, "config", "text", "free")
    register(store, ONE, config, text)
    store.manifest_path(TWO).parent.mkdir()
    store.manifest_path(TWO).symlink_to("/proc/self/mem")  # reading its beginning is an I/O error
    remove_unused_blobs(store, [free.digest])
    assert has(store, config, text, free) == [True] * 3


def test_a_manifest_is_not_written_without_its_blobs(store: Store) -> None:
    config, text = add(store, "config", "text")
    remove_unused_blobs(store, [text.digest])
    with pytest.raises(StoreError, match="was deleted meanwhile; try again"):
        register(store, ONE, config, text)
    assert list(store.names()) == []


def test_at_the_start_old_blobs_go_and_downloads_stay(store: Store) -> None:
    config, text, old, new = add(store, "config", "text", "old", "new")
    register(store, ONE, config, text)
    folder = store.root / "blobs"
    partial = folder / f"sha256-{'a' * 64}-partial"
    parts = [partial, partial.with_name(partial.name + "-0"), folder / "note.txt"]
    for path in parts:
        path.touch()
    long_ago = time.time() - 2 * 3600
    for path in folder.iterdir():
        if path != store.blob_path(new.digest):
            os.utime(path, (long_ago, long_ago))
    remove_forgotten_blobs(store)
    assert has(store, config, text, old, new) == [True, True, False, True]
    assert all(path.exists() for path in parts)


def test_nothing_goes_while_a_download_grows(store: Store) -> None:
    (old,) = add(store, "old")
    os.utime(store.blob_path(old.digest), (0, 0))
    partial = store.root / "blobs" / f"sha256-{'a' * 64}-partial"
    partial.touch()
    remove_forgotten_blobs(store)
    assert has(store, old) == [True]
    os.utime(partial, (0, 0))
    remove_forgotten_blobs(store)
    assert (has(store, old), partial.exists()) == ([False], True)


@pytest.mark.parametrize("is_pruned", [True, False])
def test_the_server_does_it_unless_it_is_told_not_to(tmp_path: Path, is_pruned: bool) -> None:
    store = Store(tmp_path / "models")
    (old,) = add(store, "old")
    os.utime(store.blob_path(old.digest), (0, 0))
    settings = Settings(models=store.root, device="cpu", no_prune=not is_pruned)
    with running(settings):
        assert has(store, old) == [not is_pruned]


def test_the_variable() -> None:
    assert not Settings.from_environment({}).no_prune
    assert Settings.from_environment({"OLLAMA_NOPRUNE": "1"}).no_prune
    assert not Settings.from_environment({"OLLAMA_NOPRUNE": "false"}).no_prune


def test_a_store_that_is_not_there_is_left_alone(store: Store) -> None:
    remove_forgotten_blobs(store)
    remove_unused_blobs(store, [])
    assert not store.root.exists()


def test_another_process_waits_for_the_lock(store: Store) -> None:
    config, text = add(store, "config", "text")
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        deletes = threading.Thread(target=remove_unused_blobs, args=(store, [text.digest]))
        deletes.start()
        deletes.join(0.3)
        assert deletes.is_alive(), "it deleted while another had the lock"
        assert has(store, text) == [True]
        # What the other process does under its lock counts.
        other = Store(store.root)
        path = other.manifest_path(ONE)
        path.parent.mkdir(parents=True)
        path.write_text(text.digest)
    finally:
        holder.stdin.close()
        holder.wait(60)
        holder.stdout.close()
    deletes.join(60)
    assert not deletes.is_alive()
    assert has(store, config, text) == [True, True]


def test_the_lock_is_given_up_after_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.store._LOCK_TIMEOUT_S", 0.05)
    with Store(store.root).lock(), pytest.raises(StoreError, match="keeps it locked; try again"):
        remove_unused_blobs(store, ["sha256:" + "0" * 64])
    remove_unused_blobs(store, ["sha256:" + "0" * 64])


def test_file_systems_without_locks_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("server.store.store.fcntl.flock", no_lock)
    with caplog.at_level(logging.WARNING):
        config, text = add(store, "config", "text")
        register(store, ONE, config, text)
        remove_unused_blobs(store, [config.digest])
    assert has(store, config) == [True]
    assert not caplog.records


def test_creates_and_deletes_at_once_never_leave_a_model_without_its_blobs(store: Store) -> None:
    """Two stores, as two processes have them: one registers, one deletes, the same blobs."""
    problems: list[Exception] = []
    is_done = threading.Event()
    other = Store(store.root)

    def delete() -> None:
        while not is_done.is_set():
            try:
                with other.lock():
                    other.remove_manifest(ONE)
                    remove_unused_blobs(other, [config.digest, text.digest])
            except Exception as error:  # reported below
                problems.append(error)

    config, text = add(store, "config", "text")
    thread = threading.Thread(target=delete)
    thread.start()
    layers: tuple[Layer, ...] = (text.as_layer("text"),)
    refusals: list[str] = []
    for _ in range(60):
        try:
            store.add_blob(b"config")
            store.add_blob(b"text")
            store.write_manifest(ONE, config.as_layer("config"), layers)
        except StoreError as error:
            refusals.append(str(error))
        with store.lock():
            manifest = store.read_manifest(ONE)
            assert manifest is None or all(has(store, config, text))
    is_done.set()
    wait_until(lambda: not thread.is_alive())
    assert problems == []
    assert all("deleted meanwhile" in each for each in refusals)

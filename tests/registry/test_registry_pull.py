"""Pulls from a real little registry: good, slow, broken and lying."""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import itertools
import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rwkv_core.errors import AnserError
from server.registry.client import translated
from server.registry.errors import RegistryError, TemporaryError
from server.store.demo_model import DEMO_FILE, DEMO_NAME, ensure_demo_model
from server.store.names import ModelName
from server.store.store import Store, StoreError
from server.store.stored_model import open_model
from tests.tools.registry import DEMO_PATH as PATH
from tests.tools.registry import Registry, digest_of
from tests.tools.running_server import TIMEOUT_S, needs_demo
from tests.tools.transfers import QUICK, Json, Transfers, pull_once, run

pytestmark = needs_demo


def model_digest() -> str:
    return digest_of(DEMO_FILE.read_bytes())


def files(store: Store) -> list[str]:
    folder = store.root / "blobs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def assert_whole(store: Store, registry: Registry, name: str) -> None:
    """The model is there, byte for byte, and nothing else."""
    parsed = ModelName.parse(name)
    model = open_model(store, parsed)
    assert model is not None
    assert store.manifest_path(model.name).read_bytes() == registry.manifests[PATH]
    layers = (model.manifest.config, *model.manifest.layers)
    for layer in layers:
        assert store.blob_path(layer.digest).read_bytes() == registry.blobs[layer.digest]
    assert files(store) == sorted(store.blob_path(layer.digest).name for layer in layers)


def assert_nothing(store: Store) -> None:
    assert list(store.names()) == []
    assert files(store) == []


def statuses(objects: list[Json]) -> list[str]:
    """Each once, in their order."""
    return list(dict.fromkeys(each["status"] for each in objects))


def test_a_pull(store: Store, registry: Registry) -> None:
    name = f"{registry.host}/{PATH}"
    objects = pull_once(store, name)
    assert_whole(store, registry, name)
    manifest = json.loads(registry.manifests[PATH])
    layers = [manifest["config"], *manifest["layers"]]
    pulled = [f"pulling {layer['digest'][7:19]}" for layer in layers]
    assert statuses(objects) == [
        "pulling manifest", *pulled, "verifying sha256 digest", "writing manifest", "success",
    ]  # fmt: skip
    for layer in layers:
        seen = [each for each in objects if each.get("digest") == layer["digest"]]
        counts = [each.get("completed", 0) for each in seen]
        assert counts == sorted(counts)
        assert counts[-1] == layer["size"]
        assert {each["total"] for each in seen} == {layer["size"]}
    ranges = sorted(each.range or (0, 0) for each in registry.asked_for(model_digest()))
    assert len(ranges) == 4
    assert ranges[0][0] == 0
    assert ranges[-1][1] == DEMO_FILE.stat().st_size
    assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
    assert registry.seen[0].headers["user-agent"].startswith("ollama/")


def test_again_nothing_is_sent(store: Store, registry: Registry) -> None:
    name = f"{registry.host}/{PATH}"
    pull_once(store, name)
    sent, before = registry.num_sent, files(store)
    objects = pull_once(store, name.upper())
    # The name as it is stored counts, in any case that it is asked for.
    assert statuses(objects)[-1] == "success"
    assert "removing unused layers" not in statuses(objects)
    assert registry.num_sent == sent
    assert files(store) == before
    assert len(list(store.names())) == 1


def test_a_new_version_replaces_the_old_one(store: Store, registry: Registry) -> None:
    name = f"{registry.host}/{PATH}"
    pull_once(store, name)
    old = json.loads(registry.manifests[PATH])
    model = DEMO_FILE.read_bytes()
    registry.add_manifest(PATH, {"model_family": "rwkv7"}, model=model, system=b"Be brief.")
    registry.num_sent = 0
    objects = pull_once(store, name)
    assert statuses(objects)[-3:] == ["writing manifest", "removing unused layers", "success"]
    assert_whole(store, registry, name)
    assert not store.has_blob(old["config"]["digest"])
    assert registry.num_sent < 1000  # the weights were there


def test_what_another_model_has_stays(store: Store, registry: Registry) -> None:
    assert ensure_demo_model(store)
    name = f"{registry.host}/{PATH}"
    pull_once(store, name)
    registry.add_manifest(PATH, {"model_family": "rwkv7"}, model=DEMO_FILE.read_bytes())
    pull_once(store, name)
    assert open_model(store, DEMO_NAME) is not None


@pytest.mark.parametrize("key", [False, True])
def test_a_token_is_asked_for_and_goes_to_the_registry_only(
    store: Store, registry: Registry, storage: Registry, tmp_path: Path, key: bool
) -> None:
    registry.conduct.token = "open sesame"
    key_file, private = tmp_path / "id_ed25519", Ed25519PrivateKey.generate()
    if key:
        key_file.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
    pull_once(store, f"{registry.host}/{PATH}", key_file=key_file)
    assert_whole(store, registry, f"{registry.host}/{PATH}")
    (asked,) = [each for each in registry.seen if each.path.startswith("/token?")]
    query = re.fullmatch(
        r"/token\?nonce=[\w-]+&scope=repository%3Aany%2Fmodel%3Apull%2Cpush"
        r"&service=127.0.0.1%3A\d+&ts=\d+",
        asked.path,
    )
    assert query
    if key:
        public, _, signature = asked.headers["authorization"].partition(":")
        line = private.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        assert line.split()[1].decode() == public
        # SHA-256 of nothing in hexadecimal, in base64: as Ollama writes it.
        nothing = (
            "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5"
            "MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ=="
        )
        text = f"GET,{registry.url}{asked.path},{nothing}"
        private.public_key().verify(base64.b64decode(signature), text.encode())
    else:
        assert "authorization" not in asked.headers
    assert storage.seen
    assert all("authorization" not in each.headers for each in storage.seen)
    own = [each.headers.get("authorization") for each in registry.asked_for(model_digest())]
    assert own == ["Bearer open sesame"] * 4


def test_a_token_of_another_host_is_not_asked_for(
    store: Store, registry: Registry, storage: Registry
) -> None:
    registry.conduct.token = "open sesame"
    registry.conduct.realm = f"{storage.url}/token"
    with pytest.raises(RegistryError, match=r'realm host "127.*" does not match original host'):
        pull_once(store, f"{registry.host}/{PATH}")
    assert storage.seen == []


@pytest.mark.parametrize("challenge", [None, "Basic realm=x"])
def test_a_registry_that_does_not_let_us(
    store: Store, registry: Registry, challenge: str | None
) -> None:
    registry.conduct.token = "open sesame"
    registry.conduct.gives_wrong_token = True
    registry.conduct.challenge = challenge
    with pytest.raises(RegistryError) as caught:
        pull_once(store, f"{registry.host}/{PATH}")
    assert str(caught.value) == (
        "pull model manifest: unauthorized: access denied "
        f"({registry.host} answers 401: who are you?)"
    )
    assert len(registry.seen) == (3 if challenge is None else 1)


def test_a_broken_connection_is_taken_up_again(store: Store, registry: Registry) -> None:
    registry.conduct.break_after = 1 << 17
    registry.conduct.num_breaks = 7
    pull_once(store, f"{registry.host}/{PATH}")
    assert_whole(store, registry, f"{registry.host}/{PATH}")
    asked = registry.asked_for(model_digest())
    assert len(asked) >= 4 + 7
    # What arrived before a break is not sent again.
    num_bytes = sum(len(data) for data in registry.blobs.values())
    assert registry.num_sent <= num_bytes + 7 * (1 << 16)


def test_a_busy_registry_is_asked_again(store: Store, registry: Registry) -> None:
    registry.conduct.num_busy = 2
    pull_once(store, f"{registry.host}/{PATH}")
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_a_registry_that_stays_broken(store: Store, registry: Registry) -> None:
    registry.conduct.break_after = 0
    registry.conduct.num_breaks = 10**6
    with pytest.raises(TemporaryError, match=r"max retries exceeded: the connection to 127.*broke"):
        pull_once(store, f"{registry.host}/{PATH}")
    assert list(store.names()) == []


def test_a_stalled_connection_is_taken_up_again(store: Store, registry: Registry) -> None:
    registry.conduct.hold_after = 1 << 17
    limits = replace(QUICK, stall_s=0.5, num_attempts=1000)

    async def work(transfers: Transfers) -> None:
        async for each in transfers.pulling(f"{registry.host}/{PATH}"):
            num_asked = len(registry.asked_for(model_digest()))
            if each["status"].startswith("pulling") and num_asked > 5:
                registry.conduct.hold_after = None  # one has given up and asked again

    run(store, work, limits=limits)
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_a_registry_that_never_sends(store: Store, registry: Registry) -> None:
    registry.conduct.hold_after = 0
    limits = replace(QUICK, stall_s=0.1, num_attempts=2)
    with pytest.raises(TemporaryError, match="has stopped sending"):
        pull_once(store, f"{registry.host}/{PATH}", limits=limits)


def test_a_registry_without_ranges(store: Store, registry: Registry) -> None:
    registry.conduct.ignores_ranges = True
    registry.conduct.break_after = 1 << 21
    registry.conduct.num_breaks = 1
    pull_once(store, f"{registry.host}/{PATH}")
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_a_pull_cancelled_while_its_file_is_opened_lets_go_of_it(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, is_inside, may_go = fcntl.flock, threading.Event(), threading.Event()

    def lock(file: int, operation: int) -> None:
        is_inside.set()
        assert may_go.wait(TIMEOUT_S)
        flock(file, operation)

    monkeypatch.setattr("server.registry.partial_file.fcntl.flock", lock)

    async def work(transfers: Transfers) -> None:
        pulling = asyncio.create_task(transfers.pull(f"{registry.host}/{PATH}"))
        while not is_inside.is_set():
            await asyncio.sleep(0.001)
        pulling.cancel()
        await asyncio.sleep(0)  # the cancellation reaches the thread's waiter
        may_go.set()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        await transfers.pull(f"{registry.host}/{PATH}")

    run(store, work)
    assert_whole(store, registry, f"{registry.host}/{PATH}")


async def leave_in_the_middle(transfers: Transfers, registry: Registry) -> None:
    """Pulls until something of the weights has arrived, then goes away."""
    pulling = transfers.pulling(f"{registry.host}/{PATH}")
    async for each in pulling:
        if each.get("digest") == model_digest() and each.get("completed", 0) > 0:
            break
    await pulling.aclose()


def test_a_cancelled_pull_goes_on_where_it_was(store: Store, registry: Registry) -> None:
    registry.conduct.hold_after = 1 << 20

    async def twice(transfers: Transfers) -> int:
        await leave_in_the_middle(transfers, registry)
        partial = [name for name in files(store) if "-partial" in name]
        assert len(partial) == 1 + 4
        assert list(store.names()) == []
        registry.conduct.go.set()
        registry.conduct.hold_after = None
        registry.seen.clear()
        await transfers.pull(f"{registry.host}/{PATH}")
        asked = registry.asked_for(model_digest())
        return sum(each.range[1] - each.range[0] for each in asked if each.range)

    wanted = run(store, twice)
    assert_whole(store, registry, f"{registry.host}/{PATH}")
    assert wanted <= DEMO_FILE.stat().st_size - (1 << 18)


def test_two_pulls_share_one_download(store: Store, registry: Registry) -> None:
    """Of two names; one of them goes away in the middle, which the other does not notice."""
    registry.manifests["team/other:latest"] = registry.manifests[PATH]
    registry.conduct.hold_after = 1 << 20

    async def work(transfers: Transfers) -> list[Json]:
        staying = transfers.pulling(f"{registry.host}/team/other")
        objects = []
        async for each in staying:
            objects.append(each)
            if each.get("digest") == model_digest() and each.get("completed", 0) > 0:
                break
        await leave_in_the_middle(transfers, registry)
        registry.conduct.go.set()
        return objects + [each async for each in staying]

    objects = run(store, work)
    assert statuses(objects)[-1] == "success"
    assert len(registry.asked_for(model_digest())) == 4
    assert [str(name) for name in store.names()] == [f"{registry.host}/team/other:latest"]


def test_two_pulls_of_one_model_at_once(store: Store, registry: Registry) -> None:
    async def work(transfers: Transfers) -> list[list[Json]]:
        name = f"{registry.host}/{PATH}"
        return await asyncio.gather(*(transfers.pull(name) for _ in range(3)))

    for objects in run(store, work):
        assert statuses(objects)[-1] == "success"
        assert any(each.get("digest") == model_digest() for each in objects)
    assert_whole(store, registry, f"{registry.host}/{PATH}")
    assert len(registry.asked_for(model_digest())) == 4


def test_the_failure_of_one_registry_is_not_that_of_another(
    store: Store, registry: Registry, started: tuple[Registry, Registry]
) -> None:
    """Both have the same blob, and its download from the bad one was first."""
    good = started[1]
    registry.conduct.break_after = registry.conduct.hold_after = 1 << 20
    registry.conduct.num_breaks = 10**6

    async def work(transfers: Transfers) -> tuple[object, list[Json]]:
        async def pull_good() -> list[Json]:
            objects = []
            async for each in transfers.pulling(f"{good.host}/{PATH}"):
                objects.append(each)
                if transfers.registry.num_users(model_digest()) == 2:
                    registry.conduct.num_busy = 10**6
                    registry.conduct.go.set()
            return objects

        bad = asyncio.create_task(transfers.pull(f"{registry.host}/{PATH}"))
        while not transfers.registry.completed(model_digest()):
            assert not bad.done()
            await asyncio.sleep(0.01)
        objects = await pull_good()
        return (await asyncio.gather(bad, return_exceptions=True))[0], objects

    error, objects = run(store, work)
    assert isinstance(error, TemporaryError)
    assert statuses(objects)[-1] == "success"
    assert [name.host for name in store.names()] == [good.host]
    assert store.blob_path(model_digest()).read_bytes() == DEMO_FILE.read_bytes()


def test_who_comes_while_a_download_ends_waits(store: Store, registry: Registry) -> None:
    registry.conduct.hold_after = 1 << 20

    async def work(transfers: Transfers) -> None:
        await asyncio.gather(*(leave_in_the_middle(transfers, registry) for _ in range(3)))
        leaving = asyncio.create_task(leave_in_the_middle(transfers, registry))
        registry.conduct.go.set()
        registry.conduct.hold_after = None
        await asyncio.gather(leaving, transfers.pull(f"{registry.host}/{PATH}"))

    run(store, work)
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_a_full_disk(store: Store, registry: Registry) -> None:
    size = DEMO_FILE.stat().st_size
    with pytest.raises(StoreError) as caught:
        pull_once(store, f"{registry.host}/{PATH}", free_bytes=lambda _: size)
    assert re.fullmatch(
        r"not enough disk space: 127.*/team/rwkv7-demo:latest needs 5.\d MB in .*, and 5.\d MB are "
        r"free there; make room, or set OLLAMA_MODELS to another disk",
        str(caught.value),
    )
    assert_nothing(store)
    assert registry.num_sent == 0


def test_a_disk_that_fills_up_meanwhile(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has arrived stays: it is used when there is room again."""
    pwrite, num_written = os.pwrite, 0

    def write(file: int, data: bytes, offset: int) -> int:
        nonlocal num_written
        num_written += len(data)
        if num_written > 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, data, offset)

    monkeypatch.setattr("server.registry.partial_file.os.pwrite", write)
    with pytest.raises(StoreError, match="No space left on device"):
        pull_once(store, f"{registry.host}/{PATH}")
    assert list(store.names()) == []
    monkeypatch.undo()
    pull_once(store, f"{registry.host}/{PATH}")
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_a_partial_file_that_was_damaged_is_fetched_anew(store: Store, registry: Registry) -> None:
    registry.conduct.hold_after = 1 << 20
    run(store, lambda transfers: leave_in_the_middle(transfers, registry))
    (path,) = (store.root / "blobs").glob("*-partial")
    notes = [json.loads(each.read_text()) for each in path.parent.glob(f"{path.name}-*")]
    arrived = next(note for note in notes if note["Completed"])  # whichever part came first
    with path.open("rb+") as file:
        file.seek(arrived["Offset"])
        file.write(b"XXXX")
    registry.conduct.go.set()
    registry.conduct.hold_after = None
    pull_once(store, f"{registry.host}/{PATH}")
    assert_whole(store, registry, f"{registry.host}/{PATH}")


def test_what_is_not_there(store: Store, registry: Registry) -> None:
    with pytest.raises(RegistryError) as caught:
        pull_once(store, f"{registry.host}/team/nothing")
    assert str(caught.value) == "pull model manifest: file does not exist"
    del registry.blobs[model_digest()]
    with pytest.raises(RegistryError, match="file does not exist"):
        pull_once(store, f"{registry.host}/{PATH}")
    assert list(store.names()) == []


def test_no_registry_there(store: Store) -> None:
    with pytest.raises(RegistryError, match=r"pull model manifest: cannot reach 127.0.0.1:1 \("):
        pull_once(store, "127.0.0.1:1/a/b")
    url = httpx.URL("http://nowhere.invalid/a/b")
    words = r"cannot reach nowhere.invalid \(Name or service not known\); "
    with pytest.raises(RegistryError, match=words), translated(url):
        raise httpx.ConnectError("[Errno -2] Name or service not known")


@pytest.mark.parametrize(
    "config", [{"model_family": "llama", "model_format": "gguf"}, {"model_format": "gguf"}]
)
def test_a_foreign_model_is_refused(store: Store, registry: Registry, config: Json) -> None:
    """By its config, before its weights are fetched; by its weights where that says nothing."""
    weights = b"GGUF" + bytes(1 << 20)
    registry.add_manifest("team/llama:8b", config, model=weights)
    with pytest.raises(AnserError, match=r"no RWKV-7 model|is GGUF version 0") as caught:
        pull_once(store, f"{registry.host}/team/llama:8b")
    asked = registry.asked_for(digest_of(weights))
    if "model_family" in config:
        assert 'its family is "llama"); Anser runs RWKV-7 models' in str(caught.value)
        assert asked == []
    else:
        assert asked
    assert_nothing(store)

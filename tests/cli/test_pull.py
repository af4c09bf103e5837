"""`anser pull`, `anser push`, and `anser run` of a model that is not there."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server.store.demo_model import DEMO_FILE, ensure_demo_model
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import open_model
from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.registry import DEMO_PATH, Registry, digest_of, registry_running
from tests.tools.running_server import needs_demo, wait_until

pytestmark = needs_demo


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("source"))
    assert ensure_demo_model(store)
    return store


@pytest.fixture
def registry(source: Store) -> Iterator[Registry]:
    """With the demo model, and the same with weights that no store has yet."""
    with registry_running() as registry:
        registry.add_model(source, "rwkv7-demo", DEMO_PATH)
        data = DEMO_FILE.read_bytes() + b"\0"
        registry.add_manifest("team/new:latest", {"model_family": "rwkv7"}, model=data)
        yield registry


WEIGHTS = digest_of(DEMO_FILE.read_bytes() + b"\0") if DEMO_FILE.is_file() else ""


@contextmanager
def serving(anser: Anser) -> Iterator[tuple[Anser, subprocess.Popen[str]]]:
    """A server, and how to reach it; it is killed at the end."""
    process = Anser(anser.home, anser.models, "127.0.0.1:0").start("serve")
    try:
        assert process.stdout is not None
        match = re.search(r"http://(127\.0\.0\.1:\d+)", process.stdout.readline())
        assert match is not None
        yield Anser(anser.home, anser.models, match[1]), process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def test_pull_push_and_run(tmp_path: Path, registry: Registry) -> None:
    name = f"{registry.host}/{DEMO_PATH}"
    with serving(Anser(tmp_path, tmp_path / "models")) as (anser, _):
        result = anser.run("pull", name)
        assert (result.returncode, result.stdout) == (0, "")
        lines = result.stderr.splitlines()
        assert lines[0] == "pulling manifest"
        assert lines[-1] == "success"
        assert f"pulling {digest_of(DEMO_FILE.read_bytes())[7:19]}" in lines
        listed = anser.run("list").stdout
        assert name in listed
        # What was pulled is pushed under a name of one's own.
        store = Store(anser.models)
        model = open_model(store, ModelName.parse(name))
        assert model is not None
        own = ModelName.parse(f"{registry.host}/me/own:7")
        store.write_manifest(own, model.manifest.config, model.manifest.layers)
        result = anser.run("push", str(own))
        found_at = f"\nYou can find your model at:\n\n\t{own}\n"
        assert (result.returncode, result.stdout) == (0, found_at)
        assert result.stderr.endswith("pushing manifest\nsuccess\n")
        assert "me/own:7" in registry.manifests
        # What a Modelfile is FROM is pulled first, when all else in it is right.
        other = f"{registry.host}/team/new"
        result = anser.run("create", "mine", "--from", other, "--quantize", "q9")
        assert (result.returncode, "pulling" in result.stderr) == (1, False)
        result = anser.run("create", "mine", "--from", other)
        assert result.returncode == 0, result.stderr
        assert {"pulling manifest", "writing manifest"} <= set(result.stderr.splitlines())
        assert open_model(store, ModelName.parse("mine")) is not None
        result = anser.run("create", "other", "--from", f"{registry.host}/team/none")
        assert result.returncode == 1
        assert "FROM " in result.stderr
        assert "cannot be pulled: pull model manifest: file does not exist" in result.stderr
        # A model that is not there is pulled by `run`.
        store.manifest_path(own).unlink()
        result = anser.run("run", str(own), "--think=false", "Hello!")
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()
        assert "pulling manifest\n" in result.stderr
        result = anser.run("run", str(own), "--think=false", "Hello!")
        assert result.stderr == ""


def test_without_a_server(tmp_path: Path, registry: Registry) -> None:
    anser = Anser(tmp_path, tmp_path / "models")
    result = anser.run("pull", f"{registry.host}/{DEMO_PATH}")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("no server is running; starting one for this pull\n")
    assert open_model(Store(anser.models), ModelName.parse(f"{registry.host}/{DEMO_PATH}"))


def test_errors_are_one_line(tmp_path: Path, registry: Registry) -> None:
    with serving(Anser(tmp_path, tmp_path / "models")) as (anser, _):
        for words, problem in (
            (("pull", f"{registry.host}/a/b"), "pull model manifest: file does not exist"),
            (("pull", "a b"), "invalid model name"),
            (("pull", "http://192.0.2.1/a/b"), "insecure protocol http: "),
            (("push", f"{registry.host}/a/b"), f"model '{registry.host}/a/b' not found"),
        ):
            result = anser.run(*words)
            assert result.returncode == 1
            assert result.stdout == ""
            *_, line = result.stderr.splitlines()
            assert line.startswith(f"Error: {problem}")
            assert "Traceback" not in result.stderr
        assert anser.run("pull").returncode == 2


def partial_size(models: Path) -> int:
    """How many bytes of the new weights the notes on disk count."""
    path = Store(models).blob_path(WEIGHTS)
    try:
        note = path.with_name(f"{path.name}-partial-0").read_text()
    except OSError:
        return 0
    match = re.search(r'"Completed": (\d+)', note)
    return int(match[1]) if match else 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_pull_goes_on_after_its_server_has_ended(
    tmp_path: Path, registry: Registry, end: signal.Signals
) -> None:
    name, models = f"{registry.host}/team/new", tmp_path / "models"
    registry.conduct.hold_after = 3 << 20
    with serving(Anser(tmp_path, models)) as (anser, process):
        command = anser.start("pull", name)
        wait_until(lambda: partial_size(models) >= 2 << 20, PATIENCE_S)
        process.send_signal(end)
        process.wait(PATIENCE_S)
        _, problems = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == 1
        assert problems.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in problems
    kept = partial_size(models)
    assert open_model(Store(models), ModelName.parse(name)) is None
    registry.conduct.go.set()
    registry.seen.clear()
    with serving(Anser(tmp_path, models)) as (anser, _):
        assert anser.run("pull", name).returncode == 0
        (asked,) = registry.asked_for(WEIGHTS)
        assert asked.range == (kept, DEMO_FILE.stat().st_size + 1)
        body = {"model": name, "prompt": "Hello!", "stream": False, "think": False}
        answer = httpx.post(f"http://{anser.host}/api/generate", json=body, timeout=PATIENCE_S)
        assert answer.json()["response"]
    assert not list((models / "blobs").glob("*-partial*"))


def test_ctrl_c_ends_a_pull_and_keeps_what_has_arrived(tmp_path: Path, registry: Registry) -> None:
    name, models = f"{registry.host}/team/new", tmp_path / "models"
    registry.conduct.hold_after = 3 << 20
    with serving(Anser(tmp_path, models)) as (anser, _):
        with anser.terminal("pull", name) as terminal:
            terminal.expect(r"pulling [0-9a-f]{12} +\d+% ▕█+ +▏ [23].\d MB/5.\d MB")
            terminal.send("\x03")
            assert terminal.wait() == 130
            assert "Traceback" not in terminal.raw
        assert partial_size(models) >= 2 << 20
        registry.conduct.go.set()
        with anser.terminal("pull", name) as terminal:
            assert terminal.wait() == 0
            assert "success" in terminal.text

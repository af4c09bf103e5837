"""Models and a running server for the tests of the command line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from rwkv_core.checkpoint.convert import convert_to_gguf
from rwkv_core.tokenizer import WorldTokenizer
from server.creating.create import create_model
from server.creating.modelfile import parse_modelfile
from server.store.demo_model import DEMO_FILE
from server.store.names import ModelName
from server.store.store import Store
from tests.tools.anser_command import PATIENCE_S, Anser
from tests.tools.gguf_files import SMALL, random_checkpoint

# A busy machine makes examples slow, which says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# 256 bytes at the ids 1 to 256, then words; id 0 ends a document. Every word closes the `<think`
# that a prompt may end in, as a trained model does.
VOCABULARY = [None, *(bytes([value]) for value in range(256)), *(b">w%d " % n for n in range(43))]


def create(store: Store, name: str, modelfile: str) -> None:
    parsed = parse_modelfile(modelfile)
    create_model(store, ModelName.parse(name), parsed, Path(), lambda *_: None)


@pytest.fixture(scope="session")
def endless_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that, at temperature 0, never ends a reply: its end token never wins."""
    path = tmp_path_factory.mktemp("models") / "rwkv7-g1-endless.gguf"
    checkpoint = random_checkpoint(SMALL)
    # Only words may win: what is streamed is easy to see, and no stop string can come about.
    checkpoint.weights["head.weight"][:257] = 0
    assert checkpoint.weights["head.weight"].dtype == torch.float32
    convert_to_gguf(checkpoint, WorldTokenizer(VOCABULARY), path, name="rwkv7-g1-endless")
    return path


@pytest.fixture(scope="session")
def anser(tmp_path_factory: pytest.TempPathFactory, endless_file: Path) -> Iterator[Anser]:
    """A server that runs, with four models.

    `chatty` is the demo model where the package has it. `endless` never stops, `short` is the same
    with 12 tokens a reply; both are greedy, so that a question has one answer. `polite` begins with
    messages of its own.
    """
    home = tmp_path_factory.mktemp("home")
    store = Store(home / "models")
    chatty = DEMO_FILE if DEMO_FILE.is_file() else endless_file
    create(
        store,
        "rwkv7-g1-chatty",
        f"FROM {chatty}\nPARAMETER num_predict 40\nPARAMETER temperature 0\n",
    )
    create(store, "rwkv7-g1-endless", f"FROM {endless_file}\nPARAMETER temperature 0\n")
    create(store, "rwkv7-g1-short", "FROM rwkv7-g1-endless\nPARAMETER num_predict 12\n")
    greeting = "MESSAGE user Hi\nMESSAGE assistant Good morning!\n"
    create(store, "rwkv7-g1-polite", f"FROM rwkv7-g1-endless\n{greeting}")
    with running_server(Anser(home, store.root)) as server:
        yield server


@pytest.fixture
def bare(tmp_path: Path) -> Anser:
    """An environment whose store is empty."""
    return Anser(tmp_path, tmp_path / "models")


@contextmanager
def running_server(anser: Anser, changes: Mapping[str, str] | None = None) -> Iterator[Anser]:
    """`anser serve` on a free port; the Anser to reach it with."""
    here = Anser(anser.home, anser.models, "127.0.0.1:0")
    process = here.start("serve", changes=changes)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://(127\.0\.0\.1:\d+)", line)
        assert match, process.communicate()
        yield Anser(anser.home, anser.models, match[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)

"""`anser create` where OLLAMA_HOST names another machine: what is sent, and what is made there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_core.config import ModelConfig
from server.cli.client import Client
from server.cli.errors import CommandError, ServerError
from server.cli.remote_create import create_remotely
from server.cli.terminal import ProgressBar
from server.creating.modelfile import parse_modelfile
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import open_model
from tests.tools.anser_command import Anser
from tests.tools.gguf_files import SMALL
from tests.tools.random_checkpoint import random_tensors, write_hugging_face
from tests.tools.time_states import time_state, write_time_state

WORLD = ModelConfig(
    n_layer=2, n_embd=32, head_size=16, vocab_size=65536, n_ffn=64, decay_rank=4, iclr_rank=4,
    value_rank=4, gate_rank=4,
)  # fmt: skip


@pytest.fixture
def client(anser: Anser) -> Iterator[Client]:
    with Client(f"http://{anser.host}") as client:
        yield client


def make(client: Client, name: str, text: str, folder: Path, quantize: str | None = None) -> str:
    """What the progress bar shows off a terminal: a line for each stage."""
    out = io.StringIO()
    create_remotely(client, name, parse_modelfile(text), folder, quantize, ProgressBar(out))
    return out.getvalue()


def test_files_are_sent_once_and_the_server_makes_the_model(
    anser: Anser, client: Client, endless_file: Path, tmp_path: Path
) -> None:
    write_time_state(tmp_path / "tuned.pth", time_state(SMALL))
    text = f"FROM {endless_file}\nADAPTER tuned.pth\nSYSTEM Be brief.\nTEMPLATE {{{{ .Prompt }}}}\n"
    text += 'PARAMETER stop END\nPARAMETER seed 3\nLICENSE MIT\nMESSAGE user "hi"\nREQUIRES 0.4\n'
    shown = make(client, "remote", text, tmp_path)
    assert "sending tuned.pth\n" in shown
    assert shown.endswith("writing manifest\nsuccess\n")
    model = open_model(Store(anser.models), ModelName.parse("remote"))
    assert model is not None
    assert model.path.read_bytes() == endless_file.read_bytes()
    assert model.adapter is not None
    assert (model.system, model.template, model.licenses) == (
        "Be brief.", "{{ .Prompt }}", ("MIT",),
    )  # fmt: skip
    assert model.parameters == {"stop": ["END"], "seed": 3}
    assert [(each.role, each.content) for each in model.messages] == [("user", "hi")]
    again = make(client, "remote", text, tmp_path)
    assert "sending" not in again
    child = make(client, "child", "FROM remote\n", tmp_path)
    assert "hashing" not in child
    client.delete("remote")
    client.delete("child")


def test_a_folder_is_sent_and_quantized_there(anser: Anser, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "rwkv7-g1-tiny"
    write_hugging_face(folder, random_tensors(WORLD), WORLD, shards=2)
    make(client, "rwkv7-g1-tiny", "FROM rwkv7-g1-tiny\n", tmp_path, "q8_0")
    model = open_model(Store(anser.models), ModelName.parse("rwkv7-g1-tiny"))
    assert model is not None
    assert (model.quantization, model.prompt_format.name) == ("Q8_0", "g1")
    client.delete("rwkv7-g1-tiny")


def test_what_cannot_be_sent_or_made_is_said(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "folder").mkdir()
    for text, problem in (
        ("FROM 127.0.0.1:1/a/nobody\n", "pull model manifest: cannot reach 127.0.0.1:1"),
        ("FROM text.gguf\n", "text.gguf: is no .pth"),
        ("FROM folder\n", "is a folder without a model file"),
        ("FROM rwkv7-g1-endless\nADAPTER none.pth\n", "there is no file of that name in"),
    ):
        with pytest.raises((CommandError, ServerError), match=problem):
            make(client, "bad", text, tmp_path)


def test_another_machine_that_does_not_answer_is_an_error(bare: Anser, endless_file: Path) -> None:
    environment = {"OLLAMA_HOST": "localhost.invalid:9"}
    result = bare.run("create", "x", "--from", str(endless_file), changes=environment)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: no server answers at http://localhost.invalid:9; ")
    assert not bare.models.exists()

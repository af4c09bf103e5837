"""`anser ps`, `stop`, `show`, `cp`, `rm` and `list`, with a server and without one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest

from server.cli.ps import processor
from server.human import human_until
from server.store.names import ModelName
from server.store.store import Store
from tests.cli.conftest import create
from tests.tools.anser_command import Anser

ENDLESS = "rwkv7-g1-endless"


@pytest.fixture
def filled(bare: Anser, endless_file: Path) -> Anser:
    """Without a server, with two models of one file."""
    store = Store(bare.models)
    text = f'FROM {endless_file}\nSYSTEM Be brief.\nLICENSE MIT\nPARAMETER stop "a b"\n'
    create(store, "one", text + "TEMPLATE {{ .Prompt }}\n")
    create(store, "two", "FROM one\nPARAMETER seed 7\n")
    return bare


def ok(anser: Anser, *words: str) -> str:
    result = anser.run(*words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(anser: Anser, *words: str) -> str:
    result = anser.run(*words)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def test_ps_and_stop(anser: Anser) -> None:
    url = f"http://{anser.host}"
    body = {"model": ENDLESS, "keep_alive": "10m", "stream": False}
    assert httpx.post(f"{url}/api/generate", json=body, timeout=90).status_code == 200
    header, *rows = ok(anser, "ps").splitlines()
    assert header.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    (row,) = [each for each in rows if each.startswith(ENDLESS)]
    cells = re.split(r" {2,}", row)
    assert cells[0] == f"{ENDLESS}:latest"
    assert re.fullmatch("[0-9a-f]{12}", cells[1])
    assert cells[3] == "100% CPU"
    assert cells[5] in ("9 minutes from now", "10 minutes from now")
    assert len(ok(anser, "ps", "nobody").splitlines()) == 1
    loaded = json.loads(ok(anser, "ps", "--json"))["models"]
    assert ENDLESS in {each["name"].removesuffix(":latest") for each in loaded}
    assert ok(anser, "stop", ENDLESS) == ""
    assert ENDLESS not in ok(anser, "ps")
    assert refused(anser, "stop", "nobody") == 'couldn\'t find model "nobody" to stop'


def test_cp_rm_and_list_on_a_server(anser: Anser) -> None:
    assert ok(anser, "cp", ENDLESS, "copy") == f"copied '{ENDLESS}' to 'copy'\n"
    assert ok(anser, "cp", "copy", "copy:v2") == "copied 'copy' to 'copy:v2'\n"
    _, *rows = ok(anser, "list", "COPY").splitlines()
    assert {row.split()[0] for row in rows} == {"copy:latest", "copy:v2"}
    listed = json.loads(ok(anser, "ls", "copy", "--json"))["models"]
    assert {each["name"] for each in listed} == {"copy:latest", "copy:v2"}
    assert all(each["size"] > 0 and len(each["digest"]) == 64 for each in listed)
    assert ok(anser, "rm", "copy", "copy:v2") == "deleted 'copy'\ndeleted 'copy:v2'\n"
    assert ok(anser, "list", "copy").splitlines() == ["NAME    ID    SIZE    MODIFIED"]
    assert refused(anser, "rm", "copy") == "model 'copy' not found"
    assert refused(anser, "cp", "copy", "x") == 'model "copy" not found'
    assert refused(anser, "cp", ENDLESS, "../x") == 'destination "../x" is invalid'


def test_rm_ends_at_the_first_that_is_not_there(filled: Anser) -> None:
    result = filled.run("rm", "one", "nobody", "two")
    assert (result.returncode, result.stdout) == (1, "deleted 'one'\n")
    assert result.stderr == "Error: model 'nobody' not found\n"
    assert [each.shortest for each in Store(filled.models).names()] == ["two:latest"]


def test_without_a_server_the_store_is_changed(filled: Anser) -> None:
    store = Store(filled.models)
    ok(filled, "cp", "one", "three")
    assert store.read_manifest(ModelName.parse("three")) is not None
    assert refused(filled, "cp", "nobody", "x") == 'model "nobody" not found'
    ok(filled, "rm", "one", "two", "three")
    assert [path for path in (store.root / "blobs").iterdir() if path.is_file()] == []


def test_show_prints_a_table_or_one_text(filled: Anser) -> None:
    shown = ok(filled, "show", "two")
    assert shown.startswith("  Model\n    architecture        rwkv7\n")
    assert '    stop    "a b"\n' in shown
    assert "  System\n    Be brief.\n" in shown
    assert "Metadata" not in shown
    assert ok(filled, "show", "two", "--system") == "Be brief."
    assert ok(filled, "show", "--template", "two") == "{{ .Prompt }}"
    assert ok(filled, "show", "two", "--license") == "MIT\n"
    assert ok(filled, "show", "two", "--parameters").split() == ["stop", '"a', 'b"', "seed", "7"]
    modelfile = ok(filled, "show", "two", "--modelfile")
    assert "# FROM two:latest\n" in modelfile
    assert "\nTEMPLATE {{ .Prompt }}\nSYSTEM Be brief.\n" in modelfile
    (filled.home / "Modelfile").write_text(modelfile)
    assert filled.run("create", "again").returncode == 0
    again, two = (
        Store(filled.models).read_manifest(ModelName.parse(each)) for each in ("again", "two")
    )
    assert again is not None
    assert two is not None
    assert [each.digest for each in again.layers] == [each.digest for each in two.layers]
    assert refused(filled, "show", "two", "--system", "--license").startswith("only one of")
    assert refused(filled, "show", "nobody") == "model 'nobody' not found"


def test_show_with_everything(filled: Anser) -> None:
    shown = ok(filled, "show", "-v", "two")
    assert re.search(r"\n    general\.architecture +rwkv7\n", shown)
    assert re.search(r"\n    tokenizer\.ggml\.tokens +\[.* \.\.\.\+\d+ more\]\n", shown)
    assert re.search(r"\n    token_embd\.weight +F32 +\[64 300\]\n", shown)
    answer = json.loads(ok(filled, "show", "two", "--json"))
    assert answer["details"]["family"] == "rwkv7"
    assert answer["system"] == "Be brief."


def test_a_server_shows_what_the_store_shows(anser: Anser) -> None:
    without = Anser(anser.home, anser.models)
    for words in (("show", ENDLESS), ("show", ENDLESS, "-v"), ("show", ENDLESS, "--modelfile")):
        assert ok(anser, *words) == ok(without, *words)


@pytest.mark.parametrize(
    "words", [("ps",), ("stop", "x"), ("rm", "x"), ("cp", "x", "y"), ("show", "x"), ("list",)]
)
def test_where_no_server_answers(bare: Anser, words: tuple[str, ...]) -> None:
    elsewhere = Anser(bare.home, bare.models, "192.0.2.1:1")
    needs_server = words[0] in ("ps", "stop")
    if needs_server:
        problem = refused(bare, *words)
        assert problem.startswith("no server answers at http://127.0.0.1:1; start it with")
    environment = {"OLLAMA_HOST": "localhost.invalid:9"}
    result = elsewhere.run(*words, changes=environment)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: no server answers at http://localhost.invalid:9; ")
    assert not bare.models.exists()


def test_a_server_forgets_what_a_command_deletes(anser: Anser) -> None:
    ok(anser, "cp", ENDLESS, "doomed")
    url = f"http://{anser.host}"
    body = {"model": "doomed", "prompt": "hi", "stream": False, "options": {"num_predict": 1}}
    assert httpx.post(f"{url}/api/generate", json=body, timeout=90).status_code == 200
    ok(anser, "rm", "doomed")
    assert httpx.post(f"{url}/api/generate", json=body, timeout=90).status_code == 404
    assert "doomed" not in ok(anser, "ps")


def test_usage_errors_are_one_line(bare: Anser) -> None:
    for words in (("rm",), ("cp", "x"), ("stop",), ("show",), ("ps", "a", "b")):
        result = bare.run(*words)
        assert result.returncode == 2
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


def test_words_for_times_and_processors() -> None:
    assert human_until(-1) == "Stopping..."
    assert human_until(299) == "4 minutes from now"
    assert human_until(9e9) == "Forever"
    assert processor(100, 0) == "100% CPU"
    assert processor(100, 100) == "100% GPU"
    assert processor(100, 25) == "75%/25% CPU/GPU"
    assert processor(100, 200) == "Unknown"

"""Commands that run no model start without PyTorch, which takes seconds to import."""

from __future__ import annotations

import json
import subprocess
import sys

from server.store.store import Store
from tests.cli.conftest import create
from tests.tools.anser_command import PATIENCE_S, Anser

# Runs command lines one after the other, and prints the exit code of each, what it has imported of
# what is heavy, and what it said.
CHILD = """
import contextlib, io, json, sys
from server.cli import main
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as leaving:
            code = leaving.code
    heavy = [name for name in ("torch", "fastapi", "llguidance") if name in sys.modules]
    print(json.dumps([words, code, heavy, said.getvalue()]), flush=True)
"""

COMMANDS = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in ("serve", "run", "pull", "push", "create", "bench")),
    ["completion", "bash"],
    ["__complete", "run", "o"],
    ["list"],
    ["list", "--json"],
    ["show", "one"],
    ["show", "one", "--modelfile"],
    ["create", "two", "--from", "one"],
    ["create", "three", "--file", "Modelfile"],
    ["show", "three", "--verbose"],
    ["cp", "one", "four"],
    ["rm", "four", "three", "two"],
]
FAILING = [["ps"], ["stop", "one"], ["show", "nobody"], ["rm", "nobody"], ["cp", "nobody", "x"]]


def test_no_command_that_runs_no_model_imports_torch(bare: Anser, endless_file: object) -> None:
    create(Store(bare.models), "one", f"FROM {endless_file}\n")
    (bare.home / "Modelfile").write_text("FROM one\nSYSTEM Be brief.\nPARAMETER seed 7\n")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(COMMANDS + FAILING)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=bare.home,
        env=bare.environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, *_ in results] == COMMANDS + FAILING
    for words, code, heavy, said in results:
        assert code == (1 if words in FAILING else 0), (words, said)
        assert heavy == [], words

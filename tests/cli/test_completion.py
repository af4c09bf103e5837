"""Shell completion: what a word may become, and the scripts in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from server.store.store import Store
from tests.cli.conftest import create
from tests.tools.anser_command import PATIENCE_S, Anser

SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, endless_file: Path) -> Anser:
    """Two models, and an `anser` on the path as the scripts want it."""
    home = tmp_path_factory.mktemp("home")
    store = Store(home / "models")
    create(store, "endless:1b", f"FROM {endless_file}\n")
    create(store, "endless:2b", f"FROM {endless_file}\n")
    command = home / "anser"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m server.cli "$@"\n')
    command.chmod(0o755)
    return Anser(home, store.root)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sho", "x"), []),
        (("se",), ["serve"]),
        (("--v",), ["--version"]),
        (("help", "li"), ["list"]),
        (("run", "endless:"), ["endless:1b", "endless:2b"]),
        (("run", '""'), ["endless:1b", "endless:2b"]),
        (("run", "--verbose", "endless:2"), ["endless:2b"]),
        (("run", "endless:1b", "e"), []),
        (("run", "--hide"), ["--hidethinking"]),
        (("create", "--from", "endless:1"), ["endless:1b"]),
        (("bench", "--isa", "avx"), ["avx2", "avx512"]),
        (("bench", "endless:1b", "endless:2"), ["endless:2b"]),
        (("completion", "p"), ["powershell"]),
        (("serve", "--child"), []),
        (("serve", "--api"), []),
    ],
)
def test_candidates(stocked: Anser, words: tuple[str, ...], expected: list[str]) -> None:
    done = stocked.run("__complete", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(bare: Anser, shell: str) -> None:
    done = bare.run("completion", shell)
    assert done.returncode == 0
    assert "__complete" in done.stdout
    program = {"powershell": "pwsh"}.get(shell, shell)
    if shutil.which(program) and shell != "powershell":
        checked = subprocess.run(
            [program, "-n", "/dev/stdin"],
            input=done.stdout,
            text=True,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("bash"), reason="needs Bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("anser ru", ["run"]),
        ("anser run ", ["endless:1b", "endless:2b"]),
        ("anser run endless:", ["1b", "2b"]),  # what stands before the colon is Bash's own
        ("anser nothing ", []),
    ],
)
def test_bash_completes(stocked: Anser, line: str, expected: list[str]) -> None:
    script = 'eval "$(anser completion bash)"; _anser; printf "%s\\n" "${COMPREPLY[@]}"'
    more = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    assert in_shell(stocked, ["bash", "-c", script], more) == [expected]


# As the shells themselves would ask, with what would go to the list of offers printed.
ZSH = """
compdef() { }
_files() { print -l -- FILES }
eval "$(anser completion zsh)"
compadd() { print -l -- "${(@P)2}" }
for line in "anser ru" "anser run " "anser run endless:1" "anser nothing x"; do
    words=("${(@s: :)line}") CURRENT=${#words}
    _anser
    print -- ----
done
"""
FISH = """
anser completion fish | source
for line in "anser ru" "anser run " "anser run endless:1" "anser nothing anse"
    complete -C $line
    echo ----
end
"""


@pytest.mark.parametrize(
    ("command", "files"),
    [(("zsh", "-f", "-c", ZSH), "FILES"), (("fish", "-N", "-c", FISH), "anser")],
)
def test_zsh_and_fish_complete(stocked: Anser, command: tuple[str, ...], files: str) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"needs {command[0]}")
    models = ["endless:1b", "endless:2b"]
    assert in_shell(stocked, command) == [["run"], models, models[:1], [files]]


def in_shell(
    stocked: Anser, command: Sequence[str], more: Mapping[str, str] | None = None
) -> list[list[str]]:
    """The words that a shell prints, split at lines of hyphens."""
    done = subprocess.run(
        command,
        env=stocked.environment
        | dict(more or {})
        | {"PATH": f"{stocked.home}:{stocked.environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=stocked.home,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [part.split() for part in done.stdout.removesuffix("----\n").split("----\n")]

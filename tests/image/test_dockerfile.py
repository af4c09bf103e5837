"""The Dockerfile, through the parser that `tests.tools.image_proof` performs it with."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from tests.tools.dockerfile import (
    DockerfileError,
    IgnoreFile,
    Instruction,
    Stage,
    expand,
    parse_dockerfile,
)

REPOSITORY = Path(__file__).absolute().parents[2]
FILE = parse_dockerfile((REPOSITORY / "Dockerfile").read_text())
IGNORE = IgnoreFile((REPOSITORY / ".dockerignore").read_text())


def only(stage: Stage, name: str) -> Instruction:
    (found,) = (each for each in stage.instructions if each.name == name)
    return found


def of_all(stage: Stage, name: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for each in stage.instructions:
        pairs |= each.pairs({}) if each.name == name else {}
    return pairs


def test_only_the_environment_leaves_the_build_stage() -> None:
    build, final = FILE.stages
    assert build.base == final.base
    assert expand(build.base, FILE.arguments) == "debian:bookworm-slim"
    copied = only(final, "COPY")
    assert copied.flags == {"from": build.name}
    assert copied.words({}) == ["/opt/anser", "/opt/anser"]


def test_how_the_image_runs() -> None:
    final = FILE.stages[-1]
    assert only(final, "USER").words({}) == ["10001:10001"]
    variables = of_all(final, "ENV")
    assert variables["OLLAMA_HOST"] == "0.0.0.0:11434"
    volumes = only(final, "VOLUME").command()
    assert volumes == [variables["OLLAMA_MODELS"], variables["ANSER_STATES"]]
    assert only(final, "EXPOSE").words({}) == ["11434"]
    assert only(final, "STOPSIGNAL").words({}) == ["SIGTERM"]
    assert only(final, "HEALTHCHECK").text == 'CMD ["anser", "ps"]'
    # The shell must not stay in between, or it takes the signal.
    assert only(final, "ENTRYPOINT").command()[2].startswith("exec anser ")
    assert only(final, "CMD").command() == ["serve"]


def test_the_label_has_the_packages_version() -> None:
    version = of_all(FILE.stages[-1], "ARG")["VERSION"]
    assert f'\nversion = "{version}"\n' in (REPOSITORY / "pyproject.toml").read_text()


def test_what_is_compiled_runs_on_every_processor_of_the_platform() -> None:
    # Each instruction set has its own flags and sources, which are chosen from at run time.
    for path in [REPOSITORY / "Dockerfile", *(REPOSITORY / "rwkv_core").rglob("CMakeLists.txt")]:
        text = path.read_text()
        assert "native" not in [flag.removeprefix("-march=") for flag in text.split()]
        assert "-mcpu=" not in text


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    build = FILE.stages[0]
    copied = {
        word for each in build.instructions if each.name == "COPY" for word in each.words({})[:-1]
    }
    seen = {path.parts[0] for path in IGNORE.files(REPOSITORY)}
    assert seen == copied
    assert IGNORE.ignores(PurePosixPath("rwkv_core/cache/__pycache__/key.cpython-311.pyc"))
    assert not IGNORE.ignores(PurePosixPath("rwkv_core/cache/key.py"))
    assert IGNORE.ignores(PurePosixPath("tests/conftest.py"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM a\nFETCH b", "2: unknown instruction FETCH"),
        ("FROM a\nRUN b \\\n", "2: the last line goes on"),
        ("FROM a\n\nCOPY --link a b", "3: unknown flag in --link a b"),
        ("RUN a", "1: RUN before FROM"),
        ("FROM a AS", "1: not FROM image AS name"),
    ],
)
def test_what_the_parser_does_not_know_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse_dockerfile(text)
    assert str(caught.value) == problem


def test_the_language() -> None:
    text = """
    ARG base=debian
    FROM ${base} AS build
    ENV A=1 B="two words" \\
        # a remark in between
        C='$A' D=$A/${B}:${E:-none} F=\\$A
    RUN one && \\
        two
    """
    file = parse_dockerfile(text)
    environment, run = file.stages[0].instructions
    assert file.arguments == {"base": "debian"}
    assert environment.pairs({"A": "0", "B": "b"}) == {
        "A": "1", "B": "two words", "C": "$A", "D": "0/b:none", "F": "$A",
    }  # fmt: skip
    assert run.command() == ["/bin/sh", "-c", "one &&         two"]
    assert run.line == 7

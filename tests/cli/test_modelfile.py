"""The Modelfile parser: what it reads, what it refuses, and that it reads what it prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.creating.modelfile import (
    PARAMETER_TYPES,
    ROLES,
    Command,
    Modelfile,
    ModelfileError,
    decode_modelfile,
    parse_modelfile,
    parse_parameter,
)

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")


def is_writable(value: str) -> bool:
    """Whether the grammar can spell `value`; see the last test for what it cannot."""
    inner_lines = value.split("\n")[:-1]
    return "\r" not in value and not any(each.rstrip(" \t").endswith('"') for each in inner_lines)


def texts(min_size: int = 0) -> st.SearchStrategy[str]:
    characters = st.characters(codec="utf-8")
    awkward = st.sampled_from(['"', '"""', "\n", " ", "\t", "#", "FROM x", "\n#", "é", "  a", "🙂"])
    pieces = st.lists(st.one_of(awkward, st.text(characters, max_size=4)), max_size=6)
    return pieces.map("".join).filter(lambda text: len(text) >= min_size and is_writable(text))


def parameter_values(name: str) -> st.SearchStrategy[str]:
    kind = PARAMETER_TYPES[name]
    if kind is int:
        return st.integers(-(2**63), 2**63 - 1).map(str)
    if kind is float:
        return st.floats(allow_nan=False, allow_infinity=False).map(repr)
    if kind is bool:
        return st.sampled_from(["true", "false", "1", "F"])
    return texts()


PARAMETERS = st.sampled_from(sorted(PARAMETER_TYPES)).flatmap(
    lambda name: parameter_values(name).map(lambda value: Command("parameter", value, name))
)
OTHERS = st.one_of(
    st.builds(
        Command,
        st.sampled_from(["template", "system", "license", "renderer", "parser", "draft"]),
        texts(),
    ),
    st.builds(Command, st.just("adapter"), texts(1)),
    st.builds(Command, st.just("message"), texts(), st.sampled_from(ROLES)),
    st.builds(Command, st.just("requires"), st.sampled_from(["0.14.0", "v1.2", "0.9.1-rc1"])),
    PARAMETERS,
)
MODELFILES = st.builds(
    lambda before, source, after: Modelfile((*before, Command("from", source), *after)),
    st.lists(OTHERS, max_size=4),
    texts(1),
    st.lists(OTHERS, max_size=4),
)


@given(MODELFILES)
def test_what_is_printed_is_read_back(modelfile: Modelfile) -> None:
    assert parse_modelfile(str(modelfile)) == modelfile


@given(MODELFILES, st.sampled_from(["\n", "\r\n"]), st.sampled_from(ENCODINGS))
def test_neither_encoding_nor_line_ends_matter(modelfile: Modelfile, end: str, code: str) -> None:
    data = str(modelfile).replace("\n", end).encode(code)
    assert parse_modelfile(decode_modelfile(data)) == modelfile


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        modelfile = parse_modelfile(text)
    except ModelfileError:
        return
    assert modelfile.source


def test_commands_in_any_case_with_comments_and_blank_lines() -> None:
    text = '# a comment\n\n  from ./model.pth\n\tSystem   "You are brief."  \n#PARAMETER x 1\n'
    modelfile = parse_modelfile(text)
    assert modelfile.source == "./model.pth"
    assert modelfile.last("system") == "You are brief."


def test_quotes_run_over_lines_and_keep_what_is_inside() -> None:
    text = 'FROM x\nSYSTEM """two  \n  "lines"\n\n# no comment"""  \nLICENSE "a\nb"\n'
    modelfile = parse_modelfile(text)
    assert modelfile.last("system") == 'two  \n  "lines"\n\n# no comment'
    assert modelfile.last("license") == "a\nb"


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        ('""""""', ""),
        ('""', ""),
        ('"""quotes " and "" inside"""', 'quotes " and "" inside'),
        ('it\'s "quoted" inside', 'it\'s "quoted" inside'),
        ('"""\nfirst\n  "second"\n"""  ', '\nfirst\n  "second"\n'),
        ('"  kept  "', "  kept  "),
        ("  not kept  ", "not kept"),
        ("# no comment", "# no comment"),
        ("你好👋", "你好👋"),
    ],
)
def test_spellings_of_values(spelled: str, value: str) -> None:
    for end in ("", "\n", "\n\t\t\n# a comment\n"):
        assert parse_modelfile(f"FROM x\nSYSTEM {spelled}{end}").last("system") == value


def test_parameters_have_the_types_of_the_api() -> None:
    text = "FROM x\nPARAMETER temperature 1\nPARAMETER seed 7\nPARAMETER use_mmap T\n"
    text += 'PARAMETER stop "\n\nUser:"\nPARAMETER stop </s>\nPARAMETER seed 8\n'
    values = parse_modelfile(text).parameters
    expected = {"temperature": 1.0, "seed": 8, "use_mmap": True, "stop": ["\n\nUser:", "</s>"]}
    assert values == expected
    assert isinstance(values["temperature"], float)


def test_parameters_of_earlier_versions_change_nothing() -> None:
    text = "FROM x\nPARAMETER mirostat 2\nPARAMETER low_vram maybe\nPARAMETER seed 1\n"
    modelfile = parse_modelfile(text)
    assert modelfile.parameters == {"seed": 1}
    assert modelfile.deprecated == ["mirostat", "low_vram"]


def test_commands_for_ollama_are_read() -> None:
    text = 'FROM x\nRENDERER r\nparser "p"\nDRAFT ./d.gguf\n'
    modelfile = parse_modelfile(text)
    assert [(each.name, each.value) for each in modelfile.commands[1:]] == [
        ("renderer", "r"),
        ("parser", "p"),
        ("draft", "./d.gguf"),
    ]


def test_messages_keep_their_order() -> None:
    text = 'FROM x\nMESSAGE user Hello\nMESSAGE assistant """Hi: there"""\n'
    assert parse_modelfile(text).messages == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi: there"},
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("FROM x\n\nFORM y\n", 3, '(line 3): command must be one of "from", "license"'),
        ("PARAMETER temprature 1\nFROM x\n", 1, "temprature"),
        ("FROM x\nPARAMETER top_k 1.5\n", 2, "top_k must be a whole number, not '1.5'"),
        ("FROM x\nPARAMETER top_k 1_000\n", 2, "top_k"),
        ("FROM x\nPARAMETER top_p nan\n", 2, "top_p must be a number"),
        ("FROM x\nPARAMETER use_mmap maybe\n", 2, "true or false"),
        ("FROM x\nPARAMETER\n", 2, "PARAMETER needs a name"),
        ("FROM x\nMESSAGE robot hi\n", 2, "message role must be one of"),
        ("FROM x\nMESSAGE user\n", 2, "MESSAGE user has no value"),
        ("FROM x\nPARAMETER stop \n", 2, "PARAMETER stop has no value"),
        ("FROM x\nREQUIRES soon\n", 2, "soon"),
        ("FROM x\nADAPTER\n", 2, "ADAPTER needs a file"),
        ('# one\nFROM x\nSYSTEM """never\nclosed"\nSYSTEM x\n', 3, "never closed"),
        ("FROM x\nFROM y\n", 2, "second FROM"),
        ("FROM\n", 1, "FROM needs a file"),
        ("SYSTEM hi\n", 0, "no FROM"),
        ("", 0, "no FROM"),
    ],
)
def test_errors_name_the_line_and_the_thing(text: str, line: int, words: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        parse_modelfile(text)
    assert caught.value.line == line
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ModelfileError, match="UTF-8"):
        decode_modelfile(b"GGUF\x03\xff\xfe\x00")


def test_a_list_parameter_takes_all_its_words() -> None:
    assert parse_parameter("stop", ["a", "b"]) == ["a", "b"]
    assert parse_parameter("num_predict", ["-1"]) == -1


@pytest.mark.parametrize("value", ['a"""\nb', '"\n', "a\rb"])
def test_a_value_without_a_spelling_is_not_printed_wrong(value: str) -> None:
    command = Command("system", value)
    try:
        text = f"FROM x\n{command}\n"
    except ModelfileError:
        return
    assert parse_modelfile(text).last("system") == value

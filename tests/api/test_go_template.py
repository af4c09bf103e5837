"""Go's text/template: against what Go itself answers, and under attack."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.go_template import JsonList, JsonMap, Limits, Record, TemplateError, parse

_FIXTURE = json.loads(
    (Path(__file__).parent.parent / "data" / "go_templates.json").read_text(encoding="utf-8")
)
_PIECES = [
    "{{", "}}", "{{-", " -}}", "{{ end }}", "{{if .A}}", "{{else}}", "{{range $i, $e := .B}}", "x",
    "{{with .A}}", "{{define \"t\"}}", "{{template \"t\" .}}", ".A", "$", "$x", ":=", "=", "(", ")",
    "|", "len", "printf", "\"%d\"", "index", "slice", "`", "'", "1", "-", ",", " ", "\n", "/*",
    "*/", "{{break}}", "é", "0x", "e9", "\\", "nil", "true", "and", "eq", "print", "json",
]  # fmt: skip


def rendered(text: str, **data: Any) -> str:
    return parse(text).render(data)


@pytest.mark.parametrize("case", _FIXTURE["cases"], ids=lambda case: repr(case["template"])[:60])
def test_go_answers_alike(case: dict[str, Any]) -> None:
    data = case.get("data", _FIXTURE["data"])
    if "error" not in case:
        assert parse(case["template"]).render(data) == case["output"]
        return
    with pytest.raises(TemplateError) as refused:
        parse(case["template"]).render(data)
    assert str(refused.value).split(":")[:3] == case["error"].split(":")[:3], "the same line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ if }}", "template: :1: missing value for if"),
        ("a\n\n{{ foo }}", 'template: :3: function "foo" not defined'),
        ("{{ .A.B }}",
         'template: :1:5: executing "" at <.A.B>: can\'t evaluate field B in type string'),
        ("x{{ len 3 }}",
         'template: :1:4: executing "" at <len>: error calling len: len of type int'),
        ("{{ range .A }}", "template: :1: unexpected EOF"),
        ("{{ template `t` }}",
         'template: :1:12: executing "" at <{{template "t"}}>: template "t" not defined'),
        ("{{ 99999999999999999999 }}", 'template: :1: integer overflow: "99999999999999999999"'),
    ],
)  # fmt: skip
def test_errors_have_the_words_of_go(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as refused:
        rendered(text, A="a")
    assert str(refused.value) == message


def test_structs_lists_and_maps_that_are_written_as_json() -> None:
    tool = Record("api.Tool", {"Type": "function"}, {"type": "function"}, prints_json=True)
    data = {
        "Tools": JsonList([tool]),
        "Call": Record("api.Call", {"Arguments": JsonMap(b=1, a="<")}),
    }
    text = "{{ .Tools }}|{{ range .Tools }}{{ .Type }} {{ . }}{{ end }}|{{ .Call.Arguments }}"
    assert (
        parse(text).render(data)
        == '[{"type":"function"}]|function {"type":"function"}|{"a":"\\u003c","b":1}'
    )
    with pytest.raises(TemplateError, match=r"can't evaluate field Typo in type api\.Tool"):
        parse("{{ range .Tools }}{{ .Typo }}{{ end }}").render(data)


def test_python_objects_are_out_of_reach() -> None:
    for field in ("__class__", "items", "keys", "__len__"):
        assert rendered(f"{{{{ .{field} }}}}", A="a") == "<no value>"
        with pytest.raises(TemplateError):
            rendered(f"{{{{ .A.{field} }}}}", A="a")


@pytest.mark.parametrize(
    ("form", "arguments", "text"),
    [
        ("%*d|", "4 7", "   7|"),
        ("%-*d|", "4 7", "7   |"),
        ("%*d|", "-4 7", "7   |"),
        ("%0*d", "-1 7", "7"),
        ("%0*d", "4 7", "0007"),
        ("%.*f", "1 2.25", "2.2"),
        ("%*.*f|", "6 1 2.75", "   2.8|"),
        ("%[2]s %[1]s", "`a` `b`", "b a"),
        ("%[2]s %s", "`a` `b`", "b %!s(MISSING)"),
        ("%[1]s %[1]q", "`a` `b`", 'a "a"'),
        ("%+q %+q %q", "`é😀` 'é' `é`", '"\\u00e9\\U0001f600" \'\\u00e9\' "é"'),
        ("%[3]*.[2]*[1]f|", "12.0 2 6", " 12.00|"),
        ("%6.[2]d", "1 2", "     2"),
        ("%[2]*[1]d", "2 5", "    2"),
        ("%[1]*d", "3 5", "  5"),
        ("%[5]s %s", "`a` `b`", "%!s(BADINDEX) a"),
        ("%[]s", "`a`", "%!s(BADINDEX)"),
        ("%[x]s %[-1]d", "`a`", "%!s(BADINDEX) %!d(BADINDEX)"),
        ("%[0]s %[99999999999]s", "`a`", "%!s(BADINDEX) %!s(BADINDEX)"),
        ("%[1", "`a`", "%!(NOVERB)"),
        ("%[1]3s", "`a`", "%!s(BADINDEX)"),
        ("%[1].2s", "`a`", "%!s(BADINDEX)"),
        ("%*d", "`x` 7", "%!(BADWIDTH)7"),
        ("%.*d", "-1 7", "%!(BADPREC)7"),
        ("%*d", "10000000 7", "%!(BADWIDTH)7"),
        ("%*", "4", "%!(NOVERB)"),
        ("%*d", "", "%!(BADWIDTH)%!d(MISSING)"),
        ("%9999999d", "7", "%!(NOVERB)%!(EXTRA int=7)"),
        ("%.9999999d", "7", "%!(NOVERB)%!(EXTRA int=7)"),
        ("%d", "7 8", "7%!(EXTRA int=8)"),
        ("%5.", "7", "%!.(int=    7)"),
    ],
)  # fmt: skip
def test_widths_and_values_by_number(form: str, arguments: str, text: str) -> None:
    """As Go's own documentation and doPrintf have it."""
    assert rendered(f"{{{{ printf `{form}` {arguments} }}}}") == text


@pytest.mark.parametrize(
    "text",
    [
        "{{ range 1000000000 }}{{ end }}",
        "{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}",
        "{{ range 1000000000 }}x{{ end }}",
        "{{ $x := `x` }}{{ range 100 }}{{ $x = print $x $x }}{{ end }}",
        "{{ $x := `x` }}{{ range 100 }}{{ $x = printf `%s%s` $x $x }}{{ end }}",
        "{{ $x := `<` }}{{ range 100 }}{{ $x = html $x $x }}{{ end }}",
        '{{ define "t" }}{{ template "t" . }}{{ end }}{{ template "t" . }}',
        '{{ define "t" }}{{ template "t" . }}{{ template "t" . }}{{ end }}{{ template "t" . }}',
        "{{ printf `%999999d%999999d%999999d` 1 2 3 | range 1000 }}{{ end }}",
        "{{ range 1000000 }}{{ $y := printf `%999999d` 1 }}{{ end }}",
        "{{ printf `%999999s` .Long }}",
        "{{ printf `%999d` .Nested }}",
        "{{ range 1000000 }}{{ $y := printf `%*d` 999999 1 }}{{ end }}",
        "{{ index .Text 0 | printf `" + "%[1]s" * 100_000 + "` }}",
        "{{ index .Text 0 | printf `%[1]*[2]d%[1]*[2]d" + "%[3]q" * 10_000 + "` 999999 1 }}",
        "{{ range 1000 }}{{ $x := print $.Long }}{{ end }}",
        "".join(f"{{{{ $v{n} := printf `%99999d` {n} }}}}" for n in range(1000)),
        "".join(f"{{{{ $v{n} := print .Text }}}}" for n in range(1000)),
    ],
)
def test_what_never_ends_is_ended(text: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError):
        parse(text).render(
            {"Long": ["x"] * 10_000, "Nested": [[[1] * 20] * 20] * 20, "Text": ["x" * 100_000]},
            Limits(max_output_chars=1 << 20, max_seconds=0.3),
        )
    assert time.thread_time() - start < 2


def test_steps_are_counted() -> None:
    with pytest.raises(TemplateError, match="more than 1000 steps"):
        parse("{{ range 5000 }}{{ end }}").render({}, Limits(max_steps=1000))


@pytest.mark.parametrize(
    "unit", ["{{", "(", "{{if 1}}", "{{(", "{{range .}}", "{{define `a`}}", "{{if 1}}{{else "]
)
def test_deep_nesting_is_refused_in_words(unit: str) -> None:
    with pytest.raises(TemplateError):
        rendered(("{{ " if unit == "(" else "") + unit * 50_000)


def test_a_long_chain_of_else_if_is_not_deep() -> None:
    chain = "".join(f"{{{{ else if eq .N {n} }}}}{n}" for n in range(1, 2000))
    assert rendered(f"{{{{ if eq .N 0 }}}}0{chain}{{{{ end }}}}", N=1999) == "1999"


@pytest.mark.parametrize(
    "unit", ["{{ .A }}\n", "text ", "{{/* c */}}", '{{ printf "%s" `a` | len }}']
)
def test_a_large_template_parses_in_linear_time(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.thread_time()
        parse(text)
        return time.thread_time() - start

    small = min(seconds(1 << 15) for _ in range(2))
    assert seconds(1 << 18) < max(8 * 8 * small, 0.5)
    with pytest.raises(TemplateError, match="more than 1048576 characters"):
        parse("x" * ((1 << 20) + 1))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=25), st.text(max_size=5))
def test_any_text_renders_or_is_refused(pieces: list[str], tail: str) -> None:
    text = "".join(pieces) + tail
    data = {"A": "a", "B": [1, {"A": None}], "t": {}}
    limits = Limits(max_output_chars=10_000, max_seconds=1)
    answers = []
    for _ in range(2):
        try:
            answers.append(parse(text).render(data, limits))
        except TemplateError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
    assert len(answers[0]) <= 20_000

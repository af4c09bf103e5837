"""Compares `server.go_template` with Go's own text/template, and freezes what Go answers.

Not part of the tests: it needs a Go toolchain. `python -m tests.tools.go_templates GO compare` runs
random templates through both; `… GO freeze` renews `tests/data/go_templates.json`, which the tests
read, from the templates in `written_templates` and as many random ones.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.go_template import TemplateError, parse
from tests.tools.written_templates import written_cases

FIXTURE = Path(__file__).parent.parent / "data" / "go_templates.json"
_SOURCE = Path(__file__).parent / "go_oracle" / "main.go"
_NUM_FROZEN = {"output": 250, "error": 120}  # random templates
# Longer ones say no more.
_MAX_FROZEN_CHARS = 500

DATA: dict[str, Any] = {
    "System": "Be brief.", "Prompt": "héllo <b>", "Empty": "", "Zero": 0, "N": 3, "Big": 12345,
    "Neg": -7, "F": 2.5, "Small": 1e-7, "Large": 1e21, "Yes": True, "No": False, "Nil": None,
    "List": [1, "two", 3.5, None, True, [4]], "Names": ["b", "a"], "None": [],
    "Map": {"k": "v", "a": 1, "nested": {"x": [1, 2]}}, "EmptyMap": {},
    "Messages": [
        {"Role": "system", "Content": "S"},
        {"Role": "user", "Content": "Hi & bye"},
        {"Role": "assistant", "Content": "", "ToolCalls": [{"Name": "f", "Arguments": {"x": 1}}]},
    ],
}  # fmt: skip

_FIELDS = [*DATA, "Missing", "Map.k", "Map.nested.x", "Map.zz", "Missing.x", "Nil.x", "N.x"]
_TEXTS = ['"a"', '"user"', '"é\\n"', "`raw`", '"%d"', '"k"', '""', '"\\x41\\u00e9"', "'a'"]
_NUMBERS = ["0", "1", "2", "-3", "1.5", "1e3", "0x1F", "010", "1_000", "'z'", "089", ".5", "5."]
_FUNCTIONS = {
    "len": (1, 1), "index": (1, 3), "slice": (1, 4), "not": (1, 1), "and": (1, 3), "or": (1, 3),
    "eq": (1, 3), "ne": (2, 2), "lt": (2, 2), "le": (2, 2), "gt": (2, 2), "ge": (2, 2),
    "print": (0, 3), "println": (0, 3), "printf": (1, 3), "json": (1, 1), "html": (1, 2),
    "js": (1, 1), "urlquery": (1, 1), "nope": (0, 1),
}  # fmt: skip
_FORMATS = [
    "%s|%v", "%d", "%5d|%-5d", "%05d", "%+d", "%x", "%X", "%#x", "%q", "%t", "%f", "%.2f", "%8.3f",
    "%e", "%g", "%v %v %v", "%s%%", "%10s|", "%-10s|", "%.3s", "%c", "%U", "%o", "%b", "%z", "%",
    "%T", "% d", "%6.2f|%s", "%06d", "%+.1e", "%x|%x", "%5t", "%5v",
]  # fmt: skip


class Generator:
    """Random templates; most of them make sense."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._variables = ["$"]

    def template(self) -> str:
        self._variables = ["$"]
        text = self._body(3)
        if self._random.random() < 0.15:
            text = '{{define "t"}}<{{.}}>{{end}}' + text + '{{template "t" .Map}}'
        if self._random.random() < 0.1:
            text = self._damaged(text)
        return text

    def _damaged(self, text: str) -> str:
        at = self._random.randrange(len(text) + 1)
        return (
            text[:at]
            + self._random.choice(["{{", "}}", "(", "|", '"', "$", ".", ""])
            + text[at + 1 :]
        )

    def _body(self, depth: int) -> str:
        return "".join(self._node(depth) for _ in range(self._random.randint(1, 3)))

    def _action(self, inner: str) -> str:
        left = self._random.choice(["{{", "{{", "{{- ", "{{ "])
        right = self._random.choice(["}}", "}}", " -}}", " }}"])
        return left + inner + right

    def _node(self, depth: int) -> str:
        kind = self._random.randrange(10 if depth else 4)
        if kind == 0:
            return self._random.choice(["text ", "\n  ", " é\n", "x", "{ }"])
        if kind < 4:
            return self._action(self._pipe(2))
        num_variables = len(self._variables)
        if kind == 4:
            name = self._random.choice(["$a", "$b"])
            text = self._action(f"{name} := {self._pipe(2)}")
            self._variables.append(name)
            return text
        if kind == 5 and len(self._variables) > 1:
            return self._action(f"{self._variables[-1]} = {self._pipe(1)}")
        text = self._block(kind, depth)
        del self._variables[num_variables:]
        return text

    def _block(self, kind: int, depth: int) -> str:
        if kind in (6, 7):
            head = self._random.choice(["", "$i, $e := ", "$e := "])
            text = self._action(f"range {head}{self._pipe(1)}")
            self._variables += [name for name in ("$i", "$e") if name in head]
            text += self._body(depth - 1)
            if self._random.random() < 0.3:
                word = self._random.choice(["break", "continue"])
                text += f"{{{{if {self._operand(1)}}}}}{{{{{word}}}}}{{{{end}}}}"
        else:
            word = "with" if kind == 8 else "if"
            text = self._action(f"{word} {self._pipe(2)}") + self._body(depth - 1)
            while self._random.random() < 0.3:
                text += self._action(f"else {word} {self._pipe(1)}") + self._body(depth - 1)
        if self._random.random() < 0.4:
            text += self._action("else") + self._body(depth - 1)
        return text + self._action("end")

    def _pipe(self, depth: int) -> str:
        text = self._command(depth)
        while self._random.random() < 0.25:
            text += " | " + self._call(0)
        return text

    def _command(self, depth: int) -> str:
        return self._call(depth) if self._random.random() < 0.5 else self._operand(depth)

    def _call(self, depth: int) -> str:
        name = self._random.choice(list(_FUNCTIONS))
        if name == "nope" and self._random.random() < 0.9:
            name = "len"
        low, high = _FUNCTIONS[name]
        words = [self._operand(depth) for _ in range(self._random.randint(low, high))]
        if name == "printf":
            words[0] = json.dumps(self._random.choice(_FORMATS))
        return " ".join([name, *words])

    def _operand(self, depth: int) -> str:  # noqa: PLR0911 - one return for each kind
        kind = self._random.randrange(9)
        if kind < 3:
            return "." + self._random.choice(_FIELDS)
        if kind == 3:
            return self._random.choice(_TEXTS)
        if kind == 4:
            return self._random.choice(_NUMBERS)
        if kind == 5:
            return self._random.choice(["true", "false", "nil", ".", "."])
        if kind == 6:
            suffix = self._random.choice(["", "", "", ".Role", ".k"])
            return self._random.choice(self._variables) + suffix
        if kind == 7 and depth:
            suffix = self._random.choice(["", "", "", ".x"])
            return f"({self._pipe(depth - 1)}){suffix}"
        return ".Messages"


def ask_go(go: str, cases: Sequence[tuple[str, Any]]) -> list[dict[str, str]]:
    """What Go makes of each case: "output", and "error" if there is one."""
    lines = (json.dumps({"template": text, "data": data}) for text, data in cases)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "oracle"
        subprocess.run([go, "build", "-o", program, _SOURCE], check=True)
        done = subprocess.run(
            [program], input="\n".join(lines), capture_output=True, text=True, check=True
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def render(text: str, data: Any) -> dict[str, str]:
    """The same of our own."""
    try:
        return {"output": parse(text).render(data)}
    except TemplateError as error:
        return {"output": "", "error": str(error)}


def differs(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Errors need not have the same words, but there must be one, and in the same line."""
    if ("error" in ours) != ("error" in theirs):
        return True
    if "error" not in ours:
        return ours["output"] != theirs["output"]
    return ours["error"].split(":")[:3] != theirs["error"].split(":")[:3]


def compare(go: str, num_cases: int, seed: int) -> int:
    generator = Generator(seed)
    cases = [(generator.template(), DATA) for _ in range(num_cases)]
    num_different = num_errors = num_same_words = 0
    for (text, data), theirs in zip(cases, ask_go(go, cases), strict=True):
        ours = render(text, data)
        num_errors += "error" in theirs
        num_same_words += "error" in theirs and ours == theirs
        if differs(ours, theirs):
            num_different += 1
            if num_different <= 12:
                for each in (text, ours, theirs):
                    print(f"  {each!r:.800}")
    print(
        f"{num_cases} templates, {num_different} differ; "
        f"{num_errors} errors, {num_same_words} of them in the same words"
    )
    return num_different


def freeze(go: str) -> None:
    """What is known to differ is left out, and named."""
    generator = Generator(1)
    cases = written_cases() + [(generator.template(), DATA) for _ in range(20 * 370)]
    num_wanted = dict(_NUM_FROZEN)
    frozen = []
    for (text, data), answer in zip(cases, ask_go(go, cases), strict=True):
        is_random = data is DATA
        kind = "error" if "error" in answer else "output"
        if is_random and (not num_wanted[kind] or len(f"{text}{answer}") > _MAX_FROZEN_CHARS):
            continue
        if differs(render(text, data), answer):
            print(f"left out: {text!r:.200}")
            continue
        num_wanted[kind] -= is_random
        frozen.append({"template": text, **({} if is_random else {"data": data}), **answer})
    FIXTURE.parent.mkdir(exist_ok=True)
    text = json.dumps({"data": DATA, "cases": frozen}, ensure_ascii=False, indent=1)
    FIXTURE.write_text(text + "\n", encoding="utf-8")
    print(f"{FIXTURE}: {len(frozen)} cases")


if __name__ == "__main__":
    if sys.argv[2] == "freeze":
        freeze(sys.argv[1])
    else:
        sys.exit(compare(sys.argv[1], int(sys.argv[3]), int(sys.argv[4])) > 0)

"""Schemas that would end the process, or make another number of one, are refused before."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rwkv_core.errors import GrammarError
from rwkv_core.grammar import GrammarVocabulary, json_grammar
from rwkv_core.large_stack import run_with_large_stack
from rwkv_core.schema_limits import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_PATTERN_CHARS,
    MAX_REFERENCES,
    check_schema,
)
from rwkv_core.schema_trial import CompilerLimits, SchemaTrial
from rwkv_core.tokenizer import WorldTokenizer
from tests.tools.waiting import wait_until

Schema = dict[str, Any]

BYTES = WorldTokenizer([None, *(bytes([value]) for value in range(256))])
SMALLEST = -(1 << 63)
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Compiles what stands on its input, a schema in each line, as the server would: in a thread.
CHILD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from tests.core.test_schema_limits import outcome
with ThreadPoolExecutor(1) as pool:
    for line in sys.stdin:
        print(pool.submit(outcome, json.loads(line)).result(), flush=True)
"""


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(BYTES, 257)


def outcome(schema: Schema) -> str:
    try:
        json_grammar(GrammarVocabulary(BYTES, 257), schema)
    except GrammarError as error:
        return str(error)
    return "compiled"


def in_a_child(schemas: list[Schema]) -> list[str]:
    """What becomes of them, where a crash is no end of the tests."""
    lines = "".join(f"{json.dumps(each)}\n" for each in schemas)
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=lines, capture_output=True, text=True, timeout=300,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    outcomes = done.stdout.splitlines()
    ended_by = json.dumps(schemas[len(outcomes)])[:100] if len(outcomes) < len(schemas) else ""
    assert done.returncode == 0, (done.returncode, ended_by, done.stderr[-300:])
    return outcomes


def nested(num_times: int, wrap: Callable[[Schema], Schema], inner: Schema) -> Schema:
    for _ in range(num_times):
        inner = wrap(inner)
    return inner


def chained(num_links: int, link: Callable[[Schema], Schema]) -> Schema:
    """Definitions each of which refers to the next."""
    links = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(num_links)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{num_links}": {"type": "null"}}}


def test_numbers_that_have_ended_the_process() -> None:
    schemas: list[Schema] = [
        {"enum": [SMALLEST]}, {"enum": [SMALLEST + 1]}, {"const": {"a": [SMALLEST]}},
        {"type": "integer", "minimum": -1e300, "maximum": -1e300},
    ]  # fmt: skip
    assert all("too large" in each for each in in_a_child(schemas))


WRAPPERS: list[tuple[int, Callable[[Schema], Schema]]] = [
    (1, lambda inner: {"type": "array", "items": inner}),
    (1, lambda inner: {"type": "object", "additionalProperties": inner}),
    (1, lambda inner: {"items": inner}),
    (2, lambda inner: {"type": "object", "properties": {"a": inner}}),
    (2, lambda inner: {"type": "object", "patternProperties": {"a": inner}}),
    (2, lambda inner: {"type": "array", "prefixItems": [inner]}),
    (2, lambda inner: {"allOf": [inner]}),
    (2, lambda inner: {"type": "array", "anyOf": [inner, {"type": "null"}]}),
    (2, lambda inner: {"oneOf": [inner]}),
]


def test_schemas_at_the_limits_do_not_end_the_process() -> None:
    """Whether they compile or not: their recursion is the deepest that there can be."""
    schemas = [
        chained(
            MAX_REFERENCES - 1,
            lambda inner, num=num, wrap=wrap: nested((MAX_DEPTH - 4) // num, wrap, inner),  # type: ignore[misc]
        )
        for num, wrap in WRAPPERS
    ]
    for schema in schemas:
        check_schema(schema)
    half = MAX_PATTERN_CHARS // 2
    patterns = [
        "(" * 200 + "a" + ")" * 200, "a?" * half, "a|" * half, "(a|b){99999}", "a" + "{1,9}" * 100,
        "[" * 99 + "a" + "]" * 99,
    ]  # fmt: skip
    schemas += [{"type": "string", "pattern": each} for each in patterns]
    schemas += [{"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}, {"type": "integer", "multipleOf": 99.7}]
    assert len(in_a_child(schemas)) == len(schemas)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (chained(MAX_REFERENCES + 1, lambda inner: inner), "at most 300"),
        (nested(MAX_DEPTH, lambda inner: {"items": inner}, {}), "at most 64 levels"),
        (nested(100_000, lambda inner: {"items": inner}, {}), "at most 64 levels"),
        ({"const": "x", "default": nested(5000, lambda inner: {"a": inner}, {})}, "64 levels"),
        ({"type": "string", "pattern": "a" * (MAX_PATTERN_CHARS + 1)}, "at most 10000 characters"),
        ({"patternProperties": {"a" * (MAX_PATTERN_CHARS + 1): {}}}, "at most 10000 characters"),
        ({"enum": ["\ud800"]}, "surrogate"),
        ({"properties": {"\udfff": {}}}, "surrogate"),
        ({"enum": [1 << 63]}, "9.223e.18 in it is too large"),
        ({"enum": [MAX_INTEGER + 1]}, "too large"),
        ({"const": [{"a": -MAX_INTEGER - 1}]}, "-9.007e.15 in it is too large"),
        ({"enum": [10**5000]}, "too large"),
        ({"enum": [1e300]}, "too large"),
        ({"enum": [123456789.12345679]}, "123456789.12345679 in it has too many digits"),
        ({"enum": [5e-324]}, "too many digits"),
        ({"enum": [float("inf")]}, "no number"),
        ({"minimum": float("nan")}, "no number"),
        ({"default": 1 << 64}, "at most 63 bits"),
        # Took hours.
        ({"type": "integer", "multipleOf": 206341.65}, "at most 10000"),
        ({"allOf": [{"multipleOf": 197}, {"multipleOf": 89}]}, "at most 10000"),
        ({"multipleOf": 1_000_000}, "at most 10000"),
        ({"multipleOf": 0}, "greater than 0"),
        ({"multipleOf": -5}, "greater than 0"),
    ],
)
def test_refusals_name_the_limit(vocabulary: GrammarVocabulary, schema: Schema, words: str) -> None:
    with pytest.raises(GrammarError, match=words) as refusal:
        json_grammar(vocabulary, schema)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("number", [SMALLEST, 1 << 63, 1 << 64, -1e300, MAX_INTEGER + 1])
def test_limits_of_numbers_are_numbers(
    vocabulary: GrammarVocabulary, key: str, number: float
) -> None:
    with pytest.raises(GrammarError, match="too large"):
        json_grammar(vocabulary, {"type": "integer", key: number})


@pytest.mark.parametrize(
    "number",
    [MAX_INTEGER, -MAX_INTEGER, MAX_INTEGER - 1, 0, -1, 0.1, -2.5, 1e-7, 0.123456789012345],
)
def test_numbers_within_the_limits_are_kept(vocabulary: GrammarVocabulary, number: float) -> None:
    for schema in ({"const": number}, {"enum": [number, "x"]}):
        match = json_grammar(vocabulary, schema).begin()
        text = ""
        while not match.is_over:
            allowed = [chr(i - 1) for i in match.mask().nonzero().squeeze(1).tolist() if i > 1]
            written = [each for each in allowed if each not in ' \n"']
            assert len(written) == 1, (text, allowed)
            match.accept_bytes(written[0].encode())
            text += written[0]
            if json.loads(text if text not in "-" and text[-1] != "." else "null") == number:
                break
        assert json.loads(text) == number


def test_annotations_may_hold_large_numbers_and_names_anything(
    vocabulary: GrammarVocabulary,
) -> None:
    schema = {
        "type": "object",
        "default": {"a": (1 << 63) - 1, "b": 1e300},
        "properties": {"maximum": {"type": "string"}, "$ref": {"type": "null"}},
    }
    json_grammar(vocabulary, schema)


def test_the_compilers_words_are_short(vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(GrammarError, match=r"regex parse error.*nest") as refusal:
        json_grammar(vocabulary, {"type": "string", "pattern": "(" * 1000 + ")" * 1000})
    assert len(str(refusal.value)) < 500


def test_a_large_stack_returns_and_raises_and_is_given_back() -> None:
    before = threading.stack_size()
    assert run_with_large_stack(threading.stack_size) in (before, 256 << 20)
    with pytest.raises(ZeroDivisionError):
        run_with_large_stack(lambda: 1 // 0)
    assert threading.stack_size() == before


def pair(kind: str) -> Schema:
    """Two definitions that need each other; `kind` says how the second holds the first."""
    held = {"$ref": "#/$defs/a"}
    kinds: dict[str, Schema] = {
        "required": {"type": "object", "properties": {"x": held}, "required": ["x"]},
        "optional": {"type": "object", "properties": {"x": held}},
        "listed": {"type": "array", "items": held, "minItems": 1},
        "empty": {"type": "array", "items": held},
        "nullable": {"anyOf": [held, {"type": "null"}]},
        "nothing else": {"anyOf": [held, {"type": "array", "items": held, "minItems": 1}]},
        "prefixed": {"type": "array", "prefixItems": [{"type": "null"}, held], "minItems": 2},
        "any": {"properties": {"x": held}, "required": ["x"]},
    }
    first = {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]}
    return {"$ref": "#/$defs/a", "$defs": {"a": first, "b": kinds[kind]}}


ENDLESS = ("required", "listed", "nothing else", "prefixed")


@pytest.mark.parametrize("kind", [*ENDLESS, "optional", "empty", "nullable", "any"])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_what_refers_to_itself_without_end_is_refused(
    vocabulary: GrammarVocabulary, kind: str, is_hidden: bool
) -> None:
    """Also where it may be left out: a reply that has begun it would never end."""
    schema = pair(kind)
    if is_hidden:
        inner = {"$ref": schema["$ref"]}
        schema = {"type": "object", "properties": {"t": inner}, "$defs": schema["$defs"]}
    if kind in ENDLESS:
        with pytest.raises(GrammarError, match="refers to itself without end"):
            json_grammar(vocabulary, schema)
    else:
        json_grammar(vocabulary, schema)


def test_nothing_but_itself_is_refused_and_long_chains_are_not(
    vocabulary: GrammarVocabulary,
) -> None:
    for schema in ({"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"anyOf": [{"$ref": "#"}]}):
        with pytest.raises(GrammarError, match="refers to itself without end"):
            json_grammar(vocabulary, schema)

    def required(inner: Schema) -> Schema:
        return {"type": "object", "properties": {"a": inner}, "required": ["a"]}

    json_grammar(vocabulary, chained(200, required))


def test_a_schema_that_takes_long_is_ended_and_the_next_one_is_served() -> None:
    limits = CompilerLimits(10_000, 50_000, 10_000_000)
    trial = SchemaTrial(limits, max_seconds=2)
    slow = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(12_000)}}
    try:
        with pytest.raises(GrammarError, match=r"takes longer than 2 s, .* simplify it"):
            trial.check(slow)
        wait_until(lambda: passes(trial, {"type": "object"}))  # a busy machine starts it slowly
        with pytest.raises(GrammarError, match="regex parse error"):
            trial.check({"type": "string", "pattern": "("})
    finally:
        trial.close()


def passes(trial: SchemaTrial, schema: Schema) -> bool:
    try:
        trial.check(schema)
    except GrammarError:
        return False
    return True

"""Grammars over tokens: whatever is drawn under their masks is JSON that fits its schema."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_core.chat.call_constraint import CallConstraint, call_grammar
from rwkv_core.chat.messages import Think
from rwkv_core.chat.prompt_format import PromptFormat, choose_prompt_format
from rwkv_core.chat.reply import (
    Preamble,
    ReplyKind,
    ReplyParser,
    TaggedReplyParser,
    format_preamble,
    tagged_preamble,
)
from rwkv_core.chat.reply_stages import ContentConstraint
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.checkpoint.architecture import read_config
from rwkv_core.constraint import TokenConstraint
from rwkv_core.demo.evaluate import EMBEDDED
from rwkv_core.errors import GenerationError, GrammarError
from rwkv_core.grammar import GrammarVocabulary, grammar_vocabulary, json_grammar
from rwkv_core.loading import find_tokenizer
from rwkv_core.sampler import Sampler, SamplingOptions
from rwkv_core.schema_limits import MAX_INTEGER
from rwkv_core.tokenizer import HuggingFaceTokenizer, Tokenizer, WorldTokenizer
from tests.core.test_loading import write_tokenizer

G1 = choose_prompt_format("rwkv7-g1")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
        },
    },
}
ADD = {"type": "function", "function": {"name": "add", "parameters": {
    "type": "object", "properties": {"a": {"type": "integer"}}}}}  # fmt: skip
# Clients send schemas that no compiler takes.
STRANGE = {"type": "function", "function": {"name": 'say "hi"', "parameters": {
    "type": "object", "properties": {"x": {"type": "no such type"}}}}}  # fmt: skip


def _demo() -> tuple[Tokenizer, int]:
    checkpoint = open_checkpoint(EMBEDDED)
    try:
        config = read_config(checkpoint)
        return find_tokenizer(checkpoint, config), config.vocab_size
    finally:
        checkpoint.close()


@pytest.fixture(scope="module", params=["world", "demo", "hugging face"])
def tokenizer_and_size(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, int]:
    """The last one has no end of text, and fewer tokens than its model has rows."""
    if request.param == "world":
        return WorldTokenizer.world(), 65536
    if request.param == "demo":
        return _demo()
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, 300)
    return HuggingFaceTokenizer((folder / "tokenizer.json").read_text()), 320


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the engine has it: for vectors this short more threads are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_and_size: tuple[Tokenizer, int]) -> Tokenizer:
    return tokenizer_and_size[0]


@pytest.fixture(scope="module")
def vocabulary(tokenizer_and_size: tuple[Tokenizer, int]) -> GrammarVocabulary:
    return grammar_vocabulary(*tokenizer_and_size)


def follow(constraint: TokenConstraint, tokenizer: Tokenizer, text: str) -> str:
    """As much of a text as may be written; "" only for none of it."""
    written: list[int] = []
    for token_id in tokenizer.encode(text):
        mask = constraint.mask()
        if mask is not None and not mask[token_id]:
            break
        constraint.accept(token_id)
        written.append(token_id)
    return tokenizer.decode(written)


def write(
    constraint: TokenConstraint,
    vocabulary: GrammarVocabulary,
    tokenizer: Tokenizer,
    seed: int,
    *,
    most: int = 120,
    prefer: Callable[[torch.Tensor], None] = lambda logits: None,
) -> tuple[str, bool]:
    """What random weights would write at temperature 2, and whether it ended by itself."""
    generator = torch.Generator().manual_seed(seed)
    options = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, seed=seed)
    sampler = Sampler(options, vocabulary.vocab_size, [], token_bytes=tokenizer.token_bytes)
    written = b""
    for _ in range(most):
        logits = torch.randn(vocabulary.vocab_size, generator=generator) * 3
        prefer(logits)
        token_id = sampler.sample(logits, constraint.mask())
        if token_id in tokenizer.eos_token_ids:
            return written.decode(), True
        constraint.accept(token_id)
        written += tokenizer.token_bytes(token_id)
        if constraint.is_complete:
            return written.decode(), True
    return written.decode("utf-8", "replace"), False


def _object(properties: dict[str, Any], required: list[str], is_open: bool) -> dict[str, Any]:
    kept = [name for name in required if name in properties]
    return {
        "type": "object", "properties": properties, "required": kept,
        "additionalProperties": is_open,
    }  # fmt: skip


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=6)
INTEGERS = st.integers(-MAX_INTEGER, MAX_INTEGER)
LEAVES = st.one_of(
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
              st.integers(-500, 500), st.integers(0, 500)),
    st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 8)),
    st.builds(lambda names: {"enum": names},
              st.lists(st.one_of(NAMES, INTEGERS, st.booleans(), st.none()), min_size=1,
                       max_size=4)),
    st.sampled_from([
        {"type": "boolean"}, {"type": "null"}, {"const": {"a": [1, "é\n"]}},
        {"type": "string", "pattern": "^[a-c]{1,4}$"}, {"type": ["boolean", "null"]},
        {"type": "string", "format": "date"},
        {"anyOf": [{"type": "integer", "maximum": 99, "minimum": 0}, {"type": "null"}]},
    ]),
)  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most},
                  inner, st.integers(0, 3)),
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=4),
                  st.lists(NAMES, max_size=3), st.just(False)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schema=SCHEMAS, seed=st.integers(0, 1 << 30))
def test_what_ends_by_itself_fits_its_schema(
    schema: dict[str, Any], seed: int, vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    grammar = json_grammar(vocabulary, schema)
    text, is_whole = write(ContentConstraint(grammar, Preamble()), vocabulary, tokenizer, seed)
    if is_whole:
        jsonschema.validate(json.loads(text), schema)
        assert text == text.rstrip()
        assert len(text) - len(text.lstrip()) <= 2


def test_short_schemas_do_end(vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> None:
    """Or else the property says nothing."""
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
    grammar = json_grammar(vocabulary, schema)
    for seed in range(5):
        constraint = ContentConstraint(grammar, Preamble())
        assert write(constraint, vocabulary, tokenizer, seed)[1]


def test_a_thought_is_free_and_the_content_is_not(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    grammar = json_grammar(vocabulary, PERSON)
    thought = 'Hm, {"a"}, a </b>, User: and\n\nUsers.'
    reply = f'>\n{thought}</think>\n{{"name": "A\\n\\nUser: b", "age": 5}}'
    for closed in ("</think>", "</think>\n\n", "</think> "):
        constraint = ContentConstraint(grammar, format_preamble(G1, Think.ON), G1.stops)
        text = reply.replace("</think>\n", closed)
        assert follow(constraint, tokenizer, text) == text
        assert constraint.is_complete
    for wrong in ("no tag", ">x\n\nUser:", ">x</think>Sure", '>x</think>\n{"age"', ">x</think>{}"):
        constraint = ContentConstraint(grammar, format_preamble(G1, Think.ON), G1.stops)
        assert follow(constraint, tokenizer, wrong) != wrong
        assert not constraint.is_complete


@pytest.mark.parametrize("think", [Think.ON, Think.OFF, None])
def test_a_reply_cannot_end_before_its_content(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer, think: Think | None
) -> None:
    """A model that would rather end its thought by a stop, or the reply, or babble tags."""
    grammar = json_grammar(vocabulary, {"type": "array", "maxItems": 0})
    words = (b"", b"\n\n", b"User", b":", b"</", b"think", b">", b"User:", b"\n")
    liked = [index for index, token in enumerate(vocabulary.token_bytes) if token in words]

    def prefer(logits: torch.Tensor) -> None:
        logits[liked] += 25

    num_whole = 0
    for seed in range(6):
        constraint = ContentConstraint(grammar, format_preamble(G1, think), G1.stops)
        text, is_whole = write(constraint, vocabulary, tokenizer, seed, most=60, prefer=prefer)
        parts = ReplyParser(G1, think).push(text) if think else []
        content = "".join(part.text for part in parts if part.kind is ReplyKind.CONTENT)
        if is_whole:
            num_whole += 1
            assert json.loads(content if think else text) == []
        assert "\n\nUser:" not in text
    assert num_whole == 6 or think is Think.ON


def test_white_space_is_bounded(vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> None:
    """Small models love to write nothing else."""
    flags = {"type": "array", "items": {"type": "boolean"}, "minItems": 8}
    grammar = json_grammar(vocabulary, flags)
    blank = [i for i, token in enumerate(vocabulary.token_bytes) if token and not token.strip()]

    def prefer(logits: torch.Tensor) -> None:
        logits[blank] += 50

    constraint = ContentConstraint(grammar, Preamble())
    text, _ = write(constraint, vocabulary, tokenizer, 1, prefer=prefer)
    assert len(text.split()) > 3
    grammar = json_grammar(vocabulary, {"type": "object"})
    for indent in ('{"a": 1, "b": [1, 2]}', '{\n    "a": {\n        "b": []\n    }\n}', '{"a":1}'):
        constraint = ContentConstraint(grammar, Preamble())
        assert follow(constraint, tokenizer, indent) == indent
        assert constraint.is_complete


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "foo"}, "Invalid type: foo"),
        ({"$ref": "#/none"}, "Pointer '/none' does not exist"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(2600)}}, "items"),
        ({"description": "x" * (1 << 20)}, "at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_at_once(
    vocabulary: GrammarVocabulary, schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(GrammarError, match=words.replace("[", r"\[")):
        json_grammar(vocabulary, schema)


def test_a_deep_schema_is_refused(vocabulary: GrammarVocabulary) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError):
        json_grammar(vocabulary, schema)


def test_a_clients_own_compiler_options_change_nothing(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    options = {"item_separator": ";", "whitespace_pattern": "x*", "lenient": True}
    grammar = json_grammar(vocabulary, {"type": "array", "x-guidance": options})
    constraint = ContentConstraint(grammar, Preamble())
    assert follow(constraint, tokenizer, "[1, 2]") == "[1, 2]"


def test_a_token_that_the_mask_forbids_is_an_error(vocabulary: GrammarVocabulary) -> None:
    match = json_grammar(vocabulary, {"type": "object"}).begin()
    with pytest.raises(GenerationError, match="grammar"):
        match.accept_bytes(b"x")


CALL = '```json\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n```'


def calls(vocabulary: GrammarVocabulary, tokenizer: Tokenizer, think: Think) -> CallConstraint:
    assert G1.tools is not None
    grammar = call_grammar(vocabulary, G1.tools, [WEATHER, ADD, STRANGE])
    assert grammar is not None
    return CallConstraint(grammar, tokenizer, G1, think)


@pytest.mark.parametrize("before", ["", "\n", "thought </think>\n", "thought\n```json\n</think>"])
@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL.replace('": ', '":').replace(", ", ","),
        f"{CALL}\n{CALL}",
        '```json\n{"name": "add", "arguments": {"a": 12}}\n```',
        '```json\n{"name": "say \\"hi\\"", "arguments": {"any": ["thing"]}}\n```',
        '```json\n{\n  "name": "add",\n  "arguments": {}\n}\n```',
        # What is no call is free.
        "Sure. " + CALL.replace("get_weather", "get_time"),
        '```json\n{"age": 5, "name": "Bob"}\n```',
        "```json\n[1, 2]\n```",
        '```python\nx = {"name": "x"}\n```',
        f'{CALL}\nand then ```json\n{{"name": "x"}}\n```',
    ],
)
def test_calls_and_text_that_may_be_written(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer, before: str, call: str
) -> None:
    think = Think.ON if "think" in before else Think.OFF
    text = f">{before}{call}"
    assert follow(calls(vocabulary, tokenizer, think), tokenizer, text) == text


@pytest.mark.parametrize(
    "call",
    [
        CALL.replace("get_weather", "get_time"),
        CALL.replace("Oslo", "Bonn"),
        CALL.replace("city", "town"),
        CALL.replace("arguments", "parameters"),
        CALL.replace('"Oslo"', "5"),
        CALL.replace("}}", "}, 5}"),
        CALL.replace("\n```", "\nmore"),
        f"{CALL}\n{CALL.replace('get_weather', 'get_time')}",
    ],
)
def test_calls_that_may_not_be_written(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer, call: str
) -> None:
    for think, before in ((Think.OFF, ">\n"), (Think.ON, ">a thought</think>")):
        text = before + call
        assert follow(calls(vocabulary, tokenizer, think), tokenizer, text) != text


def test_a_call_that_has_begun_is_one(vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> None:
    schemas = {"get_weather": WEATHER, "add": ADD}
    for seed in range(10):
        constraint = calls(vocabulary, tokenizer, Think.OFF)
        follow(constraint, tokenizer, '>```json\n{"name":')
        written, num_tokens = "", 0
        choices = random.Random(seed)
        while "\n```" not in written and len(written) < 2000:
            mask = constraint.mask()
            assert mask is not None
            token_id = choices.choice(mask.nonzero().squeeze(1).tolist())
            if token_id in vocabulary.eos_token_ids:  # a long one may be left
                assert num_tokens > 256
                break
            num_tokens += 1
            constraint.accept(token_id)
            written += tokenizer.decode([token_id])
        if "\n```" in written:
            call = json.loads('{"name":' + written.removesuffix("\n```"))
            tool: Any = schemas.get(call["name"], {"function": {}})
            parameters = tool["function"].get("parameters", {"type": "object"})
            jsonschema.validate(call["arguments"], parameters)


def test_a_format_without_tags_begins_with_its_content(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    fmt: PromptFormat = G1.without_thinking()
    grammar = json_grammar(vocabulary, PERSON)
    constraint = ContentConstraint(grammar, format_preamble(fmt, Think.OFF))
    text = ' {"name": "é😀", "age": -5}'
    assert follow(constraint, tokenizer, text) == text
    assert constraint.is_complete


JSON_END = '{"name": "Bo", "age": 5}'


@pytest.mark.parametrize(
    ("prompt", "think", "reply", "thought"),
    [
        ("a\n<think>", Think.ON, f"hm</think>\n{JSON_END}", "hm"),
        ("a\n<think>\n", Think.ON, f"hm</think>{JSON_END}", "hm"),
        ("a <thi", Think.ON, f"nk>hm</think>{JSON_END}", "hm"),
        ("a <think", Think.OFF, f"></think>\n{JSON_END}", ""),
        ("a <think>", Think.OFF, f"</think>{JSON_END}", ""),
        ("assistant\n", Think.ON, f"<think>hm</think>\n{JSON_END}", "hm"),
        ("assistant\n", Think.HIGH, f"<think>hm</think>\n{JSON_END}", "hm"),
        ("assistant\n", Think.OFF, JSON_END, ""),
        ("a <think>\n\n</think>\n\n", Think.ON, JSON_END, ""),
        ("a <think></thi", Think.OFF, f"nk>{JSON_END}", ""),
        ("a <think></think", Think.ON, f">{JSON_END}", ""),
    ],
)
def test_what_a_template_has_left_open_comes_before_the_content(
    vocabulary: GrammarVocabulary,
    tokenizer: Tokenizer,
    prompt: str,
    think: Think,
    reply: str,
    thought: str,
) -> None:
    preamble = tagged_preamble(prompt, "<think>", "</think>", think)
    grammar = json_grammar(vocabulary, PERSON)
    constraint = ContentConstraint(grammar, preamble)
    assert follow(constraint, tokenizer, reply) == reply
    assert constraint.is_complete
    byte_by_byte = ContentConstraint(grammar, preamble)  # however it is cut into tokens
    for token_id in vocabulary.byte_tokens(reply.removesuffix(JSON_END).encode()) or []:
        mask = byte_by_byte.mask()
        assert mask is not None
        assert mask[token_id]
        byte_by_byte.accept(token_id)
    assert follow(byte_by_byte, tokenizer, JSON_END) == JSON_END
    assert byte_by_byte.is_complete
    for wrong in (f"x{reply}", f" {reply[1:]}"):
        if preamble.literal:
            assert follow(ContentConstraint(grammar, preamble), tokenizer, wrong) == ""
    parser = TaggedReplyParser(prompt, "<think>", "</think>")
    parts = [*parser.push(reply), *parser.flush()]
    read = {kind: "".join(each.text for each in parts if each.kind is kind) for kind in ReplyKind}
    assert read == {ReplyKind.THINKING: thought, ReplyKind.CONTENT: JSON_END}


def test_without_a_mode_of_thinking_a_reply_is_all_content() -> None:
    assert tagged_preamble("a <think>", "<think>", "</think>", None) == Preamble()
    assert format_preamble(G1, None) == Preamble()

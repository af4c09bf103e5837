"""The words of Go's JSON decoder, as encoding/json of Go 1.26 has them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.errors import ApiError
from server.wire.go_decode import decode
from server.wire.go_json import parse_body
from server.wire.schemas import ChatRequest, GenerateRequest

_json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"{", "unexpected EOF"),
        (b'{"model"', "unexpected EOF"),
        (b'{"model": "x', "unexpected EOF"),
        (b'{"model": tru', "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"{model: 1}", "invalid character 'm' looking for beginning of object key string"),
        (b"{'a': 1}", "invalid character '\\'' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a": 1 "b"}', "invalid character '\"' after object key:value pair"),
        (b'{"a": 1,}', "invalid character '}' looking for beginning of object key string"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'{"a": [1, ]}', "invalid character ']' looking for beginning of value"),
        (b'{"a": trux}', "invalid character 'x' in literal true (expecting 'e')"),
        (b'{"a": nil}', "invalid character 'i' in literal null (expecting 'u')"),
        (b'{"a": -x}', "invalid character 'x' in numeric literal"),
        (b'{"a": 1.}', "invalid character '}' after decimal point in numeric literal"),
        (b'{"a": 1e}', "invalid character '}' in exponent of numeric literal"),
        (b'{"a": 01}', "invalid character '1' after object key:value pair"),
        (b'{"a": NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"a": -Infinity}', "invalid character 'I' in numeric literal"),
        (b'{"a": "\n"}', "invalid character '\\n' in string literal"),
        (b'{"a": "\\x"}', "invalid character 'x' in string escape code"),
        (b'{"a": "\\u12g4"}', "invalid character 'g' in \\u hexadecimal character escape"),
        (b"\xef\xbb\xbf{}", "invalid character '\u00ef' looking for beginning of value"),
        (b"[" * 100_000, "invalid character '[' exceeded max depth"),
    ],
)
def test_syntax_errors(body: bytes, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert (caught.value.status, str(caught.value)) == (400, words)


@settings(deadline=None, max_examples=50)
@given(_json_values)
def test_json_is_read_as_it_is_meant(value: Any) -> None:
    assert parse_body(json.dumps(value).encode()) == value
    assert parse_body(json.dumps(value, ensure_ascii=False).encode() + b" }]") == value


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=30))
def test_any_bytes_give_a_value_or_an_api_error(body: bytes) -> None:
    with suppress(ApiError):
        parse_body(body)


def test_text_is_always_encodable() -> None:
    assert parse_body(b'"\\ud83d\\ude00 \\ud83d \xff"') == "\U0001f600 \ufffd \ufffd"


@pytest.mark.parametrize(
    ("data", "what", "path", "kind"),
    [
        ({"messages": "hi"}, "string", "ChatRequest.messages", "[]api.Message"),
        ({"messages": ["hi"]}, "string", "ChatRequest.messages", "api.Alias"),
        ({"messages": [{"content": ["x"]}]}, "array", "ChatRequest.messages.content", "string"),
        ({"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]}, "string",
         "ChatRequest.messages.tool_calls.function.arguments", "api.ToolCallFunctionArguments"),
        ({"model": 5}, "number", "ChatRequest.model", "string"),
        ({"stream": "no"}, "string", "ChatRequest.stream", "bool"),
        ({"tools": {}}, "object", "ChatRequest.tools", "api.Tools"),
        ({"tools": [{"function": 1}]}, "number", "Tool.tools.function", "api.ToolFunction"),
        ({"options": [1]}, "array", "ChatRequest.options", "map[string]interface {}"),
        ({"top_logprobs": 1.5}, "number 1.5", "ChatRequest.top_logprobs", "int"),
        # The first in the text is the one that is named.
        ({"stream": "x", "model": 5}, "string", "ChatRequest.stream", "bool"),
        ({"model": 5, "stream": "x"}, "number", "ChatRequest.model", "string"),
    ],
)  # fmt: skip
def test_wrong_types_in_a_chat(data: Any, what: str, path: str, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(ChatRequest, data)
    words = f"json: cannot unmarshal {what} into Go struct field {path} of type {kind}"
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("data", "what", "field", "kind"),
    [
        ({"context": ["a"]}, "string", "context", "int"),
        ({"context": 5}, "number", "context", "[]int"),
        ({"images": "x"}, "string", "images", "[]api.ImageData"),
        ({"_debug_render_only": 1}, "number", "_debug_render_only", "bool"),
    ],
)
def test_wrong_types_in_a_generation(data: Any, what: str, field: str, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(GenerateRequest, data)
    path = f"GenerateRequest.{field}"
    words = f"json: cannot unmarshal {what} into Go struct field {path} of type {kind}"
    assert str(caught.value) == words


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(ApiError, match="array into Go value of type api"):
        decode(ChatRequest, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"model": 5, "think": "maybe"},  # stops Go at once, the wrong type before it does not
            'invalid think value: "maybe" (must be "high", "medium", "low", "max", true, or false)',
        ),
        (
            {"think": 1},
            'think must be a boolean or string ("high", "medium", "low", "max", true, or false)',
        ),
        ({"keep_alive": "5"}, 'time: missing unit in duration "5"'),
        ({"keep_alive": "5x"}, 'time: unknown unit "x" in duration "5x"'),
        ({"keep_alive": ""}, 'time: invalid duration ""'),
        ({"keep_alive": True}, "Unsupported type: 'bool'"),
        ({"keep_alive": [1]}, "Unsupported type: '[]interface {}'"),
        ({"images": ["@"]}, "illegal base64 data at input byte 0"),
    ],
)
def test_types_with_words_of_their_own(data: Any, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode(GenerateRequest, data)
    assert str(caught.value) == words


def test_keys_in_any_case_null_and_unknown_fields() -> None:
    request = decode(
        ChatRequest, {"MODEL": "x", "stream": None, "keep_alive": None, "no_such": [1]}
    )
    assert (request.model, request.stream, request.keep_alive) == ("x", True, None)
    assert decode(ChatRequest, None).model == ""


_names = st.sampled_from(
    ("role", "ROLE", "content", "Content", "thinking", "images", "tool_calls", "tool_name", "other")
)
_message = st.dictionaries(
    _names, st.none() | st.text(max_size=3) | st.integers() | st.lists(st.none(), max_size=2)
)


@settings(deadline=None, max_examples=200)
@given(st.lists(_message | st.none(), max_size=4))
def test_keys_as_they_should_be_change_nothing(messages: list[dict[str, Any] | None]) -> None:
    """What needs no matching of keys is read, or refused, as what needs it."""

    def outcome(data: Any) -> object:
        try:
            return decode(ChatRequest, data).model_dump()
        except ApiError as error:
            return str(error)

    unusual = [each and {**each, "unknown": 1} for each in messages]
    assert outcome({"messages": messages}) == outcome({"messages": unusual})

"""Whatever is sent to the routes of other APIs: a reply or an error that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.store.manifests import MODEL_TYPE
from server.store.names import ModelName
from server.store.stored_model import ModelParts, write_model
from tests.tools.running_server import DEMO, RunningServer

SHORT = "short-demo"  # the demo model, whose replies end at once

texts = st.text(max_size=6)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def sometimes(
    usual: st.SearchStrategy[Any], unusual: st.SearchStrategy[Any] = anything
) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, so that the rest of the request is looked at too."""
    return st.integers(0, 39).flatmap(lambda dice: unusual if dice == 39 else usual)


def objects(always: dict[str, Any] | None = None, /, **fields: Any) -> st.SearchStrategy[Any]:
    optional = {name: sometimes(each) for name, each in fields.items()}
    needed = {name: sometimes(each) for name, each in (always or {}).items()}
    return st.fixed_dictionaries(needed, optional=optional)


def lists(element: st.SearchStrategy[Any], min_size: int = 0) -> st.SearchStrategy[Any]:
    return st.lists(sometimes(element), min_size=min_size, max_size=3)


numbers = st.floats(-3, 3) | st.integers(-3, 3)
limits = sometimes(st.integers(1, 3), texts | st.just(1.5))  # none of them lets a reply go on
arguments = sometimes(st.sampled_from(["{}", '{"a": 1}', "null", '{"a": "\\ud800"}']), texts)
schema: st.SearchStrategy[Any] = st.deferred(
    lambda: objects(
        type=texts | st.just("object"),
        properties=st.dictionaries(texts, sometimes(schema), max_size=2),
        required=lists(texts),
        items=anything,
        enum=lists(scalars),
        anyOf=lists(schema),
    )
)
function = objects(name=texts, description=texts, parameters=schema, strict=st.booleans())
formats = st.sampled_from(["text", "json_object", "json_schema"])
roles = sometimes(st.sampled_from(["user", "assistant", "system", "tool", "User"]), texts)
image = st.sampled_from(["data:;base64,aGk=", "data:image/png;base64,x", "http://x", ""])

chat_parts = objects(
    type=st.sampled_from(["text", "image_url", "input_audio", "x"]),
    text=texts,
    image_url=image | objects(url=image),
    input_audio=objects(data=texts),
)
chat_messages = objects(
    {"role": roles, "content": texts | lists(chat_parts)},
    reasoning=texts,
    tool_calls=lists(objects(id=texts, function=objects({"name": texts, "arguments": arguments}))),
    name=texts,
    tool_call_id=texts,
)
chat_bodies = objects(
    {"messages": lists(chat_messages, min_size=1)},
    tools=lists(objects(type=texts, function=function)),
    tool_choice=anything,
    response_format=objects(type=formats, json_schema=objects(schema=schema)),
    reasoning=objects(effort=st.sampled_from(["none", "low", "xhigh", "some"])),
    reasoning_effort=st.sampled_from(["none", "high", "", "some"]),
    logprobs=st.booleans(),
    top_logprobs=st.integers(-1, 21),
    temperature=numbers, top_p=numbers, seed=st.integers(), n=st.integers(0, 3),
    frequency_penalty=numbers, presence_penalty=numbers,
    stop=texts | lists(texts), stream_options=objects(include_usage=st.booleans()),
)  # fmt: skip
completion_bodies = objects(
    prompt=texts, suffix=st.just(""), stop=texts | lists(texts), temperature=numbers,
    top_p=numbers, seed=st.integers(), stream_options=objects(include_usage=st.booleans()),
)  # fmt: skip
response_parts = objects(
    type=st.sampled_from(["input_text", "output_text", "input_image", "input_file", "x"]),
    text=texts,
    image_url=image,
)
response_items = objects(
    {
        "type": st.sampled_from(
            ["message", "function_call", "function_call_output", "reasoning", "web_search_call"]
        )
    },
    role=roles,
    content=texts | lists(response_parts),
    call_id=texts, name=texts, arguments=arguments, output=texts | lists(response_parts),
    encrypted_content=texts, summary=anything,
)  # fmt: skip
response_tools: st.SearchStrategy[Any] = st.deferred(
    lambda: objects(
        type=st.sampled_from(["function", "namespace", "web_search", "custom"]),
        name=texts,
        description=texts,
        parameters=schema,
        tools=lists(response_tools),
    )
)
response_bodies = objects(
    {"input": texts | lists(response_items, min_size=1)},
    instructions=texts,
    tools=lists(response_tools),
    reasoning=objects(effort=st.sampled_from(["none", "low"]), summary=texts),
    text=objects(format=objects(type=formats, name=texts, schema=schema)),
    temperature=numbers, top_p=numbers, truncation=texts, previous_response_id=st.just(""),
)  # fmt: skip
blocks = objects(
    {"type": st.sampled_from(["text", "thinking", "image", "tool_use", "tool_result", "x"])},
    text=texts, thinking=texts, id=texts, name=texts, tool_use_id=texts,
    input=st.dictionaries(texts, anything, max_size=2),
    source=objects(type=st.sampled_from(["base64", "url"]), data=image),
    content=texts | lists(objects(type=st.sampled_from(["text", "image"]), text=texts)),
)  # fmt: skip
turns = {"messages": lists(objects({"role": roles, "content": texts | lists(blocks)}), min_size=1)}
message_fields: dict[str, Any] = {
    "system": texts | lists(blocks),
    "tools": lists(objects(type=texts, name=texts, description=texts, input_schema=schema)),
    "thinking": objects(
        type=st.sampled_from(["enabled", "disabled", "adaptive"]), budget_tokens=st.integers()
    ),
    "output_config": objects(effort=st.sampled_from(["low", "xhigh", "x"])),
}
message_bodies = objects(
    turns,
    temperature=numbers,
    top_p=numbers,
    top_k=st.integers(-2, 50),
    stop_sequences=lists(texts),
    **message_fields,
)

embedding_bodies = objects(
    {"input": texts | lists(texts, min_size=1)},
    dimensions=st.integers(),
    encoding_format=st.sampled_from(["float", "base64", "Base64", "hex"]),
)

FUZZED: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "/v1/chat/completions": (chat_bodies, "max_completion_tokens"),
    "/v1/completions": (completion_bodies, "max_tokens"),
    "/v1/responses": (response_bodies, "max_output_tokens"),
    "/v1/embeddings": (embedding_bodies, "dimensions"),
    "/v1/messages": (message_bodies, "max_tokens"),
    "/v1/messages/count_tokens": (objects(turns, **message_fields), "max_tokens"),
}


@pytest.fixture(scope="module", autouse=True)
def short_model(server: RunningServer) -> Iterator[None]:
    store = server.context.store
    demo = store.read_manifest(ModelName.parse(DEMO))
    assert demo is not None
    layer = demo.layer(MODEL_TYPE)
    assert layer is not None
    name = ModelName.parse(SHORT)
    blob = store.add_blob(store.blob_path(layer.digest))
    write_model(store, name, blob, ModelParts(parameters={"num_predict": 2}))
    yield
    store.manifest_path(name).unlink()


def check(server: RunningServer, path: str, body: bytes) -> int:
    response = server.http.post(path, content=body)
    assert response.status_code in (200, 400, 404), response.text
    assert "internal error" not in response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    return response.status_code


@pytest.mark.parametrize("path", FUZZED)
def test_no_request_breaks_the_server(server: RunningServer, path: str) -> None:
    bodies, limit_field = FUZZED[path]
    num_answered = 0

    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(bodies, sometimes(st.booleans()), limits)
    def run(body: dict[str, Any], stream: Any, limit: Any) -> None:
        nonlocal num_answered
        request = {"model": SHORT, "stream": stream, limit_field: limit} | body
        num_answered += check(server, path, json.dumps(request).encode()) == 200

    run()
    assert num_answered  # the requests are not all nonsense


@pytest.mark.parametrize("path", FUZZED)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(body=st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_nor_does_any_other_body(server: RunningServer, path: str, body: bytes) -> None:
    # 404: no model is named.
    assert check(server, path, body) in (400, 404)


@pytest.mark.parametrize("path", FUZZED)
@pytest.mark.parametrize("depth", [50, 300, 900, 100_000])
def test_nor_do_objects_in_objects(server: RunningServer, path: str, depth: int) -> None:
    deep = '{"properties":{"x":' * depth + "{}" + "}}" * depth
    tools: dict[str, str] = {
        "/v1/chat/completions": '{"function":{"name":"f","parameters":%s}}',
        "/v1/responses": '{"type":"function","name":"f","parameters":%s}',
    }
    tool = tools.get(path, '{"name":"f","input_schema":%s}') % deep
    messages = '[{"role":"user","content":"x"}]'
    body = f'"messages":{messages},"input":{messages},"prompt":"x","tools":[{tool}]'
    limit = '"max_tokens":1,"max_output_tokens":1'
    check(server, path, f'{{"model":"{SHORT}",{limit},{body}}}'.encode())

"""`/v1/embeddings`, by OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.tools.api_clients import openai_client
from tests.tools.running_server import ENDLESS, RunningServer


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai_client(server) as client:
        yield client


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_are_ollamas(server: RunningServer, api: openai.OpenAI, encoding: Any) -> None:
    texts = ["Hello!", "Good-bye.", ""]
    given = {} if encoding is None else {"encoding_format": encoding}  # its own wish is base64
    answer = api.embeddings.create(model=ENDLESS, input=texts, **given)
    theirs = server.post("/api/embed", model=ENDLESS, input=texts).json()
    assert [each.index for each in answer.data] == [0, 1, 2]
    vectors: Any = [each.embedding for each in answer.data]
    if encoding == "base64":
        again = api.embeddings.create(model=ENDLESS, input=texts)
        assert [len(each) for each in vectors] == [
            4 * ((4 * len(each.embedding) + 2) // 3) for each in again.data
        ]
    else:
        expected = theirs["embeddings"]
        assert vectors == [pytest.approx(each, abs=1e-6) for each in expected]
    assert answer.usage.prompt_tokens == theirs["prompt_eval_count"]
    assert answer.model == ENDLESS


def test_fewer_dimensions_and_one_text(api: openai.OpenAI) -> None:
    whole = api.embeddings.create(model=ENDLESS, input="Hello!").data[0].embedding
    (cut,) = api.embeddings.create(model=ENDLESS, input="Hello!", dimensions=5).data
    length = sum(number**2 for number in whole[:5]) ** 0.5
    assert cut.embedding == pytest.approx([number / length for number in whole[:5]], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "invalid input"),
        ({"input": []}, 400, "invalid input"),
        ({"input": [3]}, 400, "invalid input type"),
        ({"input": "x", "encoding_format": "hex"}, 400, "Invalid value for 'encoding_format'"),
        ({"input": "x", "model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ({"input": "x", "model": ""}, 404, "model '' not found"),
    ],
)
def test_what_is_wrong_is_named(
    server: RunningServer, body: dict[str, Any], status: int, message: str
) -> None:
    response = server.post("/v1/embeddings", **{"model": ENDLESS} | body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]

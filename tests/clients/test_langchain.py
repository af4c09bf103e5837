"""LangChain's `ChatOllama`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama

from tests.clients.conftest import API_KEY
from tests.tools.running_server import DEMO, RunningServer, needs_demo

pytestmark = needs_demo


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f'{{"city": "{city}", "temperature": 21, "sky": "sunny"}}'


Chat = Callable[..., ChatOllama]


@pytest.fixture
def chat(server: RunningServer) -> Iterator[Chat]:
    """Makes clients, which look first whether the model is there, and closes their connections."""
    with ExitStack() as connections:

        def make(**fields: Any) -> ChatOllama:
            model = ChatOllama(**connection(server), temperature=0, **fields)
            connections.enter_context(model._client)
            return model

        yield make


def connection(server: RunningServer, model: str = DEMO) -> dict[str, Any]:
    headers = {"headers": {"Authorization": f"Bearer {API_KEY}"}}
    return {
        "model": model,
        "base_url": server.url,
        "validate_model_on_init": True,
        "client_kwargs": headers,
    }


def test_it_streams_a_thought_and_an_answer(chat: Chat) -> None:
    chunks = list(chat(reasoning=True).stream("What is 12 + 30?"))
    thinking = "".join(each.additional_kwargs.get("reasoning_content", "") for each in chunks)
    assert len(chunks) > 5
    assert thinking
    assert "42" in "".join(each.text for each in chunks)
    assert any(each.response_metadata.get("done_reason") == "stop" for each in chunks)
    usage = [each.usage_metadata for each in chunks if each.usage_metadata]
    assert usage[-1]["output_tokens"] > 0


def test_it_calls_a_tool_and_hears_of_the_result(chat: Chat) -> None:
    model = chat(reasoning=False).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    answer = model.invoke([question])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert model.invoke([question, answer, result]).text


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_asks_without_blocking(chat: Chat, anyio_backend: str) -> None:
    model = chat(reasoning=True)
    async with model._async_client:
        answer = await model.ainvoke("What is 17 + 25?")
    assert "42" in answer.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_says_which_model_is_not_there(server: RunningServer) -> None:
    with pytest.raises(ValueError, match="not found"):
        ChatOllama(**connection(server, "nobody"))
    gc.collect()  # it leaves its connection open

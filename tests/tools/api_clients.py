"""The official clients of other APIs, and a tool for their models."""

from __future__ import annotations

from typing import Any

import anthropic
import openai

from tests.tools.running_server import TIMEOUT_S, RunningServer

_KEY = "unused"  # the clients insist on one

WEATHER_NAME = "get_weather"
WEATHER_DESCRIPTION = "Get the weather of a city"
WEATHER_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


def openai_client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=_KEY, timeout=TIMEOUT_S, max_retries=0
    )


def anthropic_client(server: RunningServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=_KEY, timeout=TIMEOUT_S, max_retries=0)

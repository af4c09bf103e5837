"""Requests made up from the server's own OpenAPI page: whatever they hold, none is answered 500."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from server.settings import Settings
from tests.tools.running_server import ENDLESS, TIMEOUT_S, RunningServer, running
from tests.tools.server_models import add_endless_model

if sys.version_info < (3, 11):
    pytest.skip("schemathesis needs Python 3.11", allow_module_level=True)

import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

# For all routes together; each gets its part, what it leaves goes to the next.
BUDGET_S = 2.5
EXAMPLES = 25
SESSION = "tea"
FEW_TOKENS = {"num_predict": 2}
FEW_TOKENS_ELSEWHERE = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2}
# Where models come from and go to: a registry on this machine that nobody runs.
NOWHERE = "127.0.0.1:9/library/nothing"
TRANSFERS = ("/api/pull", "/api/push")


@pytest.fixture
def fuzzed(tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose models may be deleted and changed by whatever comes."""
    with running(Settings(models=tmp_path / "models", device="cpu")) as server:
        yield server


@pytest.mark.parametrize(
    ("mode", "is_whole"),
    [
        (GenerationMode.POSITIVE, True),
        (GenerationMode.NEGATIVE, False),
    ],
    ids=["all fields", "some fields, wrong types"],
)
def test_no_request_is_answered_by_500(
    fuzzed: RunningServer, tmp_path: Path, mode: GenerationMode, is_whole: bool
) -> None:
    page = fuzzed.http.get("/openapi.json").json()
    if is_whole:
        ask_for_all(page["components"]["schemas"])
    found = [each.ok() for each in schemathesis.openapi.from_dict(page).get_all_operations()
             if isinstance(each, Ok)]  # fmt: skip
    assert len(found) == sum(len(methods) for methods in page["paths"].values())
    deadline = time.monotonic() + BUDGET_S
    if mode is GenerationMode.NEGATIVE:  # only what has types can have wrong ones
        found = [each for each in found if "application/json" in takes(page, each)]
    for number, operation in enumerate(found):
        add_endless_model(fuzzed.context.store, ENDLESS, tmp_path)  # one before may delete it
        now = time.monotonic()
        fuzz(fuzzed, operation, mode, now + max(deadline - now, 1.0) / (len(found) - number))
    assert fuzzed.http.get("/api/version").status_code == 200


def takes(page: dict[str, Any], operation: Any) -> dict[str, Any]:
    """The schemas of a route's body, by content type."""
    declared: dict[str, Any] = page["paths"][operation.path][operation.method]
    content: dict[str, Any] = declared.get("requestBody", {}).get("content", {})
    return content


def ask_for_all(schemas: dict[str, Any]) -> None:
    """Most fields are optional and most names unknown: neither would be tried often."""
    for name, schema in schemas.items():
        if "." not in name:  # those inside take long to make up
            schema["required"] = list(schema["properties"])
            schema["additionalProperties"] = False


def fuzz(server: RunningServer, operation: Any, mode: GenerationMode, deadline: float) -> None:
    num_tried = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],  # a smaller example is worth less than the time it takes
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        nonlocal num_tried
        if num_tried and time.monotonic() > deadline:
            return
        if num_tried % 3 and "session_id" in (case.path_parameters or {}):
            case.path_parameters["session_id"] = SESSION
        if isinstance(case.body, dict):
            prepare(case.path, case.body, num_tried)
        num_tried += 1
        response = case.call(base_url=server.url, timeout=TIMEOUT_S)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        assert b"internal error" not in response.content, case.as_curl_command()

    ask()
    assert num_tried, operation


def prepare(path: str, body: dict[str, Any], number: int) -> None:
    """Lets three requests of four reach a model that is there. None takes long, or leaves this
    machine.
    """
    if number % 4:
        body["model"] = ENDLESS
    if path in TRANSFERS:
        body.pop("name", None)
        body |= {"model": NOWHERE, "insecure": True, "stream": True}
    if isinstance(body.get("from"), str):
        body["from"] = ENDLESS
    if path.startswith("/v1/"):
        body |= FEW_TOKENS_ELSEWHERE
    options = body.get("options")
    if isinstance(options, dict | None):
        body["options"] = {**(options or {}), **FEW_TOKENS}

"""Requests made up from the server's own OpenAPI page: whatever they hold, none is answered 500."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.tools.running_server import ENDLESS, TIMEOUT_S, RunningServer

if sys.version_info < (3, 11):
    pytest.skip("schemathesis needs Python 3.11", allow_module_level=True)

import schemathesis
from schemathesis.core.result import Ok

# For all routes together; each gets its part, what it leaves goes to the next.
BUDGET_S = 20.0
EXAMPLES = 40
FEW_TOKENS = {"num_predict": 2}


def test_no_request_is_answered_by_500(server: RunningServer) -> None:
    page = server.http.get("/openapi.json").json()
    found = [each.ok() for each in schemathesis.openapi.from_dict(page).get_all_operations()
             if isinstance(each, Ok)]  # fmt: skip
    assert len(found) == sum(len(methods) for methods in page["paths"].values())
    deadline = time.monotonic() + BUDGET_S
    for number, operation in enumerate(found):
        now = time.monotonic()
        fuzz(server, operation, now + max(deadline - now, 1.0) / (len(found) - number))
    assert server.http.get("/api/version").status_code == 200


def fuzz(server: RunningServer, operation: Any, deadline: float) -> None:
    num_tried = 0

    @given(case=operation.as_strategy())
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
        prepare(case, num_tried)
        num_tried += 1
        response = case.call(base_url=server.url, timeout=TIMEOUT_S)
        assert response.status_code < 500, (case.as_curl_command(), response.text)
        assert b"internal error" not in response.content, case.as_curl_command()

    ask()
    assert num_tried, operation


def prepare(case: Any, number: int) -> None:
    """Lets three requests of four reach a model that is there, and none of them take long."""
    body = case.body
    if not isinstance(body, dict):
        return
    if number % 4:
        body["model"] = ENDLESS
    options = body.get("options")
    if isinstance(options, dict | None):
        body["options"] = {**(options or {}), **FEW_TOKENS}

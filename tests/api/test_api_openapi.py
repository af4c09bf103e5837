"""The server's own OpenAPI page: every route, with what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.tools.running_server import RunningServer


def page(server: RunningServer) -> dict[str, Any]:
    response = server.http.get("/openapi.json")
    assert response.status_code == 200
    value = response.json()
    assert isinstance(value, dict)
    return value


def test_the_page_names_every_route_and_what_it_takes(server: RunningServer) -> None:
    document = page(server)
    taken = {
        path: media["schema"].get("$ref", media["schema"].get("format"))
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for media in operation.get("requestBody", {}).get("content", {}).values()
    }
    assert (
        taken.items()
        >= {
            "/api/chat": "#/components/schemas/ChatRequest",
            "/api/generate": "#/components/schemas/GenerateRequest",
            "/api/show": "#/components/schemas/ShowRequest",
            "/api/sessions/{session_id}/fork": "#/components/schemas/ForkRequest",
            "/api/sessions/{session_id}/state": "binary",
        }.items()
    )
    without = {
        path
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in ("post", "put", "patch") and "requestBody" not in operation
    }
    assert without == set(), "say in the decorator what it takes: see server/wire/openapi.py"
    chat = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat["messages"]["items"] == {"$ref": "#/components/schemas/ChatRequest.Message"}
    assert chat["think"]["anyOf"][0]["enum"][:2] == [True, False]
    assert "http" not in str(document["paths"]), "nothing is fetched from elsewhere"


def test_every_reference_leads_somewhere(server: RunningServer) -> None:
    document = page(server)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    assert set(references(document)) <= known

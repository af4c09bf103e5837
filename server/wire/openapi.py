"""`/openapi.json`: the routes and the requests they take, from the schemas that read them.

A route says in its decorator what it takes, and so joins the page:

    @router.post("/api/chat", openapi_extra=takes(ChatRequest))

That is all there is to do for a new one; routes without a body need nothing.
"""

from __future__ import annotations

import warnings
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.version import OLLAMA_VERSION
from server.wire.answers import Json
from server.wire.go_decode import GoModel

_REFERENCE = "#/components/schemas/"
_DESCRIPTION = "Ollama's API for RWKV-7 models. Unknown fields are ignored; null is 'not given'."


def takes(kind: type[GoModel], *, required: bool = True) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is read as a `kind`."""
    # Models of different APIs may have the same name, requests have not.
    schema = kind.model_json_schema(ref_template=f"{_REFERENCE}{kind.__name__}.{{model}}")
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": required, "content": content}}


def uploads() -> dict[str, Any]:
    """The `openapi_extra` of a route whose body is a file."""
    schema = {"type": "string", "format": "binary"}
    content = {"application/octet-stream": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def openapi_page(app: FastAPI) -> Json:
    """The document, of OpenAPI 3.1, for all routes of `app`."""
    with warnings.catch_warnings():
        # It would have one operation id for GET and HEAD; they get their own below.
        warnings.simplefilter("ignore", UserWarning)
        page = get_openapi(
            title=app.title,
            version=OLLAMA_VERSION,
            description=_DESCRIPTION,
            routes=app.routes,
        )
    schemas: dict[str, Any] = {}
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            operation["operationId"] = f"{method} {path}"
            # What is wrong with a request is a 400 with Ollama's words, never FastAPI's 422.
            operation["responses"].pop("422", None)
            for media in operation.get("requestBody", {}).get("content", {}).values():
                _move_definitions(media, schemas)
    page["components"] = {
        "schemas": schemas,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    page["security"] = [{}, {"key": []}]  # only where keys are set
    return page


def _move_definitions(media: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Puts a request's schema, and those it refers to, where all are kept."""
    schema = media["schema"]
    if "title" not in schema:
        return
    for name, definition in schema.pop("$defs", {}).items():
        schemas[f"{schema['title']}.{name}"] = definition
    schemas[schema["title"]] = schema
    media["schema"] = {"$ref": f"{_REFERENCE}{schema['title']}"}

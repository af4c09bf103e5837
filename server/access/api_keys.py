"""Who may call, where keys are set: a request brings one of them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.ui import FILES as PAGE_FILES
from server.wire.error_shapes import error_json
from server.wire.streaming import json_response

# What a health check asks. They say that a server is there and which version of Ollama's API it
# speaks; everything else, the metrics too, tells of the models or of what is done with them. The
# files of the page at /ui are the same everywhere: a browser can send a key only once it has them.
_OPEN_PATHS = frozenset({"/", "/api/version", *PAGE_FILES})
_WORDS = "unauthorized: send a key of this server as Authorization: Bearer KEY"
_CHALLENGE = 'Bearer realm="anser"'


class ApiKeyCheck:
    """Answers 401 to requests without one of `keys`, in Authorization or (Anthropic's) X-Api-Key.

    The keys are compared in a time that tells nothing about them.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        # Digests are of one length, whatever the keys' are.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        response = json_response(error_json(scope["path"], 401, _WORDS), 401)
        response.headers["WWW-Authenticate"] = _CHALLENGE
        await response(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        offered = [_digest(each.strip().encode("latin-1")) for each in given]
        # A list, so that all are compared, whichever fits.
        return any([hmac.compare_digest(a, b) for a in offered for b in self._digests])  # noqa: C419


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

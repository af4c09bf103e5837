"""`/ui`: a page about this server, for people."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from server.ui import FILES, PAGE_PATH

router = APIRouter(include_in_schema=False)  # no part of the API

_METHODS = ["GET", "HEAD"]
# The page runs its own files and talks to its own server, whatever a model or a client writes.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a newer server brings a newer page
}


@router.api_route(PAGE_PATH, methods=_METHODS)
@router.api_route(f"{PAGE_PATH}/{{name}}", methods=_METHODS)
async def page_file(request: Request) -> Response:
    file = FILES.get(request.scope["path"])
    if file is None:
        raise HTTPException(404)
    return Response(file.content, headers=_HEADERS, media_type=file.media_type)


@router.api_route(f"{PAGE_PATH}/", methods=_METHODS)
async def page_with_slash() -> Response:
    # Relative, as the page's own addresses are: a proxy may serve all of this below another path.
    return RedirectResponse(f"..{PAGE_PATH}")

"""`/metrics`: the server's numbers, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.context import context_of
from server.metrics_page import metrics_page

router = APIRouter()


@router.api_route("/metrics", methods=["GET", "HEAD"])
async def metrics(request: Request) -> Response:
    manager = context_of(request).manager
    # In a thread: the disk is asked.
    page = await asyncio.to_thread(
        metrics_page, manager.metrics, manager.loaded(), manager.disk_tier
    )
    return Response(page, headers={"content-type": CONTENT_TYPE_LATEST})

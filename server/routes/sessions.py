"""`/api/sessions`: which named sessions there are, and what can be done with each but chatting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from io import BufferedRandom

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from rwkv_core.cache.state_file import EncodedState
from rwkv_core.errors import AnserError
from server.context import ServerContext, context_of, read_request
from server.sessions.forgetting import forget_states
from server.sessions.ids import check_id, new_id
from server.sessions.state_files import (
    SessionNote,
    export_state,
    import_state,
    open_upload,
)
from server.sessions.store import Session, SessionStore, StoredMessage
from server.sessions.threads import to_the_end
from server.sessions.turns import (
    check_model,
    read_messages,
    read_tools,
    session_not_found,
    weights_of,
)
from server.sessions.uploads import SlowUploadError
from server.store.names import ModelName
from server.store.store import Store
from server.store.stored_model import open_model
from server.wire.answers import Json, listed_session
from server.wire.errors import CLIENT_CLOSED_REQUEST, ApiError, message_of
from server.wire.go_text import go_quote
from server.wire.openapi import takes, uploads
from server.wire.schemas import ForkRequest
from server.wire.streaming import json_response, unless_gone

router = APIRouter()

_PIECE_BYTES = 1 << 20
_MAX_LIMIT_DIGITS = 9


@router.get("/api/sessions")
async def sessions(request: Request) -> Response:
    context = context_of(request)
    model = request.query_params.get("model", "")
    key = ModelName.parse(model).key if model else None
    limit = _limit(request.query_params.get("limit", ""))
    store = await context.sessions.store()
    return await asyncio.to_thread(_list, context.store, store, key, limit)


@router.get("/api/sessions/{session_id}")
async def session(request: Request, session_id: str) -> Response:
    context = context_of(request)
    store = await context.sessions.store()
    return await asyncio.to_thread(_show, context.store, store, check_id(session_id))


@router.delete("/api/sessions/{session_id}")
async def delete(request: Request, session_id: str) -> Response:
    context = context_of(request)
    store = await context.sessions.store()
    deleted = await to_the_end(store.delete, check_id(session_id))
    if deleted is None:
        raise session_not_found(session_id)
    await forget_states(context, deleted)
    return Response()


@router.post("/api/sessions/{session_id}/fork", openapi_extra=takes(ForkRequest, required=False))
async def fork(request: Request, session_id: str) -> Response:
    check_id(session_id)
    is_empty = not (await _body(request)).strip()
    asked = ForkRequest() if is_empty else await read_request(request, ForkRequest)
    name = check_id(asked.session) if asked.session else new_id()
    context = context_of(request)
    store = await context.sessions.store()
    forked = await to_the_end(store.fork, session_id, name, asked.at)
    if forked is None:
        raise session_not_found(session_id)
    return await _answer(context, forked)


@router.get("/api/sessions/{session_id}/state")
async def get_state(request: Request, session_id: str) -> Response:
    check_id(session_id)
    encoded = await unless_gone(request, _export(context_of(request), session_id))
    headers = {
        "content-length": str(encoded.num_bytes),
        "content-disposition": f'attachment; filename="{session_id}.safetensors"',
    }
    pieces = _pieces(encoded)
    return StreamingResponse(pieces, headers=headers, media_type="application/octet-stream")


@router.put("/api/sessions/{session_id}/state", openapi_extra=uploads())
async def put_state(request: Request, session_id: str) -> Response:
    context = context_of(request)
    check_id(session_id)
    uploads = context.sessions.uploads
    with uploads.file(context.settings.states) as file:
        length = request.headers.get("content-length", "")
        try:
            num_bytes = await uploads.receive(request.stream(), length, file)
        except SlowUploadError as error:
            # Nothing else can come over this connection: the rest of the body is on its way.
            response = json_response({"error": message_of(error)}, error.status)
            response.headers["connection"] = "close"
            return response
        async with context.sessions.importing:
            stored, is_new = await _import(
                context, session_id, request.query_params.get("model", ""), file, num_bytes
            )
    return await _answer(context, stored, 201 if is_new else 200)


def _limit(text: str) -> int | None:
    """How many sessions a request asks for at most. Raises ApiError (400)."""
    if not text:
        return None
    # Longer numbers are more than SQLite knows, and than there can be sessions.
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LIMIT_DIGITS):
        raise ApiError(400, f"invalid limit {go_quote(text[:_MAX_LIMIT_DIGITS])}: use a number")
    return int(text)


def _list(models: Store, store: SessionStore, model_key: object, limit: int | None) -> Response:
    if model_key is None:
        found = store.all(limit)
    else:
        found = store.all()
        found = [each for each in found if ModelName.parse(each.model).key == model_key][:limit]
    return json_response({"sessions": _listed(models, found)})


def _show(models: Store, store: SessionStore, session_id: str) -> Response:
    found, stored = _find(store, session_id)
    (listed,) = _listed(models, [found])
    content: Json = {"messages": [json.loads(each.body) for each in stored]}
    tools = json.loads(found.tools)
    return json_response(listed | content | ({"tools": tools} if tools else {}))


async def _answer(context: ServerContext, session: Session, status: int = 200) -> Response:
    (listed,) = await asyncio.to_thread(_listed, context.store, [session])
    return json_response(listed, status)


def _listed(models: Store, sessions: Sequence[Session]) -> list[Json]:
    """What is said of sessions in lists. Looks into each of their models once."""
    sizes = {name: _state_sizes(models, name) for name in {each.model for each in sessions}}
    return [listed_session(each, sizes[each.model].get(each.weights, 0)) for each in sessions]


def _state_sizes(models: Store, name: str) -> dict[str, int]:
    """The bytes of a chat's state, by weights: empty without a model of that name that runs."""
    try:
        model = open_model(models, ModelName.parse(name))
    except AnserError:
        return {}
    return {weights_of(model): model.facts.state_bytes} if model else {}


def _find(store: SessionStore, session_id: str) -> tuple[Session, list[StoredMessage]]:
    """A session with its messages. Raises ApiError (404)."""
    found = store.read(session_id)
    if found is None:
        raise session_not_found(session_id)
    return found


async def _export(context: ServerContext, session_id: str) -> EncodedState:
    store = await context.sessions.store()
    found, stored = await asyncio.to_thread(_find, store, session_id)
    model = await context.find_model(found.model)
    check_model(found, model)
    messages = read_messages([each.body for each in stored])
    note = SessionNote(messages=messages, tools=read_tools(found.tools))
    async with context.manager.use(model) as loaded:
        return await export_state(loaded, model, found, note)


async def _import(
    context: ServerContext, session_id: str, model_name: str, file: BufferedRandom, num_bytes: int
) -> tuple[Session, bool]:
    """The session as it is stored, and whether there was none of its name."""
    store = await context.sessions.store()
    upload = await asyncio.to_thread(open_upload, file, num_bytes)
    model = await context.find_model(model_name or upload.note.model)
    present = await asyncio.to_thread(store.get, session_id)
    if present is not None:
        check_model(present, model)
    async with context.manager.use(model) as loaded:
        new, bodies = await to_the_end(import_state, loaded, model, session_id, upload)
    return await to_the_end(store.replace, new, bodies), present is None


def _pieces(encoded: EncodedState) -> Iterator[bytes]:
    for part in encoded.parts:
        data = part.cast("B")
        for start in range(0, len(data), _PIECE_BYTES):
            yield bytes(data[start : start + _PIECE_BYTES])


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise ApiError(CLIENT_CLOSED_REQUEST, "request canceled") from None

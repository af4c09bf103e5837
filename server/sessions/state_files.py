"""A session as a file: its state, with its messages as the note, for another server to go on from.

A file says what state is behind its tokens, and nobody can check that without reading them again.
So an imported state belongs to its session alone: it is kept in a scope of the cache that no other
session looks into, except for forks of that one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from io import BufferedRandom
from typing import ClassVar

import numpy as np
from pydantic import Field

from rwkv_core.cache import ModelKey, SnapshotKind, TokenArray
from rwkv_core.cache.state_file import (
    DecodedState,
    EncodedState,
    Head,
    encode_state,
    load_state_file,
    read_head,
)
from rwkv_core.engine import GenerationRequest
from rwkv_core.errors import StateFileError
from rwkv_core.sampler import SamplingOptions
from server.loading.model_manager import LoadedModel
from server.replies.prompt_tokens import common_beginning
from server.replies.prompts import history_texts
from server.replies.tool_calls import offered_tool
from server.sessions.history import message_json, message_text
from server.sessions.ids import new_id
from server.sessions.store import MAX_SESSION_BYTES, Session
from server.sessions.threads import to_the_end
from server.sessions.turns import check_size, tools_text, weights_of
from server.store.stored_model import StoredModel
from server.wire.errors import ApiError
from server.wire.go_decode import GoModel, decode
from server.wire.schemas import Message, Tool
from server.wire.streaming import generate

_MAX_NOTE_BYTES = MAX_SESSION_BYTES + (64 << 10)


class SessionNote(GoModel):
    """What a file says of its session."""

    go_name: ClassVar[str] = "Session"
    model: str = ""
    messages: list[Message] = Field(default_factory=list)
    tools: list[Tool] = Field(default_factory=list)


@dataclass(frozen=True)
class Upload:
    """A file of so many bytes, as far as it can be read without its model."""

    file: BufferedRandom
    num_bytes: int
    head: Head
    note: SessionNote


async def export_state(
    loaded: LoadedModel, model: StoredModel, session: Session, note: SessionNote
) -> EncodedState:
    """The file of a session. Its state is computed if the cache has it no more.

    Raises ApiError for a session without a word, and if the state cannot be kept long enough.
    """
    tokens = await to_the_end(_next_tokens, loaded, model, note)
    if not len(tokens):
        raise ApiError(400, f"session '{session.id}' has no messages, so it has no state")
    encoded = await to_the_end(_encode, loaded, session, note, tokens)
    if encoded is None:
        await _read(loaded, tokens, session.cache_scope)
        encoded = await to_the_end(_encode, loaded, session, note, tokens)
    if encoded is None:
        raise ApiError(
            507,
            f"the state of session '{session.id}' does not fit into the memory for states; "
            "set ANSER_STATES_MEMORY to more",
        )
    return encoded


def open_upload(file: BufferedRandom, num_bytes: int) -> Upload:
    """Raises ApiError (400) for what is no file of a session."""
    try:
        file.seek(0)
        head = read_head(file, num_bytes)
    except StateFileError as error:
        raise ApiError(400, f"the saved state {error}") from None
    size = head.num_note_bytes
    if not size or size > _MAX_NOTE_BYTES:
        raise ApiError(400, "the saved state has no session in it, or one that is too large")
    file.seek(num_bytes - size)
    try:
        value = json.loads(file.read(size))
    except (ValueError, RecursionError):
        raise ApiError(400, "the saved state is damaged: its session is not JSON") from None
    return Upload(file, num_bytes, head, decode(SessionNote, value))


def import_state(
    loaded: LoadedModel, model: StoredModel, session_id: str, upload: Upload
) -> tuple[Session, list[str]]:
    """The session of a file, which is to be stored, and its messages. Its state is in the cache.

    Raises ApiError: 409 for the state of another model, 400 for what is damaged, or does not fit
    its messages.
    """
    note = upload.note
    _check_key(upload, loaded.cache.key, model)
    bodies = [message_text(each) for each in note.messages]
    tools = tools_text(note.tools)
    check_size(session_id, bodies, tools)
    tokens = _next_tokens(loaded, model, note)
    decoded = _decode(upload, loaded)
    num_tokens = len(decoded.tokens)
    if not np.array_equal(decoded.tokens, tokens[:num_tokens]):
        raise ApiError(
            409,
            f"the saved state is not behind its messages as '{model.name.shortest}' reads them "
            "here: the system message or the prompt format of the model is another",
        )
    scope = new_id()
    loaded.cache.put(decoded.tokens, decoded.snapshot, SnapshotKind.REPLY_END, scope)
    session = Session(
        session_id,
        model.name.shortest,
        weights_of(model),
        cache_scope=scope,
        tools=tools,
        num_tokens=num_tokens,
    )
    return session, bodies


def _check_key(upload: Upload, key: ModelKey, model: StoredModel) -> None:
    theirs = upload.head.key.model
    if theirs != key.model:
        raise ApiError(
            409,
            f"the saved state is of model '{upload.note.model}' ({theirs[:12]}), "
            f"not of '{model.name.shortest}' ({key.model[:12]})",
        )


def _decode(upload: Upload, loaded: LoadedModel) -> DecodedState:
    upload.file.seek(0)
    key, config = loaded.cache.key, loaded.model.config
    try:
        # Another processor may have computed it: within the session that makes no difference.
        return load_state_file(upload.file, upload.num_bytes, key, config, exact=False)
    except StateFileError as error:
        raise ApiError(400, str(error)) from None


def _next_tokens(loaded: LoadedModel, model: StoredModel, note: SessionNote) -> TokenArray:
    """What every next prompt of a session begins with."""
    texts = history_texts(model, note.messages, note.tools)
    return common_beginning([loaded.encoder.encode(text) for text in texts])


def _encode(
    loaded: LoadedModel, session: Session, note: SessionNote, tokens: TokenArray
) -> EncodedState | None:
    """The file of a session whose state is in the cache."""
    hit = loaded.cache.lookup(tokens, session.cache_scope)
    if hit is None or hit.num_tokens < len(tokens):
        return None
    kind, data = SnapshotKind.REPLY_END, _note_data(session, note)
    return encode_state(loaded.cache.key, tokens, hit.snapshot, kind, data)


def _note_data(session: Session, note: SessionNote) -> bytes:
    value = {
        "model": session.model,
        "messages": [message_json(each) for each in note.messages],
        "tools": [offered_tool(each) for each in note.tools],
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def _read(loaded: LoadedModel, tokens: Sequence[int] | TokenArray, scope: str) -> None:
    """Has the engine read tokens, in its turn, so that the state behind them is in the cache."""
    token_ids = tuple(int(each) for each in tokens)
    request = GenerationRequest(
        token_ids, SamplingOptions(temperature=0), max_new_tokens=1, stops=(), cache_scope=scope
    )
    async with aclosing(generate(loaded.engine, request)) as events:
        async for _ in events:
            pass

"""Answers as they stand on the wire: fields in Ollama's order, left out where Ollama does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.loading.model_manager import LoadedModel
from server.replies.generation import Piece, TokenLogprob
from server.replies.tool_calls import tool_call_json
from server.sessions.store import Session
from server.store.stored_model import StoredModel
from server.wire.go_text import now_rfc3339, rfc3339

Json = dict[str, Any]


def generate_json(model: str, piece: Piece) -> Json:
    """A chunk, or the whole answer, of `/api/generate`."""
    answer: Json = {"model": model, "created_at": now_rfc3339(), "response": piece.content}
    if piece.thinking:
        answer["thinking"] = piece.thinking
    return answer | _ending(piece)


def chat_json(model: str, piece: Piece) -> Json:
    """A chunk, or the whole answer, of `/api/chat`."""
    message: Json = {"role": "assistant", "content": piece.content}
    if piece.thinking:
        message["thinking"] = piece.thinking
    if piece.tool_calls:
        message["tool_calls"] = [tool_call_json(call) for call in piece.tool_calls]
    answer: Json = {"model": model, "created_at": now_rfc3339(), "message": message}
    return answer | _ending(piece)


def generate_done(model: str, reason: str) -> Json:
    """The answer to a request that only loads or unloads."""
    return {
        "model": model,
        "created_at": now_rfc3339(),
        "response": "",
        "done": True,
        "done_reason": reason,
    }


def chat_done(model: str, reason: str) -> Json:
    return {
        "model": model,
        "created_at": now_rfc3339(),
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": reason,
    }


def generate_debug(model: str, prompt: str) -> Json:
    """The answer to `_debug_render_only`."""
    return {
        "model": model,
        "created_at": now_rfc3339(),
        "response": "",
        "done": False,
        "_debug_info": {"rendered_template": prompt},
    }


def chat_debug(model: str, prompt: str) -> Json:
    return {
        "model": model,
        "created_at": now_rfc3339(),
        "message": {"role": "", "content": ""},
        "done": False,
        "_debug_info": {"rendered_template": prompt},
    }


def listed_model(model: StoredModel) -> Json:
    """An entry of `/api/tags`."""
    lengths = {
        "context_length": model.facts.context_length,
        "embedding_length": model.facts.embedding_length,
    }
    return {
        "name": model.name.shortest,
        "model": model.name.shortest,
        "modified_at": rfc3339(model.manifest.modified_ns),
        "size": model.manifest.size,
        "digest": model.manifest.digest,
        "details": model.details | without_zeros(lengths),
        "capabilities": model.capabilities,
    }


def running_model(loaded: LoadedModel) -> Json:
    """An entry of `/api/ps`."""
    model = loaded.stored
    return {
        "name": model.name.shortest,
        "model": model.name.shortest,
        "size": loaded.num_bytes,
        "digest": model.manifest.digest,
        "details": model.details,
        "expires_at": rfc3339(loaded.expires_at_ns),
        "size_vram": loaded.num_bytes if loaded.model.device.type != "cpu" else 0,
        "context_length": model.facts.context_length,
    }


def listed_session(session: Session, state_bytes: int) -> Json:
    """An entry of `/api/sessions`. `state_bytes` is 0 where it is not known."""
    counts = {
        "message_count": session.num_messages,
        "token_count": session.num_tokens,
        "state_size": state_bytes,
    }
    return {
        "session": session.id,
        "model": session.model,
        "created_at": rfc3339(session.created_ns),
        "updated_at": rfc3339(session.updated_ns),
    } | without_zeros(counts)


def logprobs_json(logprobs: Sequence[TokenLogprob]) -> list[Json]:
    """How likely tokens were, in Ollama's form."""
    return [
        _logprob(each) | ({"top_logprobs": list(map(_logprob, each.top))} if each.top else {})
        for each in logprobs
    ]


def _logprob(token: TokenLogprob) -> Json:
    value: Json = {"token": token.token, "logprob": token.logprob}
    return value | ({"bytes": list(token.bytes)} if token.bytes else {})


def _ending(piece: Piece) -> Json:
    """What a chunk has behind its text."""
    final = piece.final
    logprobs = {"logprobs": logprobs_json(piece.logprobs)} if piece.logprobs else {}
    if final is None:
        return {"done": False} | logprobs
    context = {"context": list(final.context)} if final.context else {}
    metrics = {
        "total_duration": final.total_ns,
        "load_duration": final.load_ns,
        "prompt_eval_count": final.stats.num_prompt_tokens,
        "prompt_eval_duration": final.stats.prefill_ns,
        "eval_count": final.stats.num_generated_tokens,
        "eval_duration": final.stats.decode_ns,
    }
    # Anser's own: how many of the prompt's tokens were not read again, 0 too; of those that were
    # drafted (none: not said), how many came without a pass of their own.
    own = {"prompt_cached_count": final.stats.num_cached_tokens}
    if final.stats.num_draft_tokens:
        own["draft_count"] = final.stats.num_draft_tokens
        own["draft_accepted_count"] = final.stats.num_accepted_tokens
    ending = {"done": True, "done_reason": final.reason} | context | logprobs
    return ending | without_zeros(metrics) | own


def without_zeros(values: Mapping[str, int]) -> Json:
    """As Go leaves them out."""
    return {name: value for name, value in values.items() if value}

"""The states of a session that was deleted go with it.

A state is behind tokens, and nobody has written down whose they are. So what goes is every state
behind the first words that were this session's alone, and whatever followed them. A chat without a
name, or one that began with the same words of its own, may lose states by that: it reads them again
when it goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rwkv_core.cache import TokenArray
from rwkv_core.cache.tokens import in_scope
from rwkv_core.errors import AnserError
from server.context import ServerContext
from server.replies.prompt_tokens import common_beginning
from server.replies.prompts import beginning_texts, history_texts
from server.sessions.store import Deleted
from server.sessions.threads import to_the_end
from server.sessions.turns import read_messages, read_tools
from server.store.stored_model import StoredModel
from server.wire.schemas import Message

log = logging.getLogger(__name__)

_NO_TOKENS: TokenArray = np.empty(0, np.int32)


async def forget_states(context: ServerContext, deleted: Deleted) -> None:
    """Deletes the states of a session that is gone, in memory and on disk. Never fails: what cannot
    be found stays until its turn to be evicted comes.
    """
    scope = deleted.session.cache_scope
    try:
        if scope and not deleted.is_scope_used:
            beginning = _NO_TOKENS  # all that is in the scope was this session's
        else:
            messages = read_messages([each.body for each in deleted.messages])
            num_own = _num_to_first_own(messages, deleted.num_shared)
            if not num_own:
                return
            model = await context.find_model(deleted.session.model)
            beginning = await to_the_end(_tokens, context, model, deleted, messages[:num_own])
            if not len(beginning):
                return
        await to_the_end(context.manager.forget_states, in_scope(beginning, scope))
    except AnserError as error:
        log.warning(
            "the states of session %s stay until they are evicted: %s", deleted.session.id, error
        )


def _num_to_first_own(messages: Sequence[Message], num_shared: int) -> int:
    """How many messages there are up to the first that no other session has; 0 if each of them is
    shared. System messages are everybody's.
    """
    for index, message in enumerate(messages[num_shared:], start=num_shared):
        if message.role.lower() != "system":
            return index + 1
    return 0


def _tokens(
    context: ServerContext, model: StoredModel, deleted: Deleted, messages: Sequence[Message]
) -> TokenArray:
    """What all prompts of the session begin with from the last of these messages on; none if that
    says nothing, so that every chat might begin so.
    """
    encoder = context.manager.encoder_of(model)
    tools = read_tools(deleted.session.tools)
    before, beginning = (
        common_beginning([encoder.encode(text) for text in texts])
        for texts in (
            history_texts(model, messages[:-1], tools),
            beginning_texts(model, messages, tools),
        )
    )
    return beginning if len(beginning) > len(before) else _NO_TOKENS

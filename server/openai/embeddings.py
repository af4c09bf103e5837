"""`/v1/embeddings`: what it asks for, and its answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

from torch import Tensor

from server.openai.schemas import EmbeddingsRequest
from server.replies.embeddings import normalised, read_texts, shortest_numbers
from server.wire.errors import ApiError, model_not_found
from server.wire.streaming import to_json

_ENCODINGS = ("", "float", "base64")


def embeddings_input(asked: EmbeddingsRequest) -> list[str]:
    """The texts to embed. Raises ApiError (400, 404 without a model)."""
    if asked.encoding_format.lower() not in _ENCODINGS:
        raise ApiError(
            400,
            f"Invalid value for 'encoding_format' = {asked.encoding_format}. "
            "Supported values: ['float', 'base64'].",
        )
    if asked.input is None or asked.input == []:
        raise ApiError(400, "invalid input")
    if not asked.model.strip():
        raise model_not_found(asked.model)
    return read_texts(asked.input) or [""]  # an empty text is one too, here


def embeddings_json(
    asked: EmbeddingsRequest, vectors: Sequence[Tensor], num_tokens: int
) -> Iterator[bytes]:
    """The answer, a vector [D] at a time: as text all together would take a lot of memory."""
    yield b'{"object":"list","data":['
    for index, vector in enumerate(vectors):
        embedding = _encoded(normalised(vector, asked.dimensions), asked.encoding_format)
        entry = {"object": "embedding", "embedding": embedding, "index": index}
        yield (b"," if index else b"") + to_json(entry)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    yield b'],"model":' + to_json(asked.model) + b',"usage":' + to_json(usage) + b"}"


def _encoded(vector: Tensor, encoding: str) -> list[float] | str:
    if encoding.lower() == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return shortest_numbers(vector)

"""Bodies that come compressed: zstd, which some programs send to OpenAI's routes unasked."""

from __future__ import annotations

import zstandard

from server.wire.errors import ApiError, body_too_large

_ZSTD = "zstd"
# Of what the sender may ask to have remembered while the rest is read; the usual levels need less.
_MAX_WINDOW = 8 << 20


def is_compressed(encoding: str) -> bool:
    """Whether a Content-Encoding is one that is undone here; any other is taken for plain text."""
    return encoding.strip().lower() == _ZSTD


def decompress(body: bytes, max_bytes: int) -> bytes:
    """A body as it was before zstd. Raises ApiError: 400 for what is no zstd, 413 for more than
    `max_bytes`, of which no more is ever in memory than that.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    try:
        with decoder.stream_reader(body, read_across_frames=True) as reader:
            plain = reader.read(max_bytes + 1)
    except zstandard.ZstdError as error:
        raise ApiError(400, f"failed to decompress zstd body: {error}") from None
    if len(plain) > max_bytes:
        raise body_too_large(max_bytes)
    return plain

"""What can go wrong between Anser and a registry."""

from __future__ import annotations

from rwkv_core.errors import AnserError


class RegistryError(AnserError):
    """A registry that refuses, lies, or cannot be understood. Asking again would not help."""


class TemporaryError(RegistryError):
    """A broken or stalled connection, or a registry that is busy: worth another attempt."""


class MissingError(RegistryError):
    """The registry has no such manifest or blob."""


class UnauthorizedError(RegistryError):
    """The registry does not let us."""


class LyingError(RegistryError):
    """A registry that contradicts its own manifest: nothing it has sent can be trusted."""


class RangesIgnoredError(RegistryError):
    """A registry that answers a request for a part with the whole blob."""

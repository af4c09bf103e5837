"""What the engine asks of a rule for replies: which tokens may come next."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TokenConstraint(Protocol):
    """A rule for one reply, which it follows token by token. Used by one thread."""

    def mask(self) -> Tensor | None:
        """[vocab] bool: True where a token may come next; None when any may.

        At least one may. The caller does not change it. Raises GenerationError when the rule has
        become too complex to be followed.
        """

    def accept(self, token_id: int) -> None:
        """The reply goes on with a token that the last mask allows.

        Returns at once: the next mask is made while the model computes. Raises GenerationError.
        """

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the reply ends here."""

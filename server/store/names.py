"""Model names: `[host/][namespace/]model[:tag]`, as Ollama parses, compares and shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rwkv_core.errors import AnserError

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"

# No part can begin with a dot or hold a slash, so no name can leave its folder in the store.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL = _TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class InvalidNameError(AnserError):
    """A name that no model can have."""

    def __init__(self, name: str) -> None:
        super().__init__("invalid model name")
        self.name = name


@dataclass(frozen=True)
class ModelName:
    """A complete, valid name. The parts keep the case they were written in; `key` compares."""

    host: str
    namespace: str
    model: str
    tag: str

    def __post_init__(self) -> None:
        parts = (
            (_HOST, self.host),
            (_NAMESPACE, self.namespace),
            (_MODEL, self.model),
            (_TAG, self.tag),
        )
        if not all(pattern.fullmatch(part) for pattern, part in parts):
            raise InvalidNameError(str(self))

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """The name that `text` stands for, with the defaults filled in. Raises InvalidNameError."""
        rest, tag = text.strip(), DEFAULT_TAG
        if rest.rfind(":") > rest.rfind("/"):
            rest, _, tag = rest.rpartition(":")
        scheme_and_host, _, path = rest.rpartition("://")
        *outer, model = path.split("/")
        if len(outer) > 2 or (scheme_and_host and len(outer) < 2):
            raise InvalidNameError(text)
        namespace = outer.pop() if outer else DEFAULT_NAMESPACE
        host = outer.pop() if outer else DEFAULT_HOST
        return cls(host, namespace, model, tag)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Equal for names that differ in case only."""
        return (self.host.lower(), self.namespace.lower(), self.model.lower(), self.tag.lower())

    @property
    def shortest(self) -> str:
        """The name as lists show it: no default host, no `library/`, always the tag."""
        host, namespace, *_ = self.key
        if host != DEFAULT_HOST:
            return str(self)
        if namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    def __str__(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

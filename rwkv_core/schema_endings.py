"""Schemas that no finite value fits, as they refer to themselves where a value must be.

A grammar of such a schema compiles, and a reply that has entered it never ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from rwkv_core.errors import GrammarError, quoted

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_CHOICES = ("anyOf", "oneOf")
_NAMED_SCHEMAS = ("properties", "patternProperties")
_LISTED_SCHEMAS = ("prefixItems", "allOf", *_CHOICES)
_SINGLE_SCHEMAS = ("items", "additionalProperties")
# Each pass settles at least one reference, and nearly all of them in any schema that was not made
# to take long. What is not settled then is let through.
_MAX_PASSES = 20


def check_endings(schema: Mapping[str, Any]) -> None:
    """Raises GrammarError where a reference leads to what cannot end.

    `schema` is within the limits of `check_schema`.
    """
    search = _Search(schema)
    for reference in search.endless():
        raise GrammarError(
            f"$ref {quoted(reference)} in it refers to itself without end: no value fits it; "
            "let it be left out, be null or be an empty list somewhere"
        )


class _Search:
    """Which of a schema's references lead to something that a finite value fits."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._targets = self._reachable_targets()
        self._ending: set[str] = set()  # references
        self._ending_ids: set[int] = set()  # of the parts of the schema
        self._seen_ids: set[int] = set()  # in this pass

    def endless(self) -> list[str]:
        references = list(self._targets)
        for _ in range(_MAX_PASSES):
            before = len(self._ending)
            self._seen_ids.clear()
            references = [each for each in references if not self._settle(each)]
            if len(self._ending) == before:
                return references
            references.reverse()  # chains may lead either way
        return []

    def _settle(self, reference: str) -> bool:
        if self._can_end(self._targets[reference]):
            self._ending.add(reference)
            return True
        return False

    def _reachable_targets(self) -> dict[str, Any]:
        targets: dict[str, Any] = {}
        waiting: list[Any] = [self._schema]
        while waiting:
            node = waiting.pop()
            if not isinstance(node, Mapping):
                continue
            waiting += _parts(node)
            for key in _REFERENCES:
                reference = node.get(key)
                if isinstance(reference, str) and reference not in targets:
                    found = _resolve(self._schema, reference)
                    if found is not None:
                        targets[reference] = found
                        waiting.append(found)
        return targets

    def _can_end(self, node: Any) -> bool:
        """Whether a finite value may fit, as far as is known."""
        if not isinstance(node, Mapping) or id(node) in self._ending_ids:
            return True
        if id(node) in self._seen_ids:
            return False
        self._seen_ids.add(id(node))
        ends = "const" in node or "enum" in node or self._every_part_ends(node)
        if ends:
            self._ending_ids.add(id(node))
        return ends

    def _every_part_ends(self, node: Mapping[str, Any]) -> bool:
        """What stands side by side in a schema must fit all together."""
        for key in _REFERENCES:
            reference = node.get(key)
            is_known = isinstance(reference, str) and reference in self._targets
            if is_known and reference not in self._ending:
                return False
        if not all(self._can_end(each) for each in _listed(node, "allOf")):
            return False
        for key in _CHOICES:
            choices = _listed(node, key)
            if choices and not any(self._can_end(each) for each in choices):
                return False
        kinds = node.get("type")
        kinds = kinds if isinstance(kinds, list) and kinds else [kinds]
        return any(
            self._object_ends(node)
            if kind == "object"
            else self._array_ends(node)
            if kind == "array"
            else True
            for kind in kinds
        )

    def _object_ends(self, node: Mapping[str, Any]) -> bool:
        properties, others = node.get("properties"), node.get("additionalProperties")
        named = properties if isinstance(properties, Mapping) else {}
        return all(
            self._can_end(named.get(name, others))
            for name in _listed(node, "required")
            if isinstance(name, str)
        )

    def _array_ends(self, node: Mapping[str, Any]) -> bool:
        count = node.get("minItems", 0)
        if not isinstance(count, int) or count <= 0:
            return True
        first = _listed(node, "prefixItems")
        return all(self._can_end(each) for each in first[:count]) and (
            count <= len(first) or self._can_end(node.get("items"))
        )


def _listed(node: Mapping[str, Any], key: str) -> list[Any]:
    value = node.get(key)
    return value if isinstance(value, list) else []


def _parts(node: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas right below one."""
    for key in _NAMED_SCHEMAS:
        named = node.get(key)
        if isinstance(named, Mapping):
            yield from named.values()
    for key in _LISTED_SCHEMAS:
        yield from _listed(node, key)
    for key in _SINGLE_SCHEMAS:
        yield node.get(key)


def _resolve(schema: Mapping[str, Any], reference: str) -> Any:
    """What a JSON pointer in the schema leads to; None for nothing, and for other references."""
    if reference == "#":
        return schema
    if not reference.startswith("#/"):
        return None
    node: Any = schema
    for step in unquote(reference[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and int(name[:9]) < len(node):
            node = node[int(name[:9])]
        else:
            return None
    return node

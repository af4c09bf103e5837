"""Parsed JSON into pydantic models by Go's rules, with the errors in Go's words.

Go matches keys without regard to case, lets null stand for "not given", ignores unknown fields,
reports the first wrong type in the order of the text, and stops at once where a type reads itself
(`think`, `keep_alive`, a message).
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from server.wire.errors import ApiError

_BUILTIN_TYPES = {str: "string", bool: "bool", int: "int", float: "float64", Any: "interface {}"}
_OWN_WORDS = "go_words"


class GoType(str):
    """Annotation of a field whose Go type has a name of its own, such as api.Tools."""


class GoModel(BaseModel):
    """A Go struct. `go_name` is its name in errors; `reads_itself`: it has an UnmarshalJSON."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)
    go_package: ClassVar[str] = "api"
    go_name: ClassVar[str]
    reads_itself: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _match_keys(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        known = _wire_names(cls)
        if data.keys() <= known.exact and None not in data.values():
            return data  # as nearly always, and for each message of a long chat
        return {
            known.by_lower[key.lower()]: value
            for key, value in data.items()
            if value is not None and key.lower() in known.by_lower
        }


def own_words(message: str) -> PydanticCustomError:
    """An error of a type that reads itself: raised by a validator, answered as it stands."""
    return PydanticCustomError(_OWN_WORDS, "{message}", {"message": message})


_Model = TypeVar("_Model", bound=GoModel)


def decode(kind: type[_Model], data: Any) -> _Model:
    """`data` as a `kind`. Raises ApiError (400) with what Go's decoder would say."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    problem = min(problems, key=lambda each: _precedence(kind, data, each))
    raise ApiError(400, _in_go_words(kind, problem))


class _WireNames(NamedTuple):
    exact: frozenset[str]
    by_lower: dict[str, str]


@cache
def _wire_names(kind: type[BaseModel]) -> _WireNames:
    names = _fields_by_wire_name(kind)
    return _WireNames(frozenset(names), {name.lower(): name for name in names})


def _fields_by_wire_name(kind: type[BaseModel]) -> dict[str, tuple[Any, str]]:
    """Type and Go name ("" if it has none of its own) by the name that stands in the JSON."""
    return {
        field.alias or name: (field.annotation, _go_name(field.metadata))
        for name, field in kind.model_fields.items()
    }


def _go_name(metadata: Iterable[Any]) -> str:
    return next((str(each) for each in metadata if isinstance(each, GoType)), "")


def _precedence(kind: type[GoModel], data: Any, problem: ErrorDetails) -> tuple[bool, list[int]]:
    """What stops Go at once comes before what it only remembers; then the order of the text."""
    stops_at_once = problem["type"] == _OWN_WORDS or _follow(kind, problem["loc"]).has_read_itself
    order = []
    for step in problem["loc"]:
        if isinstance(step, int):
            order.append(step)
            data = data[step]
        else:
            keys = [key.lower() for key in data]
            order.append(keys.index(step.lower()))
            data = list(data.values())[order[-1]]
    return not stops_at_once, order


def _in_go_words(kind: type[GoModel], problem: ErrorDetails) -> str:
    if problem["type"] == _OWN_WORDS:
        return problem["msg"]
    target = _follow(kind, problem["loc"])
    value = _describe(problem["input"], target.go_type)
    if not target.fields:
        return f"json: cannot unmarshal {value} into Go value of type {target.go_type}"
    path = f"{target.struct}.{'.'.join(target.fields)}"
    return f"json: cannot unmarshal {value} into Go struct field {path} of type {target.go_type}"


class _Target:
    """Where an error is: the Go type there, and the struct and fields that Go names."""

    def __init__(self, kind: type[GoModel]) -> None:
        self.fields: list[str] = []
        self.struct = kind.go_name
        self.has_read_itself = False
        self._type: Any = kind
        self._go_name = ""

    def enter(self, step: int | str) -> None:
        if _is_model(self._type):
            if not self.has_read_itself:
                self.struct = self._type.go_name
            self.fields.append(str(step))
            self._type, self._go_name = _unwrap(*_fields_by_wire_name(self._type)[str(step)])
        else:  # an element of a list or of a map, whose key Go does not name
            self._type, self._go_name = _unwrap(get_args(self._type)[-1])
            self.has_read_itself |= _is_model(self._type) and self._type.reads_itself

    @property
    def go_type(self) -> str:
        if _is_model(self._type) and self._type.reads_itself:
            return "api.Alias"  # the type that an UnmarshalJSON decodes into, to not call itself
        return self._go_name or _go_type(self._type)


def _follow(kind: type[GoModel], location: tuple[int | str, ...]) -> _Target:
    target = _Target(kind)
    for step in location:
        target.enter(step)
    return target


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, GoModel)


def _unwrap(annotation: Any, go_name: str = "") -> tuple[Any, str]:
    """The plain type behind Annotated and Optional, and its Go name."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *metadata = get_args(annotation)
            go_name = go_name or _go_name(metadata)
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(each for each in get_args(annotation) if each is not type(None))
        else:
            return annotation, go_name


def _go_type(annotation: Any) -> str:
    plain, go_name = _unwrap(annotation)
    if go_name:
        return go_name
    if _is_model(plain):
        return f"{plain.go_package}.{plain.go_name}"
    if get_origin(plain) is list:
        return f"[]{_go_type(get_args(plain)[0])}"
    if get_origin(plain) is dict:
        return f"map[string]{_go_type(get_args(plain)[1])}"
    return _BUILTIN_TYPES[plain]


def _describe(value: Any, go_type: str) -> str:
    """A JSON value as Go names it; a number that an integer cannot hold with its digits."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return f"number {value}" if go_type == "int" else "number"
    if value is None:
        return "null"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"

"""Reads the pickle of a PyTorch file as data: the names, shapes and places of its tensors.

`torch.save` describes tensors by pickled calls of two functions of PyTorch. This reader knows those
calls by name, notes their arguments and calls nothing, so a pickle cannot run code. It is what
`torch.load(weights_only=True)` is for, but it accepts less, it does not depend on PyTorch's version
(CVE-2025-32434 was a hole there), and shapes are checked before memory is taken for them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The classes of torch.save's storages, and TensorInfo's names for those that models use.
STORAGE_TYPES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class PickleError(ValueError):
    """What is wrong with the pickle, as the second half of a sentence about the file."""


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as torch.save describes it; nothing of it has been checked."""

    storage_key: str  # the record "data/<key>" of the archive
    type_name: str
    num_storage_items: int
    offset: int  # in items, into the storage
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class _Storage:
    key: str
    type_name: str
    num_items: int


_MARK = object()
_ORDERED_DICT = _Global("collections", "OrderedDict")
_REBUILD_TENSOR = _Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_PARAMETER = _Global("torch._utils", "_rebuild_parameter")
_ALLOWED = frozenset(
    (
        _ORDERED_DICT,
        _REBUILD_TENSOR,
        _REBUILD_PARAMETER,
        *(_Global("torch", name) for name in STORAGE_TYPES),
    )
)


def read_pickled_tensors(pickle: bytes) -> dict[str, PickledTensor]:
    """The tensors of a pickled dictionary, in its order; other entries are left out.

    Raises PickleError for a pickle that is damaged, wants to call anything, or is no dictionary.
    """
    try:
        value = _Machine().run(pickle)
    except PickleError:
        raise
    # A damaged pickle fails in the decoder (ValueError) or on operands of the wrong kind.
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise PickleError("it does not hold a dictionary of tensors")
    return {
        name: tensor
        for name, tensor in value.items()
        if isinstance(name, str) and isinstance(tensor, PickledTensor)
    }


class _Machine:
    """The part of pickle's stack machine that dictionaries of tensors need."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return self._pop()
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise PickleError(f"its pickle uses {opcode.name}, which no model's tensors need")
        raise PickleError("its pickle has no end")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def pop(self, _: Any) -> None:
        self._pop()

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(items[::-1]))

    def append(self, _: Any) -> None:
        item = self._pop()
        self._list().append(item)

    def appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._list().extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._dict()[_key(key)] = value

    def set_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._dict()[_key(key)] = value

    def global_(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_global(_Global(module, name))

    def stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push_global(_Global(_key(module), _key(name)))

    def reduce(self, _: Any) -> None:
        """Where pickle would call a function."""
        arguments, function = self._pop(), self._pop()
        if function == _ORDERED_DICT and arguments == ():
            self._stack.append({})
        elif function == _REBUILD_TENSOR:
            self._stack.append(_tensor(*arguments))
        elif function == _REBUILD_PARAMETER and isinstance(arguments[0], PickledTensor):
            self._stack.append(arguments[0])
        else:
            raise PickleError("its pickle is damaged (a call of no function)")

    def build(self, _: Any) -> None:
        """Where pickle would set attributes: the `_metadata` of state dictionaries, unused here."""
        self._pop()
        self._dict()

    def persistent_id(self, _: Any) -> None:
        kind, storage, key, _location, num_items = self._pop()
        if kind != "storage" or not isinstance(storage, _Global) or storage.module != "torch":
            raise PickleError("its pickle refers to something that is no storage")
        self._stack.append(_Storage(_key(key), STORAGE_TYPES[storage.name], _integer(num_items)))

    def _push_global(self, value: _Global) -> None:
        if value not in _ALLOWED:
            name = str(value)[:80]
            raise PickleError(
                f"its pickle asks for {name!r}: only tensors are read, nothing is run"
            )
        self._stack.append(value)

    def _list(self) -> list[Any]:
        if not isinstance(self._stack[-1], list):
            raise PickleError("its pickle is damaged (an item without its list)")
        return self._stack[-1]

    def _dict(self) -> dict[Any, Any]:
        if not isinstance(self._stack[-1], dict):
            raise PickleError("its pickle is damaged (an item without its dictionary)")
        return self._stack[-1]


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "POP": _Machine.pop,
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> PickledTensor:
    """Arguments of `_rebuild_tensor_v2`; those after the strides concern training."""
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple):
        raise PickleError("its pickle is damaged (a tensor without storage)")
    return PickledTensor(
        storage_key=storage.key,
        type_name=storage.type_name,
        num_storage_items=storage.num_items,
        offset=_integer(offset),
        shape=tuple(_integer(size) for size in shape),
        strides=tuple(_integer(stride) for stride in strides),
    )


def _key(value: Any) -> str:
    # Nothing but text is ever hashed or printed: a tuple of tuples can stand for 2^1000 items.
    if type(value) is not str:
        raise PickleError("its pickle uses something other than text as a name")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 63:
        raise PickleError("its pickle is damaged (a size that is no 64-bit integer)")
    return value

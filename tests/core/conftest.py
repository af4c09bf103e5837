"""The kernels with each instruction set, for the tests of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from rwkv_core import kernels
from tests.tools.native import Operations, require_kernels


def _isas() -> list[str]:
    native = kernels.native()
    return native.supported_isas() if native else ["not built"]


@pytest.fixture(params=_isas())
def native(request: pytest.FixtureRequest) -> Iterator[Operations]:
    """The extension with one of its instruction sets, and two threads."""
    extension = cast(Operations, require_kernels())
    before = extension.isa(), extension.num_threads()
    extension.set_isa(request.param)
    extension.set_num_threads(2)
    yield extension
    extension.set_isa(before[0])
    extension.set_num_threads(before[1])

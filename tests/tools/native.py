"""The kernels, for tests of them: they are skipped only where nobody asks for kernels."""

from __future__ import annotations

import os

import pytest

from rwkv_core import kernels
from rwkv_core.kernels.interface import Native


def require_kernels() -> Native:
    """The extension. Skips the test without it, unless ANSER_REQUIRE_KERNELS is set: then fails."""
    native = kernels.native()
    if native is None:
        if os.environ.get("ANSER_REQUIRE_KERNELS"):
            pytest.fail("ANSER_REQUIRE_KERNELS is set, but the kernels are not built")
        pytest.skip("the kernels are not built")
    return native

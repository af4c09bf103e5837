"""The CPU kernels: the one way from Python to the C++ in `native/`.

Everything here has a counterpart in PyTorch that gives the same numbers up to rounding, which is
the reference and what runs where the kernels are not built: `matmul` of a packed matrix is
`formulas.linear` with the numbers that `checkpoint.ggml_blocks.dequantize` gives; `forward` is
`formulas.forward_hidden` and the head. Native code is given addresses, so that what is no
contiguous array of the right type and size is refused here.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rwkv_core.checkpoint.ggml_blocks import LAYOUTS, Bytes
from rwkv_core.kernels.interface import Floats, Int32s, Int64s, Native, NativeMatrix, NativeModel
from rwkv_core.kernels.sources import source_hash
from rwkv_core.state import State

log = logging.getLogger(__name__)

# First rows of slices that a matrix is filled with are multiples of it.
ROW_MULTIPLE = 128
# Columns of a slice, at least, and slices of a matrix, at most: see `num_slices`.
SLICE_COLUMNS = 512
MOST_SLICES = 16

_SOURCES = Path(__file__).with_name("native")


def native() -> Native | None:
    """The extension; None where it is not built or `ANSER_KERNELS` is "off".

    The first call logs one line of warning if it is not built or older than its sources.
    """
    return None if os.environ.get("ANSER_KERNELS") == "off" else _extension()


@functools.cache
def _extension() -> Native | None:
    try:
        extension = cast(Native, importlib.import_module("_rwkv_kernels"))
    except ImportError as error:
        log.warning(
            "kernels are not built (%s): speed is plain PyTorch's; install a C++ compiler and run "
            "pip install again",
            str(error).partition("\n")[0],
        )
        return None
    if _SOURCES.is_dir() and source_hash(_SOURCES) != extension.SOURCE_HASH:
        log.warning("kernels were built from other sources than these; run pip install again")
    return extension


def isa() -> str | None:
    """The instruction set in use; None without kernels."""
    extension = native()
    return extension.isa() if extension else None


def num_threads() -> int | None:
    """Threads of the kernels' own; None without kernels."""
    extension = native()
    return extension.num_threads() if extension else None


def empty_matrix(
    type_name: str, rows: int, cols: int, *, by_columns: bool = False, slices: int = 1
) -> NativeMatrix:
    """Memory for a matrix; `fill` it with all its rows. Needs kernels.

    By columns, those whose activations are zero are not read; products are the same in both
    layouts, if of equally many `slices`: partial sums that every output is made of.

    Raises MemoryError, and ValueError for sizes that the type or the layout does not allow.
    """
    return _needed().Matrix(LAYOUTS[type_name].type_id, rows, cols, by_columns, slices)


def num_slices(type_name: str, cols: int) -> int:
    """Of a matrix that may be laid out by columns: as many as threads can share well."""
    layout = LAYOUTS[type_name]
    blocks = cols // layout.values_per_block
    return max(1, min(cols // SLICE_COLUMNS, blocks, MOST_SLICES)) if layout.is_quantized else 1


def fill(matrix: NativeMatrix, type_name: str, first_row: int, raw: Bytes) -> None:
    """Packs rows as a GGUF file stores them; `first_row` is a multiple of ROW_MULTIPLE."""
    num_rows, rest = divmod(raw.size, LAYOUTS[type_name].num_bytes(matrix.cols))
    if raw.dtype != np.uint8 or raw.ndim != 1 or not raw.flags.c_contiguous or rest:
        raise ValueError(f"no whole rows of {matrix.cols} {type_name} values")
    if first_row % ROW_MULTIPLE or not 0 <= first_row <= matrix.rows - num_rows:
        raise ValueError(f"{num_rows} rows from {first_row} on, of {matrix.rows}")
    matrix.fill(first_row, raw)


def pack(
    type_name: str,
    raw: Bytes,
    rows: int,
    cols: int,
    *,
    by_columns: bool = False,
    slices: int = 1,
) -> NativeMatrix:
    """A whole matrix [rows, cols] from its rows as a GGUF file stores them."""
    if raw.size != LAYOUTS[type_name].num_bytes(rows * cols):
        raise ValueError(f"{raw.size} bytes are no {rows} x {cols} {type_name} values")
    matrix = empty_matrix(type_name, rows, cols, by_columns=by_columns, slices=slices)
    fill(matrix, type_name, 0, raw)
    return matrix


def matmul(matrix: NativeMatrix, x: Tensor) -> Tensor:
    """x [T, cols] times the matrix transposed -> [T, rows], both float32 on the CPU."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 2:
        raise ValueError("the kernels multiply rows of float32 on the CPU")
    if x.shape[1] != matrix.cols:
        raise ValueError(f"rows of {x.shape[1]} values for a matrix with {matrix.cols} columns")
    out = torch.empty(x.shape[0], matrix.rows)
    if x.shape[0]:
        _needed().matmul(matrix, x.detach().contiguous().numpy(), out.numpy())
    return out


def forward(
    model: NativeModel,
    tokens: Int32s,
    starts: Int32s,
    states: Sequence[State],
    wanted_rows: Int32s,
    out: Tensor,
    *,
    hidden: bool = False,
) -> None:
    """One pass over consecutive segments of `tokens`; see `NativeModel.forward`, or with `hidden`
    its `forward_hidden`. Changes `states`.

    `states` are of batch size 1 and of the model's sizes, which `Model` has checked.
    """
    addresses: Int64s = np.array([state.addresses for state in states], np.int64)
    found: Floats = out.numpy()
    if out.dtype != torch.float32 or not out.is_contiguous() or len(wanted_rows) != len(out):
        raise ValueError("what is wanted goes into contiguous rows of float32")
    run = model.forward_hidden if hidden else model.forward
    run(tokens, starts, addresses, wanted_rows, found)


def _needed() -> Native:
    extension = native()
    if extension is None:
        raise RuntimeError("the kernels are not built, or turned off by ANSER_KERNELS")
    return extension

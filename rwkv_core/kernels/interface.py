"""What the extension module `_rwkv_kernels` (the C++ in `native/`) offers, for the type checker.

Arrays are NumPy's, contiguous and of exactly the dtypes named here; those that are only read may be
read-only. Calls that take long release the GIL; passes of several threads follow one another.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class NativeMatrix(Protocol):
    """A weight matrix [rows, cols], packed for the kernels."""

    @property
    def nbytes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

    def fill(self, first_row: int, raw: Bytes) -> None:
        """Packs whole rows as they lie in a GGUF file; `first_row` is a multiple of 128."""


class NativeModel(Protocol):
    """The weights under their canonical names, and a forward pass."""

    def set_vector(self, name: str, values: Floats) -> None: ...
    def set_matrix(self, name: str, matrix: NativeMatrix) -> None:
        """Matrices are output-major, those of the low-rank pairs too."""

    def set_embedding(self, type_id: int, raw: Bytes) -> None:
        """Copies the rows [vocab_size, n_embd] of a ggml type as they are."""

    def finish(self) -> None:
        """Ends loading. Raises ValueError when something is missing or of another size."""

    def replace_matrix(self, name: str, matrix: NativeMatrix) -> None:
        """A loaded matrix in another layout; waits for a pass to end.

        Raises ValueError, and changes nothing, for one of another type or size.
        """

    def forward(
        self, tokens: Int32s, starts: Int32s, states: Int64s, wanted_rows: Int32s, out: Floats
    ) -> None:
        """Reads R tokens, in segments from `starts[s]` to `starts[s + 1]`.

        `states` [S, 6]: for each segment address and floats from layer to layer of time shift,
        channel shift and WKV state, which change. `out` [M, V] gets the logits of the rows
        `wanted_rows` [M].
        """

    def forward_hidden(
        self, tokens: Int32s, starts: Int32s, states: Int64s, wanted_rows: Int32s, out: Floats
    ) -> None:
        """The same, but `out` [M, n_embd] gets what the head reads: the rows behind `ln_out`."""

    def zero_channels(self) -> tuple[list[int], int]:
        """How many hidden channels were zero in the channel mix of each layer since the reset, and
        of how many in a layer: over all rows of all passes.
        """

    def reset_counters(self) -> None: ...


class Native(Protocol):
    """The module."""

    SOURCE_HASH: str

    def isa(self) -> str:
        """The instruction set in use, one of `INSTRUCTION_SETS`."""

    def supported_isas(self) -> list[str]:
        """Those that this processor has, the best first."""

    def set_isa(self, name: str) -> None: ...
    def num_threads(self) -> int: ...
    def set_num_threads(self, count: int) -> None: ...
    def read_bandwidth(self, num_bytes: int) -> float:
        """Bytes/s at which all threads together read that much memory."""

    def max_rows(self) -> int:
        """The most tokens of one `NativeModel.forward`."""

    def Matrix(
        self, type_id: int, rows: int, cols: int, by_columns: bool, slices: int
    ) -> NativeMatrix:
        """An empty matrix of a ggml type. Raises ValueError for a bad size, and MemoryError."""

    def matmul(self, matrix: NativeMatrix, x: Floats, out: Floats) -> None:
        """out [T, rows] = x [T, cols] times the matrix transposed."""

    def Model(
        self,
        n_layer: int,
        n_embd: int,
        head_size: int,
        n_ffn: int,
        vocab_size: int,
        layer_norm_eps: float,
        group_norm_eps: float,
    ) -> NativeModel: ...

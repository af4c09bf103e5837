"""The instruction sets of the CPU kernels, for the command line and settings: no imports."""

from __future__ import annotations

# As `ANSER_ISA` names them, those of each kind of processor from the best on. `native/cpu.cpp` has
# them the other way round.
INSTRUCTION_SETS = ("avx512", "avx2", "dotprod", "neon", "portable")

#include <arm_neon.h>
#define ANSER_ISA dotprod
#define ANSER_SIMD_NEON
#include "kernels.inl"

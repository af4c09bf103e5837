#include <arm_neon.h>
#define ANSER_ISA neon
#define ANSER_SIMD_NEON
#include "kernels.inl"

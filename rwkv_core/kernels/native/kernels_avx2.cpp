#include <immintrin.h>
#define ANSER_ISA avx2
#define ANSER_SIMD_AVX2
#include "kernels.inl"

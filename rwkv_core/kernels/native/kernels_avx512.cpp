#include <immintrin.h>
#define ANSER_ISA avx512
#define ANSER_SIMD_AVX512
#include "kernels.inl"

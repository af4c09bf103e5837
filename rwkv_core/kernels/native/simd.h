// The vector operations that the kernels are written in, one implementation for an instruction set.
//
// A translation unit defines ANSER_ISA (its namespace) and includes the headers of its compiler
// first. The kernels must call no inline function of the standard library: the linker keeps one copy
// of these for the whole program, which may be the one with instructions this processor lacks.
//
//     F   16 float32 lanes
//     I   16 int32 lanes
//     B   64 bytes
#pragma once
#include <stdint.h>
#include <string.h>

// The sanitizers' compiler takes minutes for what is inlined into everything; it need not be fast there.
#if defined(__SANITIZE_ADDRESS__)
#define ANSER_FORCED
#else
#define ANSER_FORCED __attribute__((always_inline))
#endif
#define ANSER_INLINE static inline ANSER_FORCED

#if defined(ANSER_SIMD_AVX512)
#include "simd_avx512.h"
#elif defined(ANSER_SIMD_AVX2)
#include "simd_avx2.h"
#elif defined(ANSER_SIMD_NEON)
#include "simd_neon.h"
#else
#include "simd_portable.h"
#endif

namespace anser::ANSER_ISA {

ANSER_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// exp(x) to about 1 ulp: 2^n * p(r), r in [-ln 2 / 2, ln 2 / 2]; the polynomial is the Taylor series
// to r^7, whose next term is below 2^-26 there. Inputs are clamped to where the result is normal; a
// NaN stays one.
ANSER_INLINE F exp(F x) {
    x = min(splat(88.0f), max(splat(-87.0f), x));
    I n = round_to_int(mul(x, splat(1.44269504f)));
    F whole = to_float(n);
    F r = fma(whole, splat(-0.693145752f), x);  // ln 2 in two parts: the first times n is exact
    r = fma(whole, splat(-1.42860677e-6f), r);
    F p = splat(1.0f / 5040);
    p = fma(p, r, splat(1.0f / 720));
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return times_power_of_two(p, n);
}

ANSER_INLINE F sigmoid(F x) { return div(splat(1.0f), add(splat(1.0f), exp(neg(x)))); }

// 2 sigmoid(2x) - 1 would lose the small values: x - x^3/3 + ... is used there.
ANSER_INLINE F tanh(F x) {
    F magnitude = abs(x);
    F e = exp(mul(magnitude, splat(-2.0f)));
    F large = div(sub(splat(1.0f), e), add(splat(1.0f), e));
    F square = mul(x, x);
    F p = splat(-17.0f / 315);
    p = fma(p, square, splat(2.0f / 15));
    p = fma(p, square, splat(-1.0f / 3));
    F small = fma(mul(p, square), magnitude, magnitude);
    return copy_sign(select_less(magnitude, splat(0.0625f), small, large), x);
}

}  // namespace anser::ANSER_ISA

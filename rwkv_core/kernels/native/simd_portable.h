// Plain C++ in loops of fixed length, for the compiler to vectorise on any processor.
#pragma once
#include <math.h>

namespace anser::ANSER_ISA {

struct F {
    float v[16];
};
struct I {
    int32_t v[16];
};
struct B {
    uint8_t v[64];
};

#define ANSER_LANES for (int i = 0; i < 16; ++i)
#define ANSER_BYTES for (int i = 0; i < 64; ++i)

ANSER_INLINE F load(const float* p) {
    F x;
    memcpy(x.v, p, sizeof x.v);
    return x;
}
ANSER_INLINE void store(float* p, F x) { memcpy(p, x.v, sizeof x.v); }
ANSER_INLINE F splat(float value) {
    F x;
    ANSER_LANES x.v[i] = value;
    return x;
}
ANSER_INLINE F zero() { return splat(0.0f); }
ANSER_INLINE F add(F a, F b) {
    ANSER_LANES a.v[i] += b.v[i];
    return a;
}
ANSER_INLINE F sub(F a, F b) {
    ANSER_LANES a.v[i] -= b.v[i];
    return a;
}
ANSER_INLINE F mul(F a, F b) {
    ANSER_LANES a.v[i] *= b.v[i];
    return a;
}
ANSER_INLINE F div(F a, F b) {
    ANSER_LANES a.v[i] /= b.v[i];
    return a;
}
// One rounding where the processor has the instruction, two elsewhere: fmaf would be a library call.
ANSER_INLINE F fma(F a, F b, F c) {
#if defined(__FMA__) || defined(__aarch64__)
    ANSER_LANES a.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
#else
    ANSER_LANES a.v[i] = a.v[i] * b.v[i] + c.v[i];
#endif
    return a;
}
// A NaN in `a` yields b.
ANSER_INLINE F min(F a, F b) {
    ANSER_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
ANSER_INLINE F max(F a, F b) {
    ANSER_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
ANSER_INLINE F abs(F x) {
    ANSER_LANES x.v[i] = __builtin_fabsf(x.v[i]);
    return x;
}
ANSER_INLINE F neg(F x) {
    ANSER_LANES x.v[i] = -x.v[i];
    return x;
}
ANSER_INLINE F copy_sign(F magnitude, F sign) {
    ANSER_LANES magnitude.v[i] = __builtin_copysignf(magnitude.v[i], sign.v[i]);
    return magnitude;
}
// a < b ? yes : no
ANSER_INLINE F select_less(F a, F b, F yes, F no) {
    ANSER_LANES no.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i];
    return no;
}
// In the order of the vector instructions of the other sets.
ANSER_INLINE float sum(F x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
    return x.v[0];
}
ANSER_INLINE float largest(F x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}

ANSER_INLINE float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
// Without branches: shifts the exponent into place by an exact product, infinity and NaN apart.
ANSER_INLINE float half_to_float(uint16_t half) {
    uint32_t magnitude = (uint32_t)(half & 0x7FFF) << 13;
    float scaled = bits_to_float(magnitude) * bits_to_float(0x77800000);  // 2^112
    uint32_t bits;
    memcpy(&bits, &scaled, 4);
    bits = magnitude >= 0x0F800000 ? magnitude | 0x7F800000 : bits;
    return bits_to_float(bits | (uint32_t)(half & 0x8000) << 16);
}
ANSER_INLINE F load_f16(const void* p) {
    uint16_t halves[16];
    memcpy(halves, p, sizeof halves);
    F x;
    ANSER_LANES x.v[i] = half_to_float(halves[i]);
    return x;
}
ANSER_INLINE F load_bf16(const void* p) {
    uint16_t halves[16];
    memcpy(halves, p, sizeof halves);
    F x;
    ANSER_LANES x.v[i] = bits_to_float((uint32_t)halves[i] << 16);
    return x;
}
ANSER_INLINE F load_bf16_even(const void* p) {
    uint16_t halves[32];
    memcpy(halves, p, sizeof halves);
    F x;
    ANSER_LANES x.v[i] = bits_to_float((uint32_t)halves[2 * i] << 16);
    return x;
}
ANSER_INLINE F load_bf16_odd(const void* p) {
    uint16_t halves[32];
    memcpy(halves, p, sizeof halves);
    F x;
    ANSER_LANES x.v[i] = bits_to_float((uint32_t)halves[2 * i + 1] << 16);
    return x;
}
ANSER_INLINE F load_u8(const uint8_t* p) {
    F x;
    ANSER_LANES x.v[i] = p[i];
    return x;
}
ANSER_INLINE F load_i8(const int8_t* p) {
    F x;
    ANSER_LANES x.v[i] = p[i];
    return x;
}

ANSER_INLINE I splat(int32_t value) {
    I x;
    ANSER_LANES x.v[i] = value;
    return x;
}
ANSER_INLINE F to_float(I a) {
    F x;
    ANSER_LANES x.v[i] = (float)a.v[i];
    return x;
}
// To nearest, ties to even, for |x| < 2^22: the addition rounds the fraction off.
ANSER_INLINE I round_to_int(F a) {
    I x;
    ANSER_LANES {
        float moved = a.v[i] + 12582912.0f;  // 1.5 * 2^23
        memcpy(&x.v[i], &moved, 4);
        x.v[i] -= 0x4B400000;
    }
    return x;
}
ANSER_INLINE void store_i8(int8_t* p, I x) { ANSER_LANES p[i] = (int8_t)x.v[i]; }
ANSER_INLINE int32_t sum(I x) {
    int32_t total = 0;
    ANSER_LANES total += x.v[i];
    return total;
}
ANSER_INLINE F times_power_of_two(F x, I n) {  // x and the product normal
    ANSER_LANES {
        uint32_t bits;
        memcpy(&bits, &x.v[i], 4);
        x.v[i] = bits_to_float(bits + ((uint32_t)n.v[i] << 23));
    }
    return x;
}

ANSER_INLINE B load_bytes(const uint8_t* p) {
    B x;
    memcpy(x.v, p, 64);
    return x;
}
ANSER_INLINE void store_bytes(uint8_t* p, B x) { memcpy(p, x.v, 64); }
ANSER_INLINE B zero_bytes() { return B{}; }
ANSER_INLINE B or_bytes(B a, B b) {
    ANSER_BYTES a.v[i] |= b.v[i];
    return a;
}
ANSER_INLINE B low_nibbles(B x) {
    ANSER_BYTES x.v[i] &= 15;
    return x;
}
ANSER_INLINE B high_nibbles(B x) {
    ANSER_BYTES x.v[i] >>= 4;
    return x;
}
// ((x >> shift) & mask) << 4 in every byte
template <int shift, int mask>
ANSER_INLINE B high_part(B x) {
    ANSER_BYTES x.v[i] = (uint8_t)((x.v[i] >> shift & mask) << 4);
    return x;
}

// See simd_avx512.h.
template <int bits, int offset, int count>
ANSER_INLINE void dot(const uint8_t* codes, int groups, const int8_t* activations,
                      const int32_t* negated_sums, I* out) {
    for (int n = 0; n < count; ++n) {
        out[n] = splat(offset * negated_sums[n]);
        for (int g = 0; g < groups; ++g) {
            const uint8_t* w = codes + 64 * g;
            const int8_t* x = activations + 32 * n + 4 * g;
            ANSER_LANES out[n].v[i] += w[4 * i] * x[0] + w[4 * i + 1] * x[1] + w[4 * i + 2] * x[2] +
                                       w[4 * i + 3] * x[3];
        }
    }
}

// The same for one token and codes in registers, `groups` of them.
template <int bits, int offset, int groups>
ANSER_INLINE I dot_one(const B* codes, const int8_t* activations, int32_t negated_sum) {
    I total;
    dot<bits, offset, 1>((const uint8_t*)codes, groups, activations, &negated_sum, &total);
    return total;
}

// One more group for a sum that dot_one began.
template <int bits>
ANSER_INLINE I dot_add(I total, B codes, const int8_t* four_activations) {
    I more = dot_one<bits, 0, 1>(&codes, four_activations, 0);
    ANSER_LANES total.v[i] += more.v[i];
    return total;
}

// Four columns of 64 codes in `column_place` order -> four times [16 rows][4 columns].
ANSER_INLINE void interleave(const B columns[4], B rows[4]) {
    for (int q = 0; q < 4; ++q)
        for (int lane = 0; lane < 4; ++lane)
            for (int j = 0; j < 4; ++j)
                for (int c = 0; c < 4; ++c)
                    rows[q].v[16 * lane + 4 * j + c] = columns[c].v[16 * lane + 4 * q + j];
}

// 32 bytes of two nibbles -> 64 codes: the low halves, then the high halves.
ANSER_INLINE B widen_nibbles(const uint8_t* p) {
    B x;
    for (int i = 0; i < 32; ++i) {
        x.v[i] = p[i] & 15;
        x.v[32 + i] = p[i] >> 4;
    }
    return x;
}
// 64 bits -> 64 bytes of 0 or 16
ANSER_INLINE B widen_bits(const uint8_t* p) {
    B x;
    ANSER_BYTES x.v[i] = (uint8_t)((p[i / 8] >> i % 8 & 1) << 4);
    return x;
}
// 16 bytes of four pairs -> 64 bytes of pair << 4: all first pairs, then all second ones, ...
ANSER_INLINE B widen_pairs(const uint8_t* p) {
    B x;
    for (int pair = 0; pair < 4; ++pair)
        for (int i = 0; i < 16; ++i) x.v[16 * pair + i] = (uint8_t)((p[i] >> 2 * pair & 3) << 4);
    return x;
}

// The bits of those of 32 bytes that are not zero.
ANSER_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
    uint32_t mask = 0;
    for (int i = 0; i < 32; ++i) mask |= (uint32_t)(p[i] != 0) << i;
    return mask;
}

ANSER_INLINE void prefetch(const void*) {}

#undef ANSER_LANES
#undef ANSER_BYTES

constexpr int kTokensAtOnce = 4;
constexpr int kHeadVectors = 1;  // of a head's value columns, see wkv.inl

}  // namespace anser::ANSER_ISA

// AVX2, FMA and F16C: vectors in two halves.
#pragma once

namespace anser::ANSER_ISA {

struct F {
    __m256 a, b;
};
struct I {
    __m256i a, b;
};
struct B {
    __m256i a, b;
};

ANSER_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

ANSER_INLINE F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ANSER_INLINE void store(float* p, F x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
ANSER_INLINE F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ANSER_INLINE F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
ANSER_INLINE F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
ANSER_INLINE F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
ANSER_INLINE F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
ANSER_INLINE F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
ANSER_INLINE F fma(F x, F y, F z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// A NaN in `x` yields y, as the instruction does.
ANSER_INLINE F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
ANSER_INLINE F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
ANSER_INLINE F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
ANSER_INLINE F neg(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(sign, x.a), _mm256_xor_ps(sign, x.b)};
}
ANSER_INLINE F copy_sign(F magnitude, F sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(magnitude.a, _mm256_and_ps(sign.a, bit)),
            _mm256_or_ps(magnitude.b, _mm256_and_ps(sign.b, bit))};
}
// x < y ? yes : no
ANSER_INLINE F select_less(F x, F y, F yes, F no) {
    return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
ANSER_INLINE float sum(F x) {
    __m256 half = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
ANSER_INLINE float largest(F x) {
    __m256 half = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

ANSER_INLINE F load_f16(const void* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
ANSER_INLINE F load_bf16(const void* p) {
    const __m128i* q = (const __m128i*)p;
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
            _mm256_castsi256_ps(
                _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
ANSER_INLINE F load_bf16_even(const void* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(load_256(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(load_256((const char*)p + 32), 16))};
}
ANSER_INLINE F load_bf16_odd(const void* p) {
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000);
    return {_mm256_castsi256_ps(_mm256_and_si256(load_256(p), upper)),
            _mm256_castsi256_ps(_mm256_and_si256(load_256((const char*)p + 32), upper))};
}
ANSER_INLINE F load_u8(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}
ANSER_INLINE F load_i8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
}

ANSER_INLINE I splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
ANSER_INLINE F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
ANSER_INLINE I round_to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
ANSER_INLINE void store_i8(int8_t* p, I x) {
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)p, bytes);
}
ANSER_INLINE int32_t sum(I x) {
    __m256i half = _mm256_add_epi32(x.a, x.b);
    __m128i q = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xB1)));
}
ANSER_INLINE F times_power_of_two(F x, I n) {  // x and the product normal
    return {_mm256_castsi256_ps(
                _mm256_add_epi32(_mm256_castps_si256(x.a), _mm256_slli_epi32(n.a, 23))),
            _mm256_castsi256_ps(
                _mm256_add_epi32(_mm256_castps_si256(x.b), _mm256_slli_epi32(n.b, 23)))};
}

ANSER_INLINE B load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
ANSER_INLINE void store_bytes(uint8_t* p, B x) {
    _mm256_storeu_si256((__m256i*)p, x.a);
    _mm256_storeu_si256((__m256i*)(p + 32), x.b);
}
ANSER_INLINE B zero_bytes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
ANSER_INLINE B or_bytes(B x, B y) {
    return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
ANSER_INLINE B and_bytes(B x, __m256i mask) {
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
ANSER_INLINE B low_nibbles(B x) { return and_bytes(x, _mm256_set1_epi8(15)); }
ANSER_INLINE B high_nibbles(B x) {
    return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
// ((x >> shift) & mask) << 4 in every byte
template <int shift, int mask>
ANSER_INLINE B high_part(B x) {
    constexpr int right = shift > 4 ? shift - 4 : 0, left = shift > 4 ? 0 : 4 - shift;
    B moved = {_mm256_slli_epi16(_mm256_srli_epi16(x.a, right), left),
               _mm256_slli_epi16(_mm256_srli_epi16(x.b, right), left)};
    return and_bytes(moved, _mm256_set1_epi8(mask << 4));
}

// Pairs of 16-bit sums -> 32 bits.
ANSER_INLINE __m256i widen_sums(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

// See simd_avx512.h. Products of a code and an activation are added in pairs of 16 bits, which
// saturate: with codes of 4, 5 and 6 bits 8, 4 and 2 such sums fit before they must be widened; codes
// of 8 bits are multiplied as |code| times the activation with the code's sign.
template <int bits, int offset, int count>
ANSER_INLINE void dot(const uint8_t* codes, int groups, const int8_t* activations,
                      const int32_t* negated_sums, I* out) {
    if constexpr (bits == 8) {
        static_assert(offset == 128);
        for (int n = 0; n < count; ++n) out[n] = splat((int32_t)0);
#pragma GCC unroll 8
        for (int g = 0; g < groups; ++g) {
            const __m256i flip = _mm256_set1_epi8((char)0x80);
            __m256i wa = _mm256_xor_si256(load_256(codes + 64 * g), flip);
            __m256i wb = _mm256_xor_si256(load_256(codes + 64 * g + 32), flip);
            __m256i ma = _mm256_abs_epi8(wa), mb = _mm256_abs_epi8(wb);
#pragma GCC unroll 4
            for (int n = 0; n < count; ++n) {
                int32_t four;
                memcpy(&four, activations + 32 * n + 4 * g, 4);
                __m256i x = _mm256_set1_epi32(four);
                __m256i pa = _mm256_maddubs_epi16(ma, _mm256_sign_epi8(x, wa));
                __m256i pb = _mm256_maddubs_epi16(mb, _mm256_sign_epi8(x, wb));
                out[n].a = _mm256_add_epi32(out[n].a, widen_sums(pa));
                out[n].b = _mm256_add_epi32(out[n].b, widen_sums(pb));
            }
        }
        return;
    }
    constexpr int run = bits == 4 ? 8 : bits == 5 ? 4 : 2;
    for (int n = 0; n < count; ++n) out[n] = splat(offset * negated_sums[n]);
    for (int first = 0; first < groups; first += run) {
        __m256i pa[count], pb[count];
        for (int n = 0; n < count; ++n) pa[n] = pb[n] = _mm256_setzero_si256();
        const int last = first + run < groups ? first + run : groups;
#pragma GCC unroll 8
        for (int g = first; g < last; ++g) {
            __m256i wa = load_256(codes + 64 * g), wb = load_256(codes + 64 * g + 32);
#pragma GCC unroll 4
            for (int n = 0; n < count; ++n) {
                int32_t four;
                memcpy(&four, activations + 32 * n + 4 * g, 4);
                __m256i x = _mm256_set1_epi32(four);
                pa[n] = _mm256_add_epi16(pa[n], _mm256_maddubs_epi16(wa, x));
                pb[n] = _mm256_add_epi16(pb[n], _mm256_maddubs_epi16(wb, x));
            }
        }
        for (int n = 0; n < count; ++n) {
            out[n].a = _mm256_add_epi32(out[n].a, widen_sums(pa[n]));
            out[n].b = _mm256_add_epi32(out[n].b, widen_sums(pb[n]));
        }
    }
}

// The same for one token and codes in registers, `groups` of them.
template <int bits, int offset, int groups>
ANSER_INLINE I dot_one(const B* codes, const int8_t* activations, int32_t negated_sum) {
    constexpr int run = bits == 8 ? 1 : bits == 4 ? 8 : bits == 5 ? 4 : 2;
    I total = splat(bits == 8 ? 0 : offset * negated_sum);
#pragma GCC unroll 8
    for (int first = 0; first < groups; first += run) {
        __m256i pa = _mm256_setzero_si256(), pb = pa;
        const int last = first + run < groups ? first + run : groups;
#pragma GCC unroll 8
        for (int g = first; g < last; ++g) {
            int32_t four;
            memcpy(&four, activations + 4 * g, 4);
            __m256i x = _mm256_set1_epi32(four);
            if constexpr (bits == 8) {
                const __m256i flip = _mm256_set1_epi8((char)0x80);
                __m256i wa = _mm256_xor_si256(codes[g].a, flip);
                __m256i wb = _mm256_xor_si256(codes[g].b, flip);
                pa = _mm256_maddubs_epi16(_mm256_abs_epi8(wa), _mm256_sign_epi8(x, wa));
                pb = _mm256_maddubs_epi16(_mm256_abs_epi8(wb), _mm256_sign_epi8(x, wb));
            } else {
                pa = _mm256_add_epi16(pa, _mm256_maddubs_epi16(codes[g].a, x));
                pb = _mm256_add_epi16(pb, _mm256_maddubs_epi16(codes[g].b, x));
            }
        }
        total.a = _mm256_add_epi32(total.a, widen_sums(pa));
        total.b = _mm256_add_epi32(total.b, widen_sums(pb));
    }
    return total;
}

// One more group for a sum that dot_one began.
template <int bits>
ANSER_INLINE I dot_add(I total, B codes, const int8_t* four_activations) {
    I more = dot_one<bits, bits == 8 ? 128 : 0, 1>(&codes, four_activations, 0);
    return {_mm256_add_epi32(total.a, more.a), _mm256_add_epi32(total.b, more.b)};
}

// Four columns of 64 codes in `column_place` order -> four times [16 rows][4 columns].
ANSER_INLINE void interleave_256(__m256i c0, __m256i c1, __m256i c2, __m256i c3, __m256i out[4]) {
    __m256i ab_low = _mm256_unpacklo_epi8(c0, c1), ab_high = _mm256_unpackhi_epi8(c0, c1);
    __m256i cd_low = _mm256_unpacklo_epi8(c2, c3), cd_high = _mm256_unpackhi_epi8(c2, c3);
    out[0] = _mm256_unpacklo_epi16(ab_low, cd_low);
    out[1] = _mm256_unpackhi_epi16(ab_low, cd_low);
    out[2] = _mm256_unpacklo_epi16(ab_high, cd_high);
    out[3] = _mm256_unpackhi_epi16(ab_high, cd_high);
}
ANSER_INLINE void interleave(const B columns[4], B rows[4]) {
    __m256i low[4], high[4];
    interleave_256(columns[0].a, columns[1].a, columns[2].a, columns[3].a, low);
    interleave_256(columns[0].b, columns[1].b, columns[2].b, columns[3].b, high);
    for (int q = 0; q < 4; ++q) rows[q] = {low[q], high[q]};
}

// 32 bytes of two nibbles -> 64 codes: the low halves, then the high halves.
ANSER_INLINE B widen_nibbles(const uint8_t* p) {
    __m256i x = load_256(p);
    return low_nibbles({x, _mm256_srli_epi16(x, 4)});
}
// 32 bits -> 32 bytes of 0 or 16
ANSER_INLINE __m256i widen_32_bits(const uint8_t* p) {
    int32_t word;
    memcpy(&word, p, 4);
    const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                               0x0303030303030303);
    const __m256i bit_of = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i x = _mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of);
    x = _mm256_cmpeq_epi8(_mm256_and_si256(x, bit_of), bit_of);
    return _mm256_and_si256(x, _mm256_set1_epi8(16));
}
ANSER_INLINE B widen_bits(const uint8_t* p) { return {widen_32_bits(p), widen_32_bits(p + 4)}; }
// 16 bytes of four pairs -> 64 bytes of pair << 4: all first pairs, then all second ones, ...
ANSER_INLINE B widen_pairs(const uint8_t* p) {
    __m128i x = _mm_loadu_si128((const __m128i*)p);
    __m256i first = _mm256_set_m128i(_mm_slli_epi16(x, 2), _mm_slli_epi16(x, 4));
    __m256i last = _mm256_set_m128i(_mm_srli_epi16(x, 2), x);
    return and_bytes({first, last}, _mm256_set1_epi8(0x30));
}

// The bits of those of 32 bytes that are not zero.
ANSER_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
    return ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(load_256(p), _mm256_setzero_si256()));
}

ANSER_INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

constexpr int kTokensAtOnce = 4;
constexpr int kHeadVectors = 1;  // of a head's value columns, see wkv.inl

}  // namespace anser::ANSER_ISA

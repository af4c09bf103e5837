// AVX-512 F, BW, VL, DQ and VNNI.
#pragma once

namespace anser::ANSER_ISA {

using F = __m512;
using I = __m512i;
using B = __m512i;

ANSER_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
ANSER_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
ANSER_INLINE F splat(float x) { return _mm512_set1_ps(x); }
ANSER_INLINE F zero() { return _mm512_setzero_ps(); }
ANSER_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
ANSER_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
ANSER_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
ANSER_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
ANSER_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// A NaN in `a` yields b, as the instruction does.
ANSER_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
ANSER_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
ANSER_INLINE F abs(F x) { return _mm512_abs_ps(x); }
ANSER_INLINE F neg(F x) { return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f)); }
ANSER_INLINE F copy_sign(F magnitude, F sign) {
    return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
}
// a < b ? yes : no
ANSER_INLINE F select_less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
ANSER_INLINE float sum(F x) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
ANSER_INLINE float largest(F x) { return _mm512_reduce_max_ps(x); }

ANSER_INLINE F load_f16(const void* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
ANSER_INLINE F load_bf16(const void* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
// 16 pairs of bfloat16, the first or the second of each.
ANSER_INLINE F load_bf16_even(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
ANSER_INLINE F load_bf16_odd(const void* p) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xFFFF0000)));
}
ANSER_INLINE F load_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
ANSER_INLINE F load_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

ANSER_INLINE I splat(int32_t x) { return _mm512_set1_epi32(x); }
ANSER_INLINE F to_float(I x) { return _mm512_cvtepi32_ps(x); }
ANSER_INLINE I round_to_int(F x) { return _mm512_cvtps_epi32(x); }  // to nearest, ties to even
ANSER_INLINE void store_i8(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x)); }
ANSER_INLINE int32_t sum(I x) { return _mm512_reduce_add_epi32(x); }
ANSER_INLINE F times_power_of_two(F x, I n) {  // x and the product normal
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(n, 23)));
}

ANSER_INLINE B load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
ANSER_INLINE void store_bytes(uint8_t* p, B x) { _mm512_storeu_si512(p, x); }
ANSER_INLINE B zero_bytes() { return _mm512_setzero_si512(); }
ANSER_INLINE B or_bytes(B a, B b) { return _mm512_or_si512(a, b); }
ANSER_INLINE B low_nibbles(B x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
ANSER_INLINE B high_nibbles(B x) {
    return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}
// ((x >> shift) & mask) << 4 in every byte
template <int shift, int mask>
ANSER_INLINE B high_part(B x) {
    __m512i moved = shift > 4 ? _mm512_srli_epi16(x, shift > 4 ? shift - 4 : 0)
                              : _mm512_slli_epi16(x, shift > 4 ? 0 : 4 - shift);
    return _mm512_and_si512(moved, _mm512_set1_epi8(mask << 4));
}

// In every lane; in this way nothing goes through a general register.
template <int offset>
ANSER_INLINE I times_offset(int32_t x) {
    static_assert((offset & (offset - 1)) == 0);
    if constexpr (offset == 0) return _mm512_setzero_si512();
    return _mm512_slli_epi32(_mm512_set1_epi32(x), __builtin_ctz(offset));
}

// out[n] = sum over 4 * groups columns of (code - offset) * activation, for 16 rows and `count`
// tokens: codes [groups][16 rows][4], activations [count][32] with the first group's at 0, and for
// every token minus the sum of its activations.
template <int bits, int offset, int count>
ANSER_INLINE void dot(const uint8_t* codes, int groups, const int8_t* activations,
                      const int32_t* negated_sums, I* out) {
    for (int n = 0; n < count; ++n) out[n] = times_offset<offset>(negated_sums[n]);
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) {
        __m512i w = _mm512_loadu_si512(codes + 64 * g);
#pragma GCC unroll 8
        for (int n = 0; n < count; ++n) {
            int32_t four;
            memcpy(&four, activations + 32 * n + 4 * g, 4);
            out[n] = _mm512_dpbusd_epi32(out[n], w, _mm512_set1_epi32(four));
        }
    }
}

// The same for one token and codes in registers, `groups` of them.
template <int bits, int offset, int groups>
ANSER_INLINE I dot_one(const B* codes, const int8_t* activations, int32_t negated_sum) {
    __m512i total = times_offset<offset>(negated_sum);
#pragma GCC unroll 8
    for (int g = 0; g < groups; ++g) {
        int32_t four;
        memcpy(&four, activations + 4 * g, 4);
        total = _mm512_dpbusd_epi32(total, codes[g], _mm512_set1_epi32(four));
    }
    return total;
}

// One more group for a sum that dot_one began.
template <int bits>
ANSER_INLINE I dot_add(I total, B codes, const int8_t* four_activations) {
    int32_t four;
    memcpy(&four, four_activations, 4);
    return _mm512_dpbusd_epi32(total, codes, _mm512_set1_epi32(four));
}

// Four columns of 64 codes in `column_place` order -> four times [16 rows][4 columns].
ANSER_INLINE void interleave(const B columns[4], B rows[4]) {
    __m512i ab_low = _mm512_unpacklo_epi8(columns[0], columns[1]);
    __m512i ab_high = _mm512_unpackhi_epi8(columns[0], columns[1]);
    __m512i cd_low = _mm512_unpacklo_epi8(columns[2], columns[3]);
    __m512i cd_high = _mm512_unpackhi_epi8(columns[2], columns[3]);
    rows[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
    rows[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
    rows[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
    rows[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
}

// 32 bytes of two nibbles -> 64 codes: the low halves, then the high halves.
ANSER_INLINE B widen_nibbles(const uint8_t* p) {
    __m256i x = _mm256_loadu_si256((const __m256i*)p);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(x), _mm256_srli_epi16(x, 4), 1);
    return _mm512_and_si512(both, _mm512_set1_epi8(15));
}
// 64 bits -> 64 bytes of 0 or 16
ANSER_INLINE B widen_bits(const uint8_t* p) {
    uint64_t mask;
    memcpy(&mask, p, 8);
    return _mm512_maskz_set1_epi8(mask, 16);
}
// 16 bytes of four pairs -> 64 bytes of pair << 4: all first pairs, then all second ones, ...
ANSER_INLINE B widen_pairs(const uint8_t* p) {
    __m512i x = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
    constexpr long long two = 0x0002000200020002, four = 0x0004000400040004;
    const __m512i left = _mm512_setr_epi64(four, four, two, two, 0, 0, 0, 0);
    const __m512i right = _mm512_setr_epi64(0, 0, 0, 0, 0, 0, two, two);
    return _mm512_and_si512(_mm512_srlv_epi16(_mm512_sllv_epi16(x, left), right),
                            _mm512_set1_epi8(0x30));
}

// The bits of those of 32 bytes that are not zero.
ANSER_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
    __m256i x = _mm256_loadu_si256((const __m256i*)p);
    return _mm256_test_epi8_mask(x, x);
}

ANSER_INLINE void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

constexpr int kTokensAtOnce = 8;
constexpr int kHeadVectors = 4;  // of a head's value columns, see wkv.inl

}  // namespace anser::ANSER_ISA

// ARM's NEON, which every 64-bit ARM processor has: vectors in four quarters. Where the compiler may use
// the dot product instructions of ARMv8.2, so do the integer products.
#pragma once

namespace anser::ANSER_ISA {

struct F {
    float32x4_t a, b, c, d;
};
struct I {
    int32x4_t a, b, c, d;
};
struct B {
    uint8x16_t a, b, c, d;
};

ANSER_INLINE F load(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
ANSER_INLINE void store(float* p, F x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
    vst1q_f32(p + 8, x.c);
    vst1q_f32(p + 12, x.d);
}
ANSER_INLINE F splat(float value) {
    const float32x4_t x = vdupq_n_f32(value);
    return {x, x, x, x};
}
ANSER_INLINE F zero() { return splat(0.0f); }
ANSER_INLINE F add(F x, F y) { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
ANSER_INLINE F sub(F x, F y) { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
ANSER_INLINE F mul(F x, F y) { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
ANSER_INLINE F div(F x, F y) { return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
ANSER_INLINE F fma(F x, F y, F z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
            vfmaq_f32(z.d, x.d, y.d)};
}
// x < y ? yes : no
ANSER_INLINE F select_less(F x, F y, F yes, F no) {
    return {vbslq_f32(vcltq_f32(x.a, y.a), yes.a, no.a), vbslq_f32(vcltq_f32(x.b, y.b), yes.b, no.b),
            vbslq_f32(vcltq_f32(x.c, y.c), yes.c, no.c), vbslq_f32(vcltq_f32(x.d, y.d), yes.d, no.d)};
}
// A NaN in `x` yields y, as in the other sets; the instructions for it here yield a NaN.
ANSER_INLINE F min(F x, F y) { return select_less(x, y, x, y); }
ANSER_INLINE F max(F x, F y) { return select_less(y, x, x, y); }
ANSER_INLINE F abs(F x) { return {vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)}; }
ANSER_INLINE F neg(F x) { return {-x.a, -x.b, -x.c, -x.d}; }
ANSER_INLINE F copy_sign(F magnitude, F sign) {
    const uint32x4_t bit = vdupq_n_u32(0x80000000);
    return {vbslq_f32(bit, sign.a, magnitude.a), vbslq_f32(bit, sign.b, magnitude.b),
            vbslq_f32(bit, sign.c, magnitude.c), vbslq_f32(bit, sign.d, magnitude.d)};
}
// In the order of the vector instructions of the other sets.
ANSER_INLINE float sum(F x) {
    const float32x4_t four = (x.a + x.c) + (x.b + x.d);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
ANSER_INLINE float largest(F x) {
    return vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(x.a, x.c), vmaxnmq_f32(x.b, x.d)));
}

ANSER_INLINE F load_f16(const void* p) {
    const uint16_t* q = (const uint16_t*)p;
    const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(q));
    const float16x8_t high = vreinterpretq_f16_u16(vld1q_u16(q + 8));
    return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
            vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)};
}
ANSER_INLINE F load_bf16(const void* p) {
    const uint16_t* q = (const uint16_t*)p;
    const uint16x8_t low = vld1q_u16(q), high = vld1q_u16(q + 8);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(low), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(low, 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(high), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(high, 16))};
}
ANSER_INLINE uint32x4_t load_words(const void* p) { return vld1q_u32((const uint32_t*)p); }
ANSER_INLINE F load_bf16_even(const void* p) {
    const char* q = (const char*)p;
    return {vreinterpretq_f32_u32(load_words(q) << 16), vreinterpretq_f32_u32(load_words(q + 16) << 16),
            vreinterpretq_f32_u32(load_words(q + 32) << 16),
            vreinterpretq_f32_u32(load_words(q + 48) << 16)};
}
ANSER_INLINE F load_bf16_odd(const void* p) {
    const char* q = (const char*)p;
    const uint32x4_t upper = vdupq_n_u32(0xFFFF0000);
    return {vreinterpretq_f32_u32(load_words(q) & upper),
            vreinterpretq_f32_u32(load_words(q + 16) & upper),
            vreinterpretq_f32_u32(load_words(q + 32) & upper),
            vreinterpretq_f32_u32(load_words(q + 48) & upper)};
}
ANSER_INLINE F load_u8(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))};
}
ANSER_INLINE F load_i8(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))};
}

ANSER_INLINE I splat(int32_t value) {
    const int32x4_t x = vdupq_n_s32(value);
    return {x, x, x, x};
}
ANSER_INLINE I add(I x, I y) { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
ANSER_INLINE F to_float(I x) {
    return {vcvtq_f32_s32(x.a), vcvtq_f32_s32(x.b), vcvtq_f32_s32(x.c), vcvtq_f32_s32(x.d)};
}
ANSER_INLINE I round_to_int(F x) {  // to nearest, ties to even
    return {vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b), vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d)};
}
ANSER_INLINE void store_i8(int8_t* p, I x) {
    const int16x8_t low = vmovn_high_s32(vmovn_s32(x.a), x.b);
    const int16x8_t high = vmovn_high_s32(vmovn_s32(x.c), x.d);
    vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
}
ANSER_INLINE int32_t sum(I x) { return vaddvq_s32((x.a + x.b) + (x.c + x.d)); }
ANSER_INLINE float32x4_t times_power_of_two(float32x4_t x, int32x4_t n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(n, 23)));
}
ANSER_INLINE F times_power_of_two(F x, I n) {  // x and the product normal
    return {times_power_of_two(x.a, n.a), times_power_of_two(x.b, n.b),
            times_power_of_two(x.c, n.c), times_power_of_two(x.d, n.d)};
}

ANSER_INLINE B load_bytes(const uint8_t* p) {
    return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
}
ANSER_INLINE void store_bytes(uint8_t* p, B x) {
    vst1q_u8(p, x.a);
    vst1q_u8(p + 16, x.b);
    vst1q_u8(p + 32, x.c);
    vst1q_u8(p + 48, x.d);
}
ANSER_INLINE B splat_bytes(uint8_t value) {
    const uint8x16_t x = vdupq_n_u8(value);
    return {x, x, x, x};
}
ANSER_INLINE B zero_bytes() { return splat_bytes(0); }
ANSER_INLINE B or_bytes(B x, B y) { return {x.a | y.a, x.b | y.b, x.c | y.c, x.d | y.d}; }
ANSER_INLINE B and_bytes(B x, B y) { return {x.a & y.a, x.b & y.b, x.c & y.c, x.d & y.d}; }
template <int count>
ANSER_INLINE B shift_left(B x) {
    return {vshlq_n_u8(x.a, count), vshlq_n_u8(x.b, count), vshlq_n_u8(x.c, count),
            vshlq_n_u8(x.d, count)};
}
template <int count>
ANSER_INLINE B shift_right(B x) {
    return {vshrq_n_u8(x.a, count), vshrq_n_u8(x.b, count), vshrq_n_u8(x.c, count),
            vshrq_n_u8(x.d, count)};
}
ANSER_INLINE B low_nibbles(B x) { return and_bytes(x, splat_bytes(15)); }
ANSER_INLINE B high_nibbles(B x) { return shift_right<4>(x); }
// ((x >> shift) & mask) << 4 in every byte
template <int shift, int mask>
ANSER_INLINE B high_part(B x) {
    if constexpr (shift > 4) return and_bytes(shift_right<shift - 4>(x), splat_bytes(mask << 4));
    else return and_bytes(shift_left<4 - shift>(x), splat_bytes(mask << 4));
}

// Codes of 8 bits as they are less 128; the others fit a signed byte, and what is subtracted from them
// is in the first value of a sum.
struct SignedCodes {
    int8x16_t a, b, c, d;
};
template <int bits>
ANSER_INLINE SignedCodes signed_codes(B x) {
    if constexpr (bits == 8) {
        const uint8x16_t flip = vdupq_n_u8(0x80);
        x = {x.a ^ flip, x.b ^ flip, x.c ^ flip, x.d ^ flip};
    }
    return {vreinterpretq_s8_u8(x.a), vreinterpretq_s8_u8(x.b), vreinterpretq_s8_u8(x.c),
            vreinterpretq_s8_u8(x.d)};
}
template <int bits, int offset>
ANSER_INLINE I first_value(int32_t negated_sum) {
    static_assert(bits < 8 || offset == 128);
    return splat(bits == 8 ? (int32_t)0 : offset * negated_sum);
}
ANSER_INLINE int8x16_t repeat_four(const int8_t* activations) {
    int32_t four;
    memcpy(&four, activations, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

#if defined(__ARM_FEATURE_DOTPROD)

// Sums of products of four codes and four activations, for 16 rows.
struct Products {
    I sums;
};
template <int bits>
constexpr int kGroupsTogether = 8;
constexpr bool kSeveralInRegisters = true;  // products of some tokens

ANSER_INLINE Products no_products() { return {splat((int32_t)0)}; }
ANSER_INLINE void add_products(Products& to, const SignedCodes& w, int8x16_t x) {
    to.sums = {vdotq_s32(to.sums.a, w.a, x), vdotq_s32(to.sums.b, w.b, x),
               vdotq_s32(to.sums.c, w.c, x), vdotq_s32(to.sums.d, w.d, x)};
}
ANSER_INLINE I add_sums(I total, const Products& products) { return add(total, products.sums); }

#else

// Products of codes and activations, 16 bits each: those of two rows and four columns in a vector.
struct Products {
    int16x8_t a, b, c, d, e, f, g, h;
};
// So many products of a code of `bits` and an activation fit 16 bits.
template <int bits>
constexpr int kGroupsTogether = bits == 8 ? 2 : bits == 6 ? 4 : 8;
constexpr bool kSeveralInRegisters = false;

ANSER_INLINE Products no_products() {
    const int16x8_t x = vdupq_n_s16(0);
    return {x, x, x, x, x, x, x, x};
}
ANSER_INLINE void add_products(Products& to, const SignedCodes& w, int8x16_t x) {
    const int8x8_t half = vget_low_s8(x);
    to = {vmlal_s8(to.a, vget_low_s8(w.a), half), vmlal_high_s8(to.b, w.a, x),
          vmlal_s8(to.c, vget_low_s8(w.b), half), vmlal_high_s8(to.d, w.b, x),
          vmlal_s8(to.e, vget_low_s8(w.c), half), vmlal_high_s8(to.f, w.c, x),
          vmlal_s8(to.g, vget_low_s8(w.d), half), vmlal_high_s8(to.h, w.d, x)};
}
ANSER_INLINE int32x4_t sums_of_four(int16x8_t low, int16x8_t high) {
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
ANSER_INLINE I add_sums(I total, const Products& p) {
    return {total.a + sums_of_four(p.a, p.b), total.b + sums_of_four(p.c, p.d),
            total.c + sums_of_four(p.e, p.f), total.d + sums_of_four(p.g, p.h)};
}

#endif

template <int bits, int count>
ANSER_INLINE void add_groups(const uint8_t* codes, int groups, const int8_t* activations, I* out) {
    for (int first = 0; first < groups; first += kGroupsTogether<bits>) {
        const int rest = groups - first;
        const int last = first + (rest < kGroupsTogether<bits> ? rest : kGroupsTogether<bits>);
        Products products[count];
#pragma GCC unroll 4
        for (int n = 0; n < count; ++n) products[n] = no_products();
        for (int g = first; g < last; ++g) {
            const SignedCodes w = signed_codes<bits>(load_bytes(codes + 64 * g));
#pragma GCC unroll 4
            for (int n = 0; n < count; ++n)
                add_products(products[n], w, repeat_four(activations + 32 * n + 4 * g));
        }
#pragma GCC unroll 4
        for (int n = 0; n < count; ++n) out[n] = add_sums(out[n], products[n]);
    }
}

// See simd_avx512.h.
template <int bits, int offset, int count>
ANSER_INLINE void dot(const uint8_t* codes, int groups, const int8_t* activations,
                      const int32_t* negated_sums, I* out) {
    constexpr int together = kSeveralInRegisters ? count : 1;
#pragma GCC unroll 4
    for (int n = 0; n < count; ++n) out[n] = first_value<bits, offset>(negated_sums[n]);
#pragma GCC unroll 4
    for (int n = 0; n < count; n += together)
        add_groups<bits, together>(codes, groups, activations + 32 * n, out + n);
}

// The same for one token and codes in registers, `groups` of them.
template <int bits, int offset, int groups>
ANSER_INLINE I dot_one(const B* codes, const int8_t* activations, int32_t negated_sum) {
    constexpr int together = kGroupsTogether<bits>;
    I total = first_value<bits, offset>(negated_sum);
#pragma GCC unroll 8
    for (int first = 0; first < groups; first += together) {
        Products products = no_products();
        const int last = first + together < groups ? first + together : groups;
#pragma GCC unroll 8
        for (int g = first; g < last; ++g)
            add_products(products, signed_codes<bits>(codes[g]), repeat_four(activations + 4 * g));
        total = add_sums(total, products);
    }
    return total;
}

// One more group for a sum that dot_one began.
template <int bits>
ANSER_INLINE I dot_add(I total, B codes, const int8_t* four_activations) {
    Products products = no_products();
    add_products(products, signed_codes<bits>(codes), repeat_four(four_activations));
    return add_sums(total, products);
}

// Four columns of 64 codes in `column_place` order -> four times [16 rows][4 columns].
ANSER_INLINE void interleave_quarter(uint8x16_t c0, uint8x16_t c1, uint8x16_t c2, uint8x16_t c3,
                                     uint8x16_t out[4]) {
    const uint16x8_t ab_low = vreinterpretq_u16_u8(vzip1q_u8(c0, c1));
    const uint16x8_t ab_high = vreinterpretq_u16_u8(vzip2q_u8(c0, c1));
    const uint16x8_t cd_low = vreinterpretq_u16_u8(vzip1q_u8(c2, c3));
    const uint16x8_t cd_high = vreinterpretq_u16_u8(vzip2q_u8(c2, c3));
    out[0] = vreinterpretq_u8_u16(vzip1q_u16(ab_low, cd_low));
    out[1] = vreinterpretq_u8_u16(vzip2q_u16(ab_low, cd_low));
    out[2] = vreinterpretq_u8_u16(vzip1q_u16(ab_high, cd_high));
    out[3] = vreinterpretq_u8_u16(vzip2q_u16(ab_high, cd_high));
}
ANSER_INLINE void interleave(const B columns[4], B rows[4]) {
    uint8x16_t a[4], b[4], c[4], d[4];
    interleave_quarter(columns[0].a, columns[1].a, columns[2].a, columns[3].a, a);
    interleave_quarter(columns[0].b, columns[1].b, columns[2].b, columns[3].b, b);
    interleave_quarter(columns[0].c, columns[1].c, columns[2].c, columns[3].c, c);
    interleave_quarter(columns[0].d, columns[1].d, columns[2].d, columns[3].d, d);
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) rows[q] = {a[q], b[q], c[q], d[q]};
}

// 32 bytes of two nibbles -> 64 codes: the low halves, then the high halves.
ANSER_INLINE B widen_nibbles(const uint8_t* p) {
    const uint8x16_t x = vld1q_u8(p), y = vld1q_u8(p + 16), low = vdupq_n_u8(15);
    return {x & low, y & low, vshrq_n_u8(x, 4), vshrq_n_u8(y, 4)};
}
// 16 bits -> 16 bytes of 0 or 16
ANSER_INLINE uint8x16_t widen_16_bits(const uint8_t* p) {
    const uint8x16_t bit_of = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t bytes = vcombine_u8(vdup_n_u8(p[0]), vdup_n_u8(p[1]));
    return vtstq_u8(bytes, bit_of) & vdupq_n_u8(16);
}
// 64 bits -> 64 bytes of 0 or 16
ANSER_INLINE B widen_bits(const uint8_t* p) {
    return {widen_16_bits(p), widen_16_bits(p + 2), widen_16_bits(p + 4), widen_16_bits(p + 6)};
}
// 16 bytes of four pairs -> 64 bytes of pair << 4: all first pairs, then all second ones, ...
ANSER_INLINE B widen_pairs(const uint8_t* p) {
    const uint8x16_t x = vld1q_u8(p);
    return and_bytes({vshlq_n_u8(x, 4), vshlq_n_u8(x, 2), x, vshrq_n_u8(x, 2)}, splat_bytes(0x30));
}

// The bits of those of 32 bytes that are not zero.
ANSER_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
    const uint8x16_t bit_of = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t x = vld1q_u8(p), y = vld1q_u8(p + 16);
    // Three sums of neighbours: the bits of eight bytes in one.
    uint8x16_t bits = vpaddq_u8(vtstq_u8(x, x) & bit_of, vtstq_u8(y, y) & bit_of);
    bits = vpaddq_u8(bits, bits);
    return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(bits, bits)), 0);
}

ANSER_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

constexpr int kTokensAtOnce = 4;
constexpr int kHeadVectors = 1;  // of a head's value columns, see wkv.inl

}  // namespace anser::ANSER_ISA

// What is done to single rows of activations. Lengths are multiples of 16; every sum is taken in one
// order, whatever else is computed beside it.

namespace anser::ANSER_ISA {

constexpr float kSmallestBlock = 1e-30f;  // blocks below are zero: 127 / amax must stay finite

ANSER_INLINE void set_sums(int32_t low, int32_t high, int32_t* negated_sums, int64_t T) {
    negated_sums[0] = -low;
    negated_sums[T] = -high;
    negated_sums[2 * T] = -low - high;
}

// A block with an infinity or a NaN has no codes: its scale makes every product with it a NaN.
static void mark_not_finite(const float* x, int64_t first, int64_t last, int64_t t, int64_t T,
                            int8_t* codes, float* scales, int32_t* negated_sums, float* scaled_sums) {
    for (int64_t b = first; b < last; ++b) {
        F zeros = fma(load(x + 32 * b), zero(), mul(load(x + 32 * b + 16), zero()));
        if (sum(zeros) == 0.0f) continue;
        memset(codes + (b * T + t) * 32, 1, 32);
        scales[b * T + t] = scaled_sums[b * T + t] = __builtin_nanf("");
        set_sums(16, 16, negated_sums + 3 * b * T + t, T);
    }
}

// Of a NaN, any code: what is computed with it is not kept.
ANSER_INLINE I code_of(F x) { return round_to_int(max(min(x, splat(127.0f)), splat(-127.0f))); }

static void quantize(const float* x, int64_t first, int64_t last, int64_t t, int64_t T,
                     int8_t* codes, float* scales, int32_t* negated_sums, float* scaled_sums) {
    F zeros = zero();
    for (int64_t b = first; b < last; ++b) {
        F low = load(x + 32 * b), high = load(x + 32 * b + 16);
        zeros = fma(low, zero(), fma(high, zero(), zeros));
        float amax = largest(max(abs(low), abs(high)));
        float scale = 0.0f, inverse = 0.0f;
        if (amax >= kSmallestBlock) {
            scale = amax / 127.0f;
            inverse = 127.0f / amax;
        }
        I low_codes = code_of(mul(low, splat(inverse)));
        I high_codes = code_of(mul(high, splat(inverse)));
        int8_t* out = codes + (b * T + t) * 32;
        store_i8(out, low_codes);
        store_i8(out + 16, high_codes);
        int32_t low_sum = sum(low_codes), high_sum = sum(high_codes);
        scales[b * T + t] = scale;
        set_sums(low_sum, high_sum, negated_sums + 3 * b * T + t, T);
        scaled_sums[b * T + t] = scale * (float)(low_sum + high_sum);
    }
    if (sum(zeros) != 0.0f)
        mark_not_finite(x, first, last, t, T, codes, scales, negated_sums, scaled_sums);
}

static void pack_active(const int8_t* codes, int64_t b, int64_t T, bool split_halves,
                        uint32_t* active, int8_t* packed) {
    codes += b * T * 32;
    packed += b * T * 32;
    uint8_t seen[32] = {};
    for (int64_t t = 0; t < T; ++t)
        for (int c = 0; c < 32; ++c) seen[c] |= (uint8_t)codes[32 * t + c];
    const uint32_t mask = nonzero_bytes(seen);
    active[b] = mask;

    memset(packed, 0, (size_t)T * 32);
    int place = 0;
    auto take = [&](uint32_t channels) {
        for (; channels; channels &= channels - 1, ++place) {
            const int channel = __builtin_ctz(channels);
            for (int64_t t = 0; t < T; ++t) packed[32 * t + place] = codes[32 * t + channel];
        }
    };
    if (split_halves) {
        take(mask & 0xFFFFu);
        place = 16;
        take(mask & 0xFFFF0000u);
    } else {
        take(mask);
    }
}

// Four sums side by side, so that an addition need not wait for the one before.
template <class Term>
ANSER_INLINE float sum_of(int64_t n, Term term) {
    F sums[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], term(i + 16 * j));
    for (; i < n; i += 16) sums[0] = add(sums[0], term(i));
    return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// The mean of n values, and 1 / (their standard deviation), with eps added to the variance.
struct Moments {
    float mean, inverse;
};
ANSER_INLINE Moments moments_of(const float* x, int64_t n, float eps) {
    const float mean = sum_of(n, [=](int64_t i) { return load(x + i); }) / (float)n;
    const float squares = sum_of(n, [=](int64_t i) {
        F difference = sub(load(x + i), splat(mean));
        return mul(difference, difference);
    });
    return {mean, 1.0f / __builtin_sqrtf(squares / (float)n + eps)};
}
ANSER_INLINE F normalize(F x, Moments m, F weight, F bias) {
    return fma(mul(sub(x, splat(m.mean)), splat(m.inverse)), weight, bias);
}

static void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                       float* out) {
    const Moments m = moments_of(x, n, eps);
    for (int64_t i = 0; i < n; i += 16)
        store(out + i, normalize(load(x + i), m, load(weight + i), load(bias + i)));
}

static void mix(const float* h, const float* previous, const float* lerp, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += 16) {
        F now = load(h + i);
        store(out + i, fma(sub(load(previous + i), now), load(lerp + i), now));
    }
}

static void add(float* x, const float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store(x + i, add(load(x + i), load(y + i)));
}

static void tanh_rows(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store(x + i, tanh(load(x + i)));
}

static void sigmoid_rows(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) store(x + i, sigmoid(load(x + i)));
}

constexpr float kSmallestFloat = 1.4e-45f;

static int64_t relu_squared(float* x, int64_t n) {
    F zeros = zero();  // counts, exact to 2^24 a lane
    for (int64_t i = 0; i < n; i += 16) {
        F positive = max(zero(), load(x + i));  // in this order a NaN stays one
        F square = mul(positive, positive);
        zeros = add(zeros, select_less(square, splat(kSmallestFloat), splat(1.0f), zero()));
        store(x + i, square);
    }
    return (int64_t)sum(zeros);
}

static float sum_rows(const float* x, int64_t n) {
    F sums[8] = {zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < n; i += 128)
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sums[j] = add(sums[j], load(x + i + 16 * j));
    F total = zero();
    for (int j = 0; j < 8; ++j) total = add(total, sums[j]);
    return sum(total);
}

}  // namespace anser::ANSER_ISA

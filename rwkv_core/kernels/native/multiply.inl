// Matrix products with packed weights. See matrix.h for the layouts, kernels.h for the contract.
//
// Every output is one lane of one accumulator: for each sub-block of 32 columns, in order, the exact
// integer sum of code * activation is scaled and added. Neither the number of tokens nor the number
// of threads changes that order.

namespace anser::ANSER_ISA {

// What tells the quantized types apart. `bits` bounds the codes; `offset` is subtracted from them.
template <Type type>
struct Format;
#define ANSER_FORMAT(type, bits_, low_, high_, offset_, block_, record_, has_minimum_)          \
    template <>                                                                              \
    struct Format<Type::type> {                                                              \
        static constexpr Type kType = Type::type;                                            \
        static constexpr int bits = bits_, low_bits = low_, high_bits = high_;                \
        static constexpr int offset = offset_, block = block_, subs = block_ / 32;            \
        static constexpr int record = 16 * record_, sub_bytes = 64 * (low_ + high_);           \
        static constexpr int bytes = record_ + subs * sub_bytes / 16;                          \
        static constexpr bool has_minimum = has_minimum_, is_split = Type::type == Type::Q6_K; \
        static constexpr bool has_six_bits = has_minimum_ && block_ == 256;                   \
        static constexpr int together = blocks_together(record_);                             \
    }
ANSER_FORMAT(Q8_0, 8, 8, 0, 128, 32, 2, false);
ANSER_FORMAT(Q4_0, 4, 4, 0, 8, 32, 2, false);
ANSER_FORMAT(Q4_1, 4, 4, 0, 0, 32, 4, true);
ANSER_FORMAT(Q5_0, 5, 4, 1, 16, 32, 2, false);
ANSER_FORMAT(Q5_1, 5, 4, 1, 0, 32, 4, true);
ANSER_FORMAT(Q4_K, 4, 4, 0, 0, 256, 16, true);
ANSER_FORMAT(Q5_K, 5, 4, 1, 0, 256, 16, true);
ANSER_FORMAT(Q6_K, 6, 4, 2, 32, 256, 18, false);
#undef ANSER_FORMAT

// ---- scales -----------------------------------------------------------------------------------

constexpr int kSixBitBytes = 256;

// The 6-bit numbers of a Q4_K or Q5_K record, one byte each: [4][scale j, scale j + 4, minimum j,
// minimum j + 4][16 rows].
ANSER_INLINE void expand_six_bits(const uint8_t* record, uint8_t* out) {
    B first = load_bytes(record + 64), second = load_bytes(record + 128);
    B high = load_bytes(record + 192);
    store_bytes(out, or_bytes(low_nibbles(first), high_part<0, 3>(high)));
    store_bytes(out + 64, or_bytes(high_nibbles(first), high_part<2, 3>(high)));
    store_bytes(out + 128, or_bytes(low_nibbles(second), high_part<4, 3>(high)));
    store_bytes(out + 192, or_bytes(high_nibbles(second), high_part<6, 3>(high)));
}

// The scales and minima of 16 rows for one sub-block of 32 columns.
struct SubScales {
    F scale, second;  // `second`: of the upper 16 columns, for Q6_K
    F minimum;        // what is added for an activation of 1
};

template <class Fm>
ANSER_INLINE SubScales scales_of(const uint8_t* record, const uint8_t* six_bits, int sub) {
    SubScales s;
    F d = load_f16(record);
    if constexpr (Fm::has_six_bits) {
        const uint8_t* numbers = six_bits + 64 * (sub % 4) + 16 * (sub / 4);
        s.scale = mul(d, load_u8(numbers));
        s.minimum = neg(mul(load_f16(record + 32), load_u8(numbers + 32)));
    } else if constexpr (Fm::is_split) {
        const int8_t* numbers = (const int8_t*)record + 32 + 32 * sub;
        s.scale = mul(d, load_i8(numbers));
        s.second = mul(d, load_i8(numbers + 16));
    } else {
        s.scale = d;
        if constexpr (Fm::has_minimum) s.minimum = load_f16(record + 32);
    }
    return s;
}

// ---- one sub-block, some tokens -----------------------------------------------------------------

// Adds the integer sums of one token for one sub-block to its accumulator, in the one order there is.
template <class Fm>
ANSER_INLINE F add_scaled(I dot, I second_dot, const SubScales& s, const Rows& rows, int64_t b,
                          int64_t t, F acc) {
    F scale = splat(rows.scales[b * rows.count + t]);
    acc = fma(to_float(dot), mul(s.scale, scale), acc);
    if constexpr (Fm::is_split) acc = fma(to_float(second_dot), mul(s.second, scale), acc);
    if constexpr (Fm::has_minimum)
        acc = fma(s.minimum, splat(rows.scaled_sums[b * rows.count + t]), acc);
    return acc;
}

// One token with the codes in registers.
template <class Fm>
ANSER_INLINE F add_to_one(const B codes[8], const SubScales& s, const Rows& rows, int64_t b, F acc) {
    const int8_t* activations = rows.codes + b * 32;
    const int32_t* sums = rows.negated_sums + 3 * b;
    if constexpr (Fm::is_split) {
        I first = dot_one<Fm::bits, Fm::offset, 4>(codes, activations, sums[0]);
        I second = dot_one<Fm::bits, Fm::offset, 4>(codes + 4, activations + 16, sums[1]);
        return add_scaled<Fm>(first, second, s, rows, b, 0, acc);
    } else {
        I all = dot_one<Fm::bits, Fm::offset, 8>(codes, activations, sums[2]);
        return add_scaled<Fm>(all, all, s, rows, b, 0, acc);
    }
}

// Adds 16 rows x 32 columns to the accumulators of `count` tokens from `t` on. `quads[h]` groups of
// four columns of each half are given (all 8 in quads[0] unless the format is split).
template <class Fm, int count>
ANSER_INLINE void add_sub_block(const uint8_t* codes, const int8_t* activations, const int quads[2],
                                const SubScales& s, const Rows& rows, int64_t b, int64_t t,
                                F* acc) {
    const int64_t T = rows.count;
    const int32_t* sums = rows.negated_sums + 3 * b * T + t;
    I dots[count], second_dots[count];
    if constexpr (Fm::is_split) {
        dot<Fm::bits, Fm::offset, count>(codes, quads[0], activations, sums, dots);
        dot<Fm::bits, Fm::offset, count>(codes + 256, quads[1], activations + 16, sums + T,
                                         second_dots);
    } else {
        dot<Fm::bits, Fm::offset, count>(codes, quads[0], activations, sums + 2 * T, dots);
    }
#pragma GCC unroll 8
    for (int n = 0; n < count; ++n)
        acc[n] = add_scaled<Fm>(dots[n], Fm::is_split ? second_dots[n] : dots[n], s, rows, b, t + n,
                                acc[n]);
}

// The same for accumulators in memory, `stride` floats apart, and any number of tokens.
template <class Fm>
ANSER_INLINE void add_to_memory(const uint8_t* codes, const int8_t* activations,
                                const int quads[2], const SubScales& s, const Rows& rows, int64_t b,
                                int64_t first, int64_t last, float* acc, int64_t stride) {
    int64_t t = first;
    auto step = [&]<int count>() ANSER_FORCED {
        F lanes[count];
        float* at = acc + (t - first) * stride;
#pragma GCC unroll 8
        for (int n = 0; n < count; ++n) lanes[n] = load(at + n * stride);
        add_sub_block<Fm, count>(codes, activations + (t - first) * 32, quads, s, rows, b, t, lanes);
#pragma GCC unroll 8
        for (int n = 0; n < count; ++n) store(at + n * stride, lanes[n]);
        t += count;
    };
    while (last - t >= kTokensAtOnce) step.template operator()<kTokensAtOnce>();
    while (last - t >= 2) step.template operator()<2>();
    if (last - t) step.template operator()<1>();
}

// ---- by rows ----------------------------------------------------------------------------------

// A sub-block of a panel as bytes: [8 groups of 4 columns][16 rows][4].
template <class Fm>
ANSER_INLINE void panel_codes(const uint8_t* sub, B codes[8]) {
    if constexpr (Fm::low_bits == 8) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) codes[g] = load_bytes(sub + 64 * g);
    } else {
        B high[2];
#pragma GCC unroll 2
        for (int j = 0; j < Fm::high_bits; ++j) high[j] = load_bytes(sub + 64 * j);
        auto both = [&]<int g>() ANSER_FORCED {
            B packed = load_bytes(sub + 64 * (Fm::high_bits + g));
            codes[g] = low_nibbles(packed);
            codes[g + 4] = high_nibbles(packed);
            if constexpr (Fm::high_bits == 1) {
                codes[g] = or_bytes(codes[g], high_part<g, 1>(high[0]));
                codes[g + 4] = or_bytes(codes[g + 4], high_part<g + 4, 1>(high[0]));
            } else if constexpr (Fm::high_bits == 2) {
                codes[g] = or_bytes(codes[g], high_part<2 * g, 3>(high[0]));
                codes[g + 4] = or_bytes(codes[g + 4], high_part<2 * g, 3>(high[1]));
            }
        };
        both.template operator()<0>();
        both.template operator()<1>();
        both.template operator()<2>();
        both.template operator()<3>();
    }
}

// The same in memory. Returns where.
template <class Fm>
ANSER_INLINE const uint8_t* panel_codes_in_memory(const uint8_t* sub, uint8_t* scratch) {
    if constexpr (Fm::low_bits == 8) return sub;
    B codes[8];
    panel_codes<Fm>(sub, codes);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) store_bytes(scratch + 64 * g, codes[g]);
    return scratch;
}

constexpr int64_t kMostRows = 256;

// The result of a panel: [T][16] -> the rows that the matrix has.
ANSER_INLINE void write_panel(const float* acc, int64_t T, int64_t num_rows, float* out,
                              int64_t out_stride) {
    for (int64_t t = 0; t < T; ++t) {
        if (num_rows >= 16)
            store(out + t * out_stride, load(acc + 16 * t));
        else
            memcpy(out + t * out_stride, acc + 16 * t, sizeof(float) * (size_t)num_rows);
    }
}

// Where a block of a panel with `blocks` of them has its record and its codes, see matrix.h.
struct BlockPlace {
    const uint8_t *record, *codes;
};

template <class Fm>
ANSER_INLINE BlockPlace place_of(const uint8_t* panel, int64_t block, int64_t blocks) {
    constexpr int64_t codes_bytes = Fm::subs * Fm::sub_bytes;
    const int64_t in_group = block % Fm::together, first = block - in_group;
    const uint8_t* group = panel + first * (Fm::record + codes_bytes);
    const int64_t records = smaller(Fm::together, blocks - first);
    return {group + in_group * Fm::record, group + records * Fm::record + in_group * codes_bytes};
}

// The panel's bytes are read in the order they lie in, once: then the processor foresees them.
template <class Fm>
ANSER_INLINE F multiply_slice_by_one(const uint8_t* panel, const Rows& rows, int64_t blocks,
                                     int64_t begin, int64_t end) {
    alignas(64) uint8_t six_bits[kSixBitBytes];
    F lanes = zero();
    for (int64_t block = begin; block < end; ++block) {
        const BlockPlace place = place_of<Fm>(panel, block, blocks);
        if (Fm::record > 64 && Fm::together > 1)  // a gap in the order that would end the stream
            for (int i = 0; i < Fm::record; i += 64) prefetch(place.record + Fm::record + i);
        if constexpr (Fm::has_six_bits) expand_six_bits(place.record, six_bits);
        for (int s = 0; s < Fm::subs; ++s) {
            const SubScales scales = scales_of<Fm>(place.record, six_bits, s);
            B codes[8];
            panel_codes<Fm>(place.codes + s * Fm::sub_bytes, codes);
            lanes = add_to_one<Fm>(codes, scales, rows, block * Fm::subs + s, lanes);
        }
    }
    return lanes;
}

// Bytes that several tokens' walk through a panel is prefetched ahead. The processor's own prefetching
// begins anew at every 4 KB: one token's work is so little that it runs over that by itself.
constexpr int kAhead = 2048;

template <class Fm>
ANSER_INLINE void multiply_slice(const uint8_t* panel, const Rows& rows, int64_t blocks,
                                 int64_t begin, int64_t end, float* acc) {
    const int64_t T = rows.count;
    const int quads[2] = {Fm::is_split ? 4 : 8, 4};
    alignas(64) uint8_t scratch[512], six_bits[kSixBitBytes];
    memset(acc, 0, sizeof(float) * 16 * (size_t)T);
    for (int64_t block = begin; block < end; ++block) {
        const BlockPlace place = place_of<Fm>(panel, block, blocks);
        if constexpr (Fm::has_six_bits) expand_six_bits(place.record, six_bits);
        for (int s = 0; s < Fm::subs; ++s) {
            const int64_t b = block * Fm::subs + s;
            const SubScales scales = scales_of<Fm>(place.record, six_bits, s);
            const uint8_t* sub = place.codes + s * Fm::sub_bytes;
            for (int i = 0; i < Fm::sub_bytes; i += 64) prefetch(sub + kAhead + i);
            const uint8_t* codes = panel_codes_in_memory<Fm>(sub, scratch);
            const int8_t* activations = rows.codes + b * T * 32;
            add_to_memory<Fm>(codes, activations, quads, scales, rows, b, 0, T, acc, 16);
        }
    }
}

template <class Fm>
static void quantized_panels(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                             float* out, int64_t out_stride) {
    const int64_t T = rows.count, blocks = matrix.cols() / Fm::block, slices = matrix.slices();
    alignas(64) float acc[kMostRows * 16], total[kMostRows * 16];
    for (int64_t p = first; p < last; ++p) {
        const uint8_t* panel = matrix.data() + p * matrix.panel_bytes();
        for (int64_t s = 0; s < slices; ++s) {
            const int64_t begin = blocks * s / slices, end = blocks * (s + 1) / slices;
            if (T == 1)
                store(acc, multiply_slice_by_one<Fm>(panel, rows, blocks, begin, end));
            else
                multiply_slice<Fm>(panel, rows, blocks, begin, end, acc);
            if (s == 0 && slices > 1) memset(total, 0, sizeof(float) * 16 * (size_t)T);
            if (slices > 1) add(total, acc, 16 * T);
        }
        write_panel(slices > 1 ? total : acc, T, matrix.rows() - p * 16, out + p * 16, out_stride);
    }
}

// Tokens and columns of the part that a float product of a group is made in: activations and
// accumulators then fit the first-level cache together.
constexpr int64_t kTileTokens = 64, kTileColumns = 64;

// acc[n][t] += w[k][n] * x[t][k] for `panels` panels n: `column(n, k)` is 16 rows of column k.
// Activations are copied to where their rows do not compete for the same lines of the cache.
template <class Column>
ANSER_INLINE void multiply_float_tile(const Rows& rows, int64_t t0, int64_t tokens, int64_t K,
                                      int64_t panels, const Column& column, float* acc) {
    alignas(64) float x[kTileTokens * kTileColumns];
    memset(acc, 0, sizeof(float) * 16 * (size_t)(panels * tokens));
    for (int64_t k0 = 0; k0 < K; k0 += kTileColumns) {
        const int64_t width = smaller(kTileColumns, K - k0);
        for (int64_t t = 0; t < tokens; ++t)
            memcpy(x + t * kTileColumns, rows.values + (t0 + t) * rows.stride + k0,
                   sizeof(float) * (size_t)width);
        for (int64_t n = 0; n < panels; ++n) {
            float* at = acc + n * tokens * 16;
            int64_t k = 0;
            auto add_columns = [&]<int count>() ANSER_FORCED {
                F w[count];
#pragma GCC unroll 8
                for (int j = 0; j < count; ++j) w[j] = column(n, k0 + k + j);
                int64_t t = 0;
                auto add_tokens = [&]<int several>() ANSER_FORCED {
                    F lanes[several];
#pragma GCC unroll 8
                    for (int i = 0; i < several; ++i) lanes[i] = load(at + 16 * (t + i));
#pragma GCC unroll 8
                    for (int j = 0; j < count; ++j)
#pragma GCC unroll 8
                        for (int i = 0; i < several; ++i)
                            lanes[i] =
                                fma(w[j], splat(x[(t + i) * kTileColumns + k + j]), lanes[i]);
#pragma GCC unroll 8
                    for (int i = 0; i < several; ++i) store(at + 16 * (t + i), lanes[i]);
                    t += several;
                };
                while (t + kTokensAtOnce <= tokens)
                    add_tokens.template operator()<kTokensAtOnce>();
                while (t < tokens) add_tokens.template operator()<1>();
                k += count;
            };
            while (k + 8 <= width) add_columns.template operator()<8>();
            while (k < width) add_columns.template operator()<1>();
        }
    }
}

// Column k of panel `index` of a group of `panels`, see matrix.h.
template <Type type>
ANSER_INLINE F float_column(const uint8_t* group, int64_t k, int64_t index, int64_t panels) {
    if constexpr (type == Type::F32) return load((const float*)group + 16 * (k * panels + index));
    if constexpr (type == Type::F16) return load_f16(group + 32 * (k * panels + index));
    if constexpr (type == Type::BF16) {
        const uint8_t* pairs = group + 64 * (k / 2 * panels + index);
        return k % 2 ? load_bf16_odd(pairs) : load_bf16_even(pairs);
    }
}

// A whole group for one token: a single chain of additions would wait for each of them.
template <Type type>
ANSER_INLINE void multiply_group_by_one(const uint8_t* group, const float* x, int64_t K,
                                        float* acc) {
    F lanes[kPanelGroup];
#pragma GCC unroll 4
    for (int n = 0; n < kPanelGroup; ++n) lanes[n] = zero();
    auto add_column = [&](int64_t k) ANSER_FORCED {
        F factor = splat(x[k]);
#pragma GCC unroll 4
        for (int n = 0; n < kPanelGroup; ++n)
            lanes[n] = fma(float_column<type>(group, k, n, kPanelGroup), factor, lanes[n]);
    };
    int64_t k = 0;
    for (; k + 2 <= K; k += 2) {
        add_column(k);
        add_column(k + 1);
    }
    if (k < K) add_column(k);
#pragma GCC unroll 4
    for (int n = 0; n < kPanelGroup; ++n) store(acc + 16 * n, lanes[n]);
}

// Columns of weights that are prefetched ahead for few tokens.
constexpr int kColumnsAhead = 16;

// acc[n][t] = sum over k of w[k][n] * x[t][k] for `panels` panels of a group of `together`, from `index`
// on, and all tokens: their sums stay in registers from the first column to the last.
template <Type type, int panels>
static void multiply_float_few(const uint8_t* group, int64_t index, int64_t together,
                                     const Rows& rows, float* acc) {
    const int64_t K = rows.cols, T = rows.count;
    constexpr int64_t column_bytes = 16 * (type == Type::F32 ? 4 : 2);
    int64_t t = 0;
    auto add_tokens = [&]<int several>() ANSER_FORCED {
        F lanes[panels][several];
#pragma GCC unroll 8
        for (int i = 0; i < several; ++i)
#pragma GCC unroll 2
            for (int n = 0; n < panels; ++n) lanes[n][i] = zero();
        const float* x = rows.values + t * rows.stride;
        for (int64_t k = 0; k < K; ++k) {
            prefetch(group + ((k + kColumnsAhead) * together + index) * column_bytes);
            F w[panels];
#pragma GCC unroll 2
            for (int n = 0; n < panels; ++n)
                w[n] = float_column<type>(group, k, index + n, together);
#pragma GCC unroll 8
            for (int i = 0; i < several; ++i) {
                const F factor = splat(x[i * rows.stride + k]);
#pragma GCC unroll 2
                for (int n = 0; n < panels; ++n) lanes[n][i] = fma(w[n], factor, lanes[n][i]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < several; ++i)
#pragma GCC unroll 2
            for (int n = 0; n < panels; ++n) store(acc + 16 * (n * T + t + i), lanes[n][i]);
        t += several;
    };
    while (T - t >= kTokensAtOnce) add_tokens.template operator()<kTokensAtOnce>();
    while (T - t >= 4) add_tokens.template operator()<4>();
    while (T - t >= 2) add_tokens.template operator()<2>();
    if (T - t) add_tokens.template operator()<1>();
}

template <Type type>
static void float_panels(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                         float* out, int64_t out_stride) {
    const int64_t T = rows.count, K = matrix.cols();
    alignas(64) float acc[kPanelGroup * kTileTokens * 16];
    for (int64_t p = first, next; p < last; p = next) {
        const int64_t start = p / kPanelGroup * kPanelGroup;  // of the group
        const int64_t together = smaller(kPanelGroup, matrix.panels() - start);
        next = smaller(last, start + together);
        const uint8_t* group = matrix.data() + start * matrix.panel_bytes();
        for (int64_t t0 = 0; t0 < T; t0 += kTileTokens) {
            const int64_t tokens = smaller(kTileTokens, T - t0);
            if (tokens == 1 && next - p == kPanelGroup) {
                multiply_group_by_one<type>(group, rows.values + t0 * rows.stride, K, acc);
            } else if (T > 1 && T <= kFewRows) {
                float* sums = acc;
                for (int64_t n = p - start; n < next - start; n += 2, sums += 2 * T * 16) {
                    const bool is_pair = n + 1 < next - start;
                    (is_pair ? multiply_float_few<type, 2> : multiply_float_few<type, 1>)(
                        group, n, together, rows, sums);
                }
            } else {
                auto column = [&](int64_t n, int64_t k) ANSER_FORCED {
                    return float_column<type>(group, k, p - start + n, together);
                };
                multiply_float_tile(rows, t0, tokens, K, next - p, column, acc);
            }
            for (int64_t n = 0; n < next - p; ++n)
                write_panel(acc + n * tokens * 16, tokens, matrix.rows() - (p + n) * 16,
                            out + t0 * out_stride + (p + n) * 16, out_stride);
        }
    }
}

// ---- by columns -------------------------------------------------------------------------------

// 64 codes of one column, in `column_place` order.
template <class Fm>
ANSER_INLINE B column_codes(const uint8_t* low, const uint8_t* high) {
    if constexpr (Fm::low_bits == 8) {
        return load_bytes(low);
    } else {
        B codes = widen_nibbles(low);
        if constexpr (Fm::high_bits == 1) codes = or_bytes(codes, widen_bits(high));
        if constexpr (Fm::high_bits == 2) codes = or_bytes(codes, widen_pairs(high));
        return codes;
    }
}

// The channels of a block that are read, those of its halves apart when the format is split.
struct Channels {
    int8_t index[36];  // padded with -1 to quads
    int quads[2];
};

template <class Fm>
ANSER_INLINE Channels active_channels(uint32_t mask) {
    Channels channels;
    int n = 0;
    auto take = [&](uint32_t bits) {
        const int start = n;
        for (; bits; bits &= bits - 1) channels.index[n++] = (int8_t)__builtin_ctz(bits);
        while (n % 4) channels.index[n++] = -1;
        return (n - start) / 4;
    };
    if constexpr (Fm::is_split) {
        channels.quads[0] = take(mask & 0xFFFF);
        channels.quads[1] = take(mask & 0xFFFF0000u);
    } else {
        channels.quads[0] = take(mask);
        channels.quads[1] = 0;
    }
    return channels;
}

// Four columns of 64 rows as four times [16 rows][4]; a column of index -1 is zero.
template <class Fm>
ANSER_INLINE void read_quad(const int8_t index[4], const uint8_t* low, int64_t low_bytes,
                            const uint8_t* high, int64_t high_bytes, B by_row[4]) {
    B columns[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
        columns[j] = index[j] < 0 ? zero_bytes()
                                  : column_codes<Fm>(low + index[j] * low_bytes,
                                                     high + index[j] * high_bytes);
    interleave(columns, by_row);
}

// Rows of a part: what is added up for them stays in the first-level cache.
constexpr int64_t kPartRows = 4096;

// A block of columns, for the rows from group `group0` on.
template <class Fm>
struct ColumnBlock {
    ColumnBlock(const Matrix& matrix, int64_t block, int64_t group0)
        : low_bytes(matrix.rows() * Fm::low_bits / 8),
          high_bytes(matrix.rows() * Fm::high_bits / 8) {
        const uint8_t* start = matrix.data() + block * matrix.rows() * Fm::bytes;
        records = start + group0 * 4 * Fm::record;
        const uint8_t* codes = start + matrix.rows() / 16 * Fm::record;
        low = codes + group0 * 8 * Fm::low_bits;
        high = codes + Fm::block * low_bytes + group0 * 8 * Fm::high_bits;
    }
    int64_t low_bytes, high_bytes;  // of a column
    const uint8_t *records, *low, *high;
};

// Adds the active columns of a sub-block to `groups` * 64 rows for one token. Four columns are read
// side by side from their first row to their last.
template <class Fm>
ANSER_INLINE void add_columns_to_one(const ColumnBlock<Fm>& block, const uint8_t (*six_bits)[kSixBitBytes],
                                     int sub, const Channels& channels, const int8_t* activations,
                                     const Rows& rows, int64_t b, int64_t groups, float* acc) {
    alignas(64) I dots[Fm::is_split ? 2 : 1][kPartRows / 16];
    const uint8_t* low = block.low + 32 * sub * block.low_bytes;
    const uint8_t* high = block.high + 32 * sub * block.high_bytes;
    const int32_t* sums = rows.negated_sums + 3 * b;
    const int8_t* index = channels.index;
    for (int half = 0; half < (Fm::is_split ? 2 : 1); ++half) {
        const int32_t sum = sums[Fm::is_split ? half : 2];
        const I none = dot_one<Fm::bits, Fm::offset, 0>(nullptr, nullptr, sum);
        I* at = dots[half];
        if (channels.quads[half] == 0)
            for (int64_t p = 0; p < 4 * groups; ++p) at[p] = none;
        for (int quad = 0; quad < channels.quads[half]; ++quad, index += 4) {
            const int8_t* four = activations + 16 * half + 4 * quad;
            for (int64_t g = 0; g < groups; ++g) {
                B by_row[4];
                read_quad<Fm>(index, low + g * 8 * Fm::low_bits, block.low_bytes,
                              high + g * 8 * Fm::high_bits, block.high_bytes, by_row);
#pragma GCC unroll 4
                for (int q = 0; q < 4; ++q)
                    at[4 * g + q] = dot_add<Fm::bits>(quad ? at[4 * g + q] : none, by_row[q], four);
            }
        }
    }
    for (int64_t p = 0; p < 4 * groups; ++p) {
        const SubScales scales = scales_of<Fm>(block.records + p * Fm::record,
                                               six_bits[Fm::has_six_bits ? p : 0], sub);
        const I second = dots[Fm::is_split][p];
        store(acc + 16 * p,
              add_scaled<Fm>(dots[0][p], second, scales, rows, b, 0, load(acc + 16 * p)));
    }
}

// The same for tokens [t0, t1); the sums of a group are [tokens][64].
template <class Fm>
ANSER_INLINE void add_columns(const ColumnBlock<Fm>& block, const uint8_t (*six_bits)[kSixBitBytes],
                              int sub, const Channels& channels, const int8_t* activations,
                              const Rows& rows, int64_t b, int64_t t0, int64_t t1, int64_t groups,
                              float* acc) {
    alignas(64) uint8_t scratch[4][512];
    const uint8_t* low = block.low + 32 * sub * block.low_bytes;
    const uint8_t* high = block.high + 32 * sub * block.high_bytes;
    const int quads = channels.quads[0] + channels.quads[1];
    for (int64_t g = 0; g < groups; ++g) {
        for (int quad = 0; quad < quads; ++quad) {
            B by_row[4];
            read_quad<Fm>(channels.index + 4 * quad, low + g * 8 * Fm::low_bits, block.low_bytes,
                          high + g * 8 * Fm::high_bits, block.high_bytes, by_row);
            const bool is_upper = Fm::is_split && quad >= channels.quads[0];
            const int place = is_upper ? 4 + quad - channels.quads[0] : quad;
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) store_bytes(scratch[q] + 64 * place, by_row[q]);
        }
        for (int q = 0; q < 4; ++q) {
            const int64_t p = 4 * g + q;
            const SubScales scales = scales_of<Fm>(block.records + p * Fm::record,
                                                   six_bits[Fm::has_six_bits ? p : 0], sub);
            add_to_memory<Fm>(scratch[q], activations, channels.quads, scales, rows, b, t0, t1,
                              acc + g * (t1 - t0) * 64 + 16 * q, 64);
        }
    }
}

// Blocks [begin, end) of columns for tokens [t0, t1) and a part of the rows, into `acc`.
template <class Fm>
ANSER_INLINE void multiply_column_blocks(const Matrix& matrix, const Rows& rows, int64_t begin,
                                         int64_t end, int64_t t0, int64_t t1, int64_t group0,
                                         int64_t groups, float* acc) {
    const int64_t T = rows.count;
    const int8_t* all_codes = rows.active ? rows.packed : rows.codes;
    alignas(64) uint8_t six_bits[Fm::has_six_bits ? kPartRows / 16 : 1][kSixBitBytes];
    memset(acc, 0, sizeof(float) * 64 * (size_t)(groups * (t1 - t0)));
    for (int64_t i = begin; i < end; ++i) {
        const ColumnBlock<Fm> block(matrix, i, group0);
        bool is_expanded = false;
        for (int s = 0; s < Fm::subs; ++s) {
            const int64_t b = i * Fm::subs + s;
            const uint32_t mask = rows.active ? rows.active[b] : 0xFFFFFFFFu;
            if (mask == 0) continue;  // adds zero to every output
            if (Fm::has_six_bits && !is_expanded)
                for (int64_t p = 0; p < 4 * groups; ++p)
                    expand_six_bits(block.records + p * Fm::record, six_bits[p]);
            is_expanded = true;
            const Channels channels = active_channels<Fm>(mask);
            const int8_t* activations = all_codes + (b * T + t0) * 32;
            if (T == 1)
                add_columns_to_one<Fm>(block, six_bits, s, channels, activations, rows, b, groups, acc);
            else
                add_columns<Fm>(block, six_bits, s, channels, activations, rows, b, t0, t1, groups,
                                acc);
        }
    }
}

template <class Fm>
static void quantized_columns(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                              int64_t first_slice, int64_t last_slice, float* out,
                              int64_t out_stride) {
    const int64_t T = rows.count, blocks = matrix.cols() / Fm::block, slices = matrix.slices();
    const int64_t part_tokens = smaller(T, kPartRows / 64);
    const int64_t part_groups = kPartRows / 64 / part_tokens;
    alignas(64) float acc[kPartRows];
    for (int64_t group0 = first; group0 < last; group0 += part_groups) {
        const int64_t groups = smaller(part_groups, last - group0);
        for (int64_t t0 = 0; t0 < T; t0 += part_tokens) {
            const int64_t t1 = smaller(T, t0 + part_tokens), tokens = t1 - t0;
            for (int64_t s = first_slice; s < last_slice; ++s) {
                multiply_column_blocks<Fm>(matrix, rows, blocks * s / slices,
                                           blocks * (s + 1) / slices, t0, t1, group0, groups, acc);
                for (int64_t g = 0; g < groups; ++g)
                    for (int64_t t = t0; t < t1; ++t) {
                        float* to = out + t * out_stride + (group0 + g) * 64;
                        if (s == first_slice) memset(to, 0, 64 * sizeof(float));
                        add(to, acc + (g * tokens + t - t0) * 64, 64);
                    }
            }
        }
    }
}

// ---- the right one ----------------------------------------------------------------------------

#define ANSER_QUANTIZED_TYPES(function)                               \
    case Type::Q8_0: return function<Format<Type::Q8_0>>(ANSER_ARGUMENTS); \
    case Type::Q4_0: return function<Format<Type::Q4_0>>(ANSER_ARGUMENTS); \
    case Type::Q4_1: return function<Format<Type::Q4_1>>(ANSER_ARGUMENTS); \
    case Type::Q5_0: return function<Format<Type::Q5_0>>(ANSER_ARGUMENTS); \
    case Type::Q5_1: return function<Format<Type::Q5_1>>(ANSER_ARGUMENTS); \
    case Type::Q4_K: return function<Format<Type::Q4_K>>(ANSER_ARGUMENTS); \
    case Type::Q5_K: return function<Format<Type::Q5_K>>(ANSER_ARGUMENTS); \
    case Type::Q6_K: return function<Format<Type::Q6_K>>(ANSER_ARGUMENTS);

#define ANSER_ARGUMENTS matrix, rows, first, last, out, out_stride
static void multiply_panels(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                            float* out, int64_t out_stride) {
    switch (matrix.type()) {
        ANSER_QUANTIZED_TYPES(quantized_panels)
        case Type::F32: return float_panels<Type::F32>(ANSER_ARGUMENTS);
        case Type::F16: return float_panels<Type::F16>(ANSER_ARGUMENTS);
        case Type::BF16: return float_panels<Type::BF16>(ANSER_ARGUMENTS);
    }
}
#undef ANSER_ARGUMENTS

#define ANSER_ARGUMENTS matrix, rows, first, last, first_slice, last_slice, out, out_stride
static void multiply_columns(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                             int64_t first_slice, int64_t last_slice, float* out,
                             int64_t out_stride) {
    switch (matrix.type()) {
        ANSER_QUANTIZED_TYPES(quantized_columns)
        default: return;  // there are none of other types
    }
}
#undef ANSER_ARGUMENTS
#undef ANSER_QUANTIZED_TYPES

}  // namespace anser::ANSER_ISA

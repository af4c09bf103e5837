// The recurrence of a head and all that surrounds it. With a key in every row of the state S, a token
// reads and writes sums of whole rows:
//
//     S = diag(w) S + b^T (a S) + k^T v        y = r S        with a = -kk, b = kk * iclr
//
// The values' columns do not depend on each other. Some vectors of them are taken through all rows at
// a time, with everything that belongs to them in registers; while a token's rows are written, what
// the next token removes (its a S) is summed up. Every number is a sum over the keys in order, so
// that a sequence and its tokens one by one give the same bits.

namespace anser::ANSER_ISA {

constexpr float kLogDecayScale = -0.60653066f;  // -exp(-0.5), see rwkv_core/formulas.py
constexpr float kSmallestNorm = 1e-12f;

// What a token does to the keys' rows, and its values.
template <int N>
struct HeadToken {
    alignas(64) float decay[N], remove[N], learn[N], key[N], read[N], value[N];
    float bonus;
};

template <int N>
ANSER_INLINE void prepare(const HeadTask& task, int64_t t, HeadToken<N>& token) {
    const int64_t at = t * task.stride, low = t * task.low_rank_stride;
    F squares = zero(), bonus = zero();
    for (int i = 0; i < N; i += 16) {
        F r = load(task.r + at + i), k = load(task.k + at + i), v = load(task.v + at + i);
        F log_decay = mul(sigmoid(add(load(task.w0 + i), load(task.w + low + i))),
                          splat(kLogDecayScale));
        F rate = sigmoid(add(load(task.a0 + i), load(task.a + low + i)));
        if (task.v_first) {
            F share = sigmoid(add(load(task.v0 + i), load(task.v_mix + low + i)));
            v = fma(sub(load(task.v_first + at + i), v), share, v);
            store(task.v + at + i, v);
        }
        F kk = mul(k, load(task.k_k + i));
        squares = fma(kk, kk, squares);
        k = mul(k, fma(sub(rate, splat(1.0f)), load(task.k_a + i), splat(1.0f)));
        bonus = fma(mul(r, k), load(task.r_k + i), bonus);
        store(token.decay + i, exp(log_decay));
        store(token.remove + i, kk);
        store(token.learn + i, rate);
        store(token.key + i, k);
        store(token.read + i, r);
        store(token.value + i, v);
    }
    token.bonus = sum(bonus);
    const float norm = __builtin_sqrtf(sum(squares));
    const F inverse = splat(1.0f / (norm < kSmallestNorm ? kSmallestNorm : norm));
    for (int i = 0; i < N; i += 16) {
        F kk = mul(load(token.remove + i), inverse);
        store(token.remove + i, neg(kk));
        store(token.learn + i, mul(kk, load(token.learn + i)));
    }
}

// removed = a S
template <int N>
ANSER_INLINE void read_removed(const HeadToken<N>& token, const float* state, float* removed) {
    constexpr int count = N / 16 < kHeadVectors ? N / 16 : kHeadVectors;
    for (int column = 0; column < N; column += 16 * count) {
        F sums[count];
        for (int i = 0; i < count; ++i) sums[i] = zero();
        for (int j = 0; j < N; ++j) {
            const F factor = splat(token.remove[j]);
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i)
                sums[i] = fma(load(state + j * N + column + 16 * i), factor, sums[i]);
        }
        for (int i = 0; i < count; ++i) store(removed + column + 16 * i, sums[i]);
    }
}

// Writes a token into the state and reads its output y; `removed` is replaced by the next token's.
template <int N, bool has_next>
ANSER_INLINE void step(const HeadToken<N>& token, const HeadToken<N>& next, float* state,
                       float* removed, float* y) {
    constexpr int count = N / 16 < kHeadVectors ? N / 16 : kHeadVectors;
    for (int column = 0; column < N; column += 16 * count) {
        F old[count], values[count], reads[count], next_removed[count];
        for (int i = 0; i < count; ++i) {
            old[i] = load(removed + column + 16 * i);
            values[i] = load(token.value + column + 16 * i);
            reads[i] = next_removed[i] = zero();
        }
        for (int j = 0; j < N; ++j) {
            float* row = state + j * N + column;
            const F decay = splat(token.decay[j]), learn = splat(token.learn[j]);
            const F key = splat(token.key[j]), read = splat(token.read[j]);
            const F remove = has_next ? splat(next.remove[j]) : zero();
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i) {
                F s = fma(key, values[i], mul(load(row + 16 * i), decay));
                s = fma(learn, old[i], s);
                store(row + 16 * i, s);
                reads[i] = fma(s, read, reads[i]);
                if (has_next) next_removed[i] = fma(s, remove, next_removed[i]);
            }
        }
        for (int i = 0; i < count; ++i) {
            store(y + column + 16 * i, reads[i]);
            if (has_next) store(removed + column + 16 * i, next_removed[i]);
        }
    }
}

// out = (group norm(y) + bonus * v) * g
template <int N>
ANSER_INLINE void finish(const HeadTask& task, int64_t t, const HeadToken<N>& token,
                         const float* y) {
    const Moments m = moments_of(y, N, task.norm_eps);
    const float* g = task.g + t * task.low_rank_stride;
    float* out = task.out + t * task.stride;
    for (int i = 0; i < N; i += 16) {
        F normed = normalize(load(y + i), m, load(task.norm_weight + i), load(task.norm_bias + i));
        F whole = fma(splat(token.bonus), load(token.value + i), normed);
        store(out + i, mul(whole, load(g + i)));
    }
}

template <int N>
static void wkv_head_of_size(const HeadTask& task) {
    HeadToken<N> tokens[2];
    alignas(64) float removed[N], y[N];
    prepare(task, 0, tokens[0]);
    read_removed(tokens[0], task.state, removed);
    int64_t t = 0;
    for (; t + 1 < task.length; ++t) {
        HeadToken<N>&token = tokens[t % 2], &next = tokens[(t + 1) % 2];
        prepare(task, t + 1, next);
        step<N, true>(token, next, task.state, removed, y);
        finish(task, t, token, y);
    }
    step<N, false>(tokens[t % 2], tokens[t % 2], task.state, removed, y);
    finish(task, t, tokens[t % 2], y);
}

static void wkv_head(const HeadTask& task) {
    switch (task.size) {
        case 16: return wkv_head_of_size<16>(task);
        case 32: return wkv_head_of_size<32>(task);
        case 64: return wkv_head_of_size<64>(task);
        case 128: return wkv_head_of_size<128>(task);
    }
}

}  // namespace anser::ANSER_ISA

// The operations that are compiled once for every instruction set.
#pragma once
#include <cstdint>

#include "matrix.h"
#include "rows.h"

namespace anser {

struct Kernels {
    const char* name;

    // out[t * out_stride + row] = sum over k of matrix[row][k] * rows[t][k], for the rows of panels
    // [first, last) of a matrix by rows (16 rows each; the last may be cut short by the matrix).
    // The order of additions of an output depends neither on T nor on the panels asked for.
    void (*multiply_panels)(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                            float* out, int64_t out_stride);
    // The same for the groups of 64 rows [first, last) of a matrix by columns, and the sum of its
    // slices [first_slice, last_slice) only.
    void (*multiply_columns)(const Matrix& matrix, const Rows& rows, int64_t first, int64_t last,
                             int64_t first_slice, int64_t last_slice, float* out,
                             int64_t out_stride);

    // Blocks [first, last) of row t of T: quantizes x (the row, from its first value) per block.
    void (*quantize)(const float* x, int64_t first, int64_t last, int64_t t, int64_t T,
                     int8_t* codes, float* scales, int32_t* negated_sums, float* scaled_sums);
    // Block b: the mask of channels that are not zero in all T rows, and the codes without the rest.
    void (*pack_active)(const int8_t* codes, int64_t b, int64_t T, bool split_halves,
                        uint32_t* active, int8_t* packed);

    // Layer norm: (x - mean) / sqrt(var + eps) * weight + bias over n values.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int64_t n, float eps,
                       float* out);
    // out = h + (previous - h) * lerp
    void (*mix)(const float* h, const float* previous, const float* lerp, int64_t n, float* out);
    void (*add)(float* x, const float* y, int64_t n);  // x += y
    void (*tanh)(float* x, int64_t n);                 // in place
    void (*sigmoid)(float* x, int64_t n);              // in place
    // In place; returns how many became zero.
    int64_t (*relu_squared)(float* x, int64_t n);

    // The sum of n values, n a multiple of 128: for measuring how fast memory is read.
    float (*sum)(const float* x, int64_t n);

    // The time mix of one head between its projections and the output matrix, T tokens in order.
    void (*wkv_head)(const struct HeadTask& task);
};

// One head and one segment of consecutive tokens. Rows are float32, `stride` floats apart from token
// to token, the low-rank sums `low_rank_stride`; every pointer is at the head's first channel of the
// segment's first token.
struct HeadTask {
    int64_t size;    // N: 16, 32, 64 or 128
    int64_t length;  // tokens
    int64_t stride, low_rank_stride;
    const float* r;
    const float* w;        // the low-rank sum, before w0 is added
    const float* k;
    float* v;              // layer 0: the values; later layers: replaced by the mixed ones
    const float* a;        // the low-rank sum, before a0 is added
    const float* g;        // a low-rank sum
    const float* v_mix;    // the low-rank sum, before v0 is added; null in layer 0
    const float* v_first;  // null in layer 0
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;  // [N]
    const float *norm_weight, *norm_bias;          // ln_x [N]
    float norm_eps;
    float* state;  // [N key rows][N value columns], read and updated
    float* out;    // (group norm(y) + bonus) * g
};

extern const Kernels kernels_portable;
extern const Kernels kernels_avx2;     // x86-64 only
extern const Kernels kernels_avx512;   // x86-64 only
extern const Kernels kernels_neon;     // 64-bit ARM only
extern const Kernels kernels_dotprod;  // 64-bit ARM only

// Those that this processor can run, the best first; never empty.
const Kernels* const* supported_kernels(int* count);
// The one in use: the best that ANSER_ISA allows.
const Kernels& kernels();
// Throws std::invalid_argument for a name that is not supported here.
void use_kernels(const char* name);

}  // namespace anser

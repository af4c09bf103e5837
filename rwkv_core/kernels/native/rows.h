// Activations of a pass: T rows (tokens, of one or of several sequences) that meet a matrix.
#pragma once
#include <cstdint>

namespace anser {

// With up to so many rows, as when texts are decoded, a pass takes as long as the memory's reads: then
// what is read lies in long runs, and a product by columns gets its rows without the channels that are
// zero in all of them (with more there are hardly any).
constexpr int64_t kFewRows = 16;

// The forms that a matrix may want of T rows of K values. Quantized matrices read codes, scales
// and sums; float matrices read `values`. A block is 32 consecutive values of a row.
struct Rows {
    int64_t count = 0;  // T
    int64_t cols = 0;   // K

    const float* values = nullptr;  // [T][stride]
    int64_t stride = 0;

    const int8_t* codes = nullptr;       // [K/32][T][32], value = code * scale
    const float* scales = nullptr;       // [K/32][T]
    // [K/32][3][T]: minus the sum of the codes of a block's lower half, of its upper half, of both; times
    // a format's offset it is what products with its unsigned codes have too much.
    const int32_t* negated_sums = nullptr;
    const float* scaled_sums = nullptr;  // [K/32][T]: scale * (sum of the block's codes)

    // For a matrix by columns, optional: bit c of active[b] is set when channel 32 b + c is not zero
    // in every row. `packed` [K/32][T][32] then holds each block's codes with the inactive channels
    // left out (those of the two halves of a block apart, at 0 and 16, when `split_halves`).
    const uint32_t* active = nullptr;
    const int8_t* packed = nullptr;
    bool split_halves = false;
};

}  // namespace anser

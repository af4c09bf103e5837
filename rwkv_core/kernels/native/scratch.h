// The memory of a pass between its phases.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "rows.h"
#include "weights.h"

namespace anser {

// Activations in memory of their own, in all the forms of `Rows`.
struct Activations {
    int64_t stride;
    float* values;
    int8_t* codes;
    float* scales;
    int32_t* negated_sums;
    float* scaled_sums;

    Rows rows(int64_t count, int64_t cols) const;
    // Blocks [first, last) of row t of `count`, from `row`, whose first value is that of block 0.
    void quantize(const float* row, int64_t first, int64_t last, int64_t t, int64_t count) const;
};

class Scratch {
  public:
    // What a single thread needs for itself.
    struct Private {
        float* normed[2];            // [n_embd]: two rows after a layer norm
        float* mixed;                // [n_embd]: a row on its way to being quantized
        float* low_rank[kNumLowRank];  // [rows][channels of the heads of a part]
        float* hidden;               // [rows][32 * kHiddenBlocks]
        int64_t* zero_channels;      // [n_layer]
    };
    // Blocks of 32 hidden channels that a thread computes at a time, at most.
    static constexpr int64_t kHiddenBlocks = 4;

    // Grows to that many rows and threads, if it must. What was in it is lost then. Memory for more
    // rows than a pass has is not touched by it.
    void reserve(const ModelSizes& sizes, int64_t largest_rank, int64_t num_rows, int num_threads);
    int num_threads() const { return static_cast<int>(threads.size()); }

    float* x;        // [rows, n_embd], the residual stream
    float* last;     // [segments, n_embd]: rows to become the state's token shift
    float* product;  // [rows, n_embd]
    float *r, *k, *v, *v_first;  // [rows, n_embd]
    Activations inputs[kNumInputs];     // n_embd
    Activations low_rank[kNumLowRank];  // the ranks, padded
    Activations gated;                  // n_embd: what the output matrix reads
    Activations hidden;                 // n_ffn
    uint32_t* active;                   // [n_ffn / 32]
    int8_t* packed;                     // [n_ffn / 32][rows, at most kFewRows][32]
    float* partial;                     // [slices][rows, at most kFewRows][n_embd]
    std::vector<Private> threads;

  private:
    class Carver;
    void carve(Carver& carver, const ModelSizes& sizes, int64_t largest_rank);

    int64_t num_rows_ = 0;
    std::unique_ptr<Arena> memory_;
};

// Channels whose heads are computed together: whole heads and whole blocks.
constexpr int64_t channels_of_unit(int64_t head_size) { return head_size < 32 ? 32 : head_size; }

}  // namespace anser

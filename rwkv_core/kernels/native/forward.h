// The pass of some tokens through a model.
#pragma once
#include <cstdint>

#include "scratch.h"
#include "weights.h"

namespace anser {

// The most tokens of one pass: it bounds the memory between the layers.
constexpr int64_t kMaxRows = 256;

// A segment's state, which a pass changes. Of every part the address of the first layer's and how
// many floats later the next layer's lies; they need no alignment.
struct SegmentState {
    float* time_shift;  // [n_embd]
    int64_t time_shift_step;
    float* channel_shift;  // [n_embd]
    int64_t channel_shift_step;
    float* wkv;  // [heads, key rows, value columns]
    int64_t wkv_step;
};

// The rows of a pass: consecutive tokens of one or of several texts.
struct Batch {
    const int32_t* tokens;  // [num_rows], 1 to kMaxRows
    int64_t num_rows;
    const int32_t* starts;  // [num_segments + 1]: a segment goes from one up to the next
    int64_t num_segments;
    const SegmentState* states;  // [num_segments]
    const int32_t* wanted_rows;  // [num_wanted], at most kMaxRows
    int64_t num_wanted;
    float* logits;  // of the wanted rows [num_wanted, vocab_size], or null
    float* hidden;  // what the head reads of them [num_wanted, n_embd], or null
};

// Runs the pass on all threads of the pool; `batch` is right. The numbers depend on each token's own
// text alone, and not on where that was cut. Sets `zero_channels` [n_layer] to how many hidden channels
// of each channel mix were zero, over all rows.
void forward(const ModelSizes& sizes, const Weights& weights, Scratch& scratch, const Batch& batch,
             int64_t* zero_channels);

}  // namespace anser

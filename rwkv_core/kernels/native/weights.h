// A model's weights, found under their names, checked, and sorted by where a pass needs them.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "matrix.h"

namespace anser {

struct ModelSizes {
    int64_t n_layer, n_embd, head_size, n_ffn, vocab_size;
    float layer_norm_eps, group_norm_eps;
};

// What was loaded, by the authors' names ("blocks.0.att.key.weight").
struct NamedWeights {
    std::map<std::string, std::unique_ptr<Arena>> vectors;  // float32
    std::map<std::string, std::shared_ptr<const Matrix>> matrices;
    std::unique_ptr<Arena> embedding;  // rows as in the file
    Type embedding_type = Type::F32;
};

struct Norm {
    const float *weight, *bias;
};

// The share of the token before in one input of the matrices, and the forms that these want it in.
struct Lerp {
    const float* weight;
    bool wants_codes = false, wants_values = false;

    void add(const Matrix* reader);
};

// The inputs of the time mix's matrices, and the matrices that read them; the low-rank ones first.
enum Input { kInputR, kInputW, kInputK, kInputV, kInputA, kInputG, kNumInputs };
enum Projection { kW, kA, kG, kV0, kNumLowRank, kReceptance = kNumLowRank, kKey, kValue, kNumProjections };
constexpr Input kInputOf[kNumProjections] = {kInputW, kInputA, kInputG, kInputV,
                                             kInputR, kInputK, kInputV};

// Panels [first, last) of a projection: what one thread multiplies at a time.
struct Part {
    Projection projection;
    int64_t first, last;
};

struct TimeMix {
    Norm ln1;
    Lerp lerps[kNumInputs];
    const Matrix* projections[kNumProjections];  // kV0: null in layer 0
    const Matrix* up[kNumLowRank];               // the second of a low-rank pair
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k;
    Norm ln_x;
    const Matrix* output;
    std::vector<Part> parts;  // of all projections
};

struct ChannelMix {
    Norm ln2;
    Lerp lerp;
    const Matrix *key, *value;
};

struct Layer {
    TimeMix att;
    ChannelMix ffn;
};

struct Weights {
    // `named` must stay. Throws std::invalid_argument for what is missing, unknown or of wrong size.
    Weights(const ModelSizes& sizes, const NamedWeights& named);

    Norm ln0, ln_out;
    std::vector<Layer> layers;
    const Matrix* head;
    Type embedding_type;
    const uint8_t* embedding;
    int64_t embedding_row_bytes;
    int64_t largest_rank = 0;
};

// How many panels to multiply at a time: enough for a long read, and few enough that no thread waits
// long for another at the end.
int64_t panels_per_part(const Matrix& matrix);

}  // namespace anser

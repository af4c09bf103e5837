// A model that is loaded tensor by tensor and then passes tokens through all its layers.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "forward.h"
#include "scratch.h"
#include "weights.h"

namespace anser {

// All throw std::invalid_argument for arguments that do not fit, and std::bad_alloc.
class Model {
  public:
    explicit Model(const ModelSizes& sizes);

    // Weights go by the authors' names ("blocks.0.att.key.weight"); all matrices have a row for every
    // output, those of the low-rank pairs too. Vectors and the embedding are copied.
    void set_vector(const std::string& name, const float* values, int64_t count);
    void set_matrix(const std::string& name, std::shared_ptr<const Matrix> matrix);
    void set_embedding(int type_id, const uint8_t* raw, int64_t num_bytes);
    // Ends loading.
    void finish();

    // A loaded matrix in another layout: of the same type and size, so that no number changes. Waits
    // for a pass to end. Throws without having changed anything.
    void replace_matrix(const std::string& name, std::shared_ptr<const Matrix> matrix);

    // May be called by several threads; the passes follow one another.
    void forward(const Batch& batch);

    const ModelSizes& sizes() const { return sizes_; }

    // Hidden channels of the channel mixes: how many of each layer's were zero after relu^2, of how
    // many in a layer, summed over all rows of all passes since the reset.
    struct ZeroChannels {
        std::vector<int64_t> zero;  // [n_layer]
        int64_t total = 0;
    };
    ZeroChannels zero_channels() const;
    void reset_counters();

  private:
    void check_loading() const;
    void check(const Batch& batch) const;

    const ModelSizes sizes_;
    NamedWeights named_;
    std::unique_ptr<Weights> weights_;  // null until `finish`

    std::mutex passes_;  // held by a pass: it owns the scratch memory
    Scratch scratch_;
    mutable std::mutex counting_;
    ZeroChannels zero_channels_;
};

}  // namespace anser

#include "scratch.h"

#include <algorithm>

#include "kernels.h"

namespace anser {

Rows Activations::rows(int64_t count, int64_t cols) const {
    Rows rows;
    rows.count = count;
    rows.cols = cols;
    rows.values = values;
    rows.stride = stride;
    rows.codes = codes;
    rows.scales = scales;
    rows.negated_sums = negated_sums;
    rows.scaled_sums = scaled_sums;
    return rows;
}

void Activations::quantize(const float* row, int64_t first, int64_t last, int64_t t,
                           int64_t count) const {
    kernels().quantize(row, first, last, t, count, codes, scales, negated_sums,
                       scaled_sums);
}

// Deals out a piece of memory; without one it only counts how much is needed.
class Scratch::Carver {
  public:
    explicit Carver(uint8_t* start) : start_(start) {}
    size_t size() const { return used_; }

    template <class Value>
    void operator()(Value*& place, int64_t count) {
        place = start_ ? reinterpret_cast<Value*>(start_ + used_) : nullptr;
        used_ += (static_cast<size_t>(count) * sizeof(Value) + 63) / 64 * 64;
    }

    void operator()(Activations& place, int64_t num_rows, int64_t cols) {
        place.stride = cols;
        (*this)(place.values, num_rows * cols);
        (*this)(place.codes, num_rows * cols);
        (*this)(place.scales, num_rows * (cols / 32));
        (*this)(place.negated_sums, num_rows * (cols / 32) * 3);
        (*this)(place.scaled_sums, num_rows * (cols / 32));
    }

  private:
    uint8_t* start_;
    size_t used_ = 0;
};

void Scratch::carve(Carver& carver, const ModelSizes& sizes, int64_t largest_rank) {
    const int64_t rows = num_rows_, width = sizes.n_embd;
    for (float** place : {&x, &last, &product, &r, &k, &v, &v_first}) carver(*place, rows * width);
    for (Activations& input : inputs) carver(input, rows, width);
    for (Activations& low : low_rank) carver(low, rows, (largest_rank + 31) / 32 * 32);
    carver(gated, rows, width);
    carver(hidden, rows, sizes.n_ffn);
    carver(active, sizes.n_ffn / 32);
    carver(packed, std::min(rows, kFewRows) * sizes.n_ffn);
    carver(partial, kMostSlices * std::min(rows, kFewRows) * width);
    const int64_t low_rank_size = std::max(rows * channels_of_unit(sizes.head_size),
                                           std::min(rows, kFewRows) * width);
    for (Private& mine : threads) {
        for (float*& normed : mine.normed) carver(normed, width);
        carver(mine.mixed, width);
        for (float*& low : mine.low_rank) carver(low, low_rank_size);
        carver(mine.hidden, rows * 32 * kHiddenBlocks);
        carver(mine.zero_channels, sizes.n_layer);
    }
}

void Scratch::reserve(const ModelSizes& sizes, int64_t largest_rank, int64_t num_rows,
                      int num_threads) {
    if (num_rows <= num_rows_ && num_threads <= this->num_threads()) return;
    memory_.reset();
    num_rows_ = std::max(num_rows, num_rows_);
    threads.resize(static_cast<size_t>(std::max(num_threads, this->num_threads())));
    Carver counter(nullptr);
    carve(counter, sizes, largest_rank);
    try {
        memory_ = std::make_unique<Arena>(counter.size());
    } catch (...) {
        num_rows_ = 0;
        threads.clear();
        throw;
    }
    Carver carver(memory_->data());
    carve(carver, sizes, largest_rank);
}

}  // namespace anser

#include "model.h"

#include <cstring>
#include <stdexcept>
#include <utility>

namespace anser {
namespace {

template <class Message>
void require(bool is_right, const Message& message) {
    if (!is_right) throw std::invalid_argument(message);
}

ModelSizes checked(const ModelSizes& sizes) {
    const auto is_size = [](int64_t size) { return size >= 1 && size <= int64_t{1} << 30; };
    require(is_size(sizes.n_layer) && is_size(sizes.n_embd) && is_size(sizes.n_ffn) &&
                is_size(sizes.vocab_size),
            "impossible model sizes");
    const int64_t head = sizes.head_size;
    require(head == 16 || head == 32 || head == 64 || head == 128,
            "the kernels know heads of 16, 32, 64 and 128 channels, not " + std::to_string(head));
    require(sizes.n_embd % head == 0 && sizes.n_embd % 32 == 0,
            "a width of " + std::to_string(sizes.n_embd) + " is not whole heads and blocks of 32");
    require(sizes.n_ffn % 32 == 0,
            "a hidden width of " + std::to_string(sizes.n_ffn) + " is not whole blocks of 32");
    return sizes;
}

}  // namespace

Model::Model(const ModelSizes& sizes) : sizes_(checked(sizes)) { reset_counters(); }

void Model::check_loading() const { require(!weights_, "the model is loaded already"); }

void Model::set_vector(const std::string& name, const float* values, int64_t count) {
    check_loading();
    require(count >= 1, name + " is empty");
    auto copy = std::make_unique<Arena>(static_cast<size_t>(count) * sizeof(float));
    std::memcpy(copy->data(), values, copy->size());
    named_.vectors[name] = std::move(copy);
}

void Model::set_matrix(const std::string& name, std::shared_ptr<const Matrix> matrix) {
    check_loading();
    require(matrix != nullptr, name + " is no matrix");
    named_.matrices[name] = std::move(matrix);
}

void Model::set_embedding(int type_id, const uint8_t* raw, int64_t num_bytes) {
    check_loading();
    const Layout& layout = layout_of(type_id);
    require(sizes_.n_embd % layout.values == 0, "the embedding's rows are no whole blocks");
    const int64_t row_bytes = sizes_.n_embd / layout.values * layout.bytes;
    require(num_bytes == sizes_.vocab_size * row_bytes,
            "the embedding has " + std::to_string(num_bytes) + " bytes and not " +
                std::to_string(sizes_.vocab_size * row_bytes));
    auto copy = std::make_unique<Arena>(static_cast<size_t>(num_bytes));
    std::memcpy(copy->data(), raw, copy->size());
    named_.embedding = std::move(copy);
    named_.embedding_type = static_cast<Type>(type_id);
}

void Model::finish() {
    check_loading();
    weights_ = std::make_unique<Weights>(sizes_, named_);
}

void Model::replace_matrix(const std::string& name, std::shared_ptr<const Matrix> matrix) {
    require(weights_ != nullptr, "the model is not loaded");
    require(matrix != nullptr, name + " is no matrix");
    const std::lock_guard<std::mutex> guard(passes_);
    const auto found = named_.matrices.find(name);
    require(found != named_.matrices.end(), name + " has no place in the model");
    std::shared_ptr<const Matrix>& place = found->second;
    require(place->type() == matrix->type() && place->rows() == matrix->rows() &&
                place->cols() == matrix->cols(),
            name + " is replaced by a matrix of another type or size");
    require(place->slices() == matrix->slices(),
            name + " is replaced by a matrix with other slices, whose sums are others");
    place.swap(matrix);
    try {
        weights_ = std::make_unique<Weights>(sizes_, named_);
    } catch (...) {
        place.swap(matrix);  // the old weights point to the old matrix
        throw;
    }
}

void Model::check(const Batch& batch) const {
    require(weights_ != nullptr, "the model is not loaded");
    require(batch.num_rows >= 1 && batch.num_rows <= kMaxRows, "too many or no tokens for a pass");
    for (int64_t t = 0; t < batch.num_rows; ++t)
        if (batch.tokens[t] < 0 || batch.tokens[t] >= sizes_.vocab_size)
            throw std::invalid_argument("token " + std::to_string(batch.tokens[t]) +
                                        " is not in the vocabulary of " +
                                        std::to_string(sizes_.vocab_size));
    require(batch.num_segments >= 1 && batch.starts[0] == 0 &&
                batch.starts[batch.num_segments] == batch.num_rows,
            "the segments are not all rows");
    for (int64_t s = 0; s < batch.num_segments; ++s) {
        require(batch.starts[s] < batch.starts[s + 1], "segments have one token at least, in order");
        const SegmentState& state = batch.states[s];
        require(state.time_shift && state.channel_shift && state.wkv, "a state is missing");
    }
    require(batch.num_wanted <= kMaxRows, "too many rows are wanted");
    for (int64_t i = 0; i < batch.num_wanted; ++i)
        require(batch.wanted_rows[i] >= 0 && batch.wanted_rows[i] < batch.num_rows,
                "a row is wanted that is not there");
}

void Model::forward(const Batch& batch) {
    check(batch);
    const std::lock_guard<std::mutex> guard(passes_);
    std::vector<int64_t> zero(static_cast<size_t>(sizes_.n_layer));
    anser::forward(sizes_, *weights_, scratch_, batch, zero.data());
    const std::lock_guard<std::mutex> counting(counting_);
    for (size_t i = 0; i < zero.size(); ++i) zero_channels_.zero[i] += zero[i];
    zero_channels_.total += sizes_.n_ffn * batch.num_rows;
}

Model::ZeroChannels Model::zero_channels() const {
    const std::lock_guard<std::mutex> counting(counting_);
    return zero_channels_;
}

void Model::reset_counters() {
    const std::lock_guard<std::mutex> counting(counting_);
    zero_channels_ = {std::vector<int64_t>(static_cast<size_t>(sizes_.n_layer)), 0};
}

}  // namespace anser

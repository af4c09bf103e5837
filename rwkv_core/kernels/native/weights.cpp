#include "weights.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace anser {
namespace {

constexpr int64_t kPartBytes = 64 << 10;

// Finds weights by name; what was never asked for is an error in the end.
class Finder {
  public:
    Finder(const ModelSizes& sizes, const NamedWeights& named) : sizes_(sizes), named_(named) {}

    const float* vector(const std::string& name, int64_t count) {
        const auto found = named_.vectors.find(name);
        if (found == named_.vectors.end()) throw std::invalid_argument(name + " is missing");
        const auto size = static_cast<int64_t>(found->second->size() / sizeof(float));
        if (size != count) fail(name, std::to_string(size), std::to_string(count));
        found_.insert(name);
        return reinterpret_cast<const float*>(found->second->data());
    }
    const float* vector(const std::string& name) { return vector(name, sizes_.n_embd); }

    Norm norm(const std::string& name) { return {vector(name + ".weight"), vector(name + ".bias")}; }

    // `rows` of -1: any number.
    const Matrix* matrix(const std::string& name, int64_t rows, int64_t cols) {
        const auto found = named_.matrices.find(name);
        if (found == named_.matrices.end()) throw std::invalid_argument(name + " is missing");
        const Matrix* matrix = found->second.get();
        if (rows < 0) rows = matrix->rows();
        if (matrix->rows() != rows || matrix->cols() != cols)
            fail(name, sizes(matrix->rows(), matrix->cols()), sizes(rows, cols));
        if (matrix->by_columns() && !name.ends_with(".ffn.value.weight"))
            throw std::invalid_argument(name + " is read by rows, and packed by columns");
        found_.insert(name);
        return matrix;
    }

    void check_all_found() const {
        for (const auto& each : named_.vectors) check_found(each.first);
        for (const auto& each : named_.matrices) check_found(each.first);
    }

  private:
    static std::string sizes(int64_t rows, int64_t cols) {
        return std::to_string(rows) + " x " + std::to_string(cols);
    }
    [[noreturn]] static void fail(const std::string& name, const std::string& is,
                                  const std::string& should_be) {
        throw std::invalid_argument(name + " has the size " + is + " and not " + should_be);
    }
    void check_found(const std::string& name) const {
        if (!found_.contains(name)) throw std::invalid_argument(name + " has no place in the model");
    }

    const ModelSizes& sizes_;
    const NamedWeights& named_;
    std::set<std::string> found_;
};

TimeMix time_mix(Finder& find, const std::string& block, int64_t width, bool is_first) {
    const std::string att = block + ".att.";
    TimeMix mix = {};
    mix.ln1 = find.norm(block + ".ln1");
    const char* inputs[kNumInputs] = {"r", "w", "k", "v", "a", "g"};
    for (int i = 0; i < kNumInputs; ++i) mix.lerps[i].weight = find.vector(att + "x_" + inputs[i]);
    const char* low_rank[kNumLowRank] = {"w", "a", "g", "v"};
    for (int i = 0; i < kNumLowRank; ++i) {
        if (i == kV0 && is_first) continue;
        mix.projections[i] = find.matrix(att + low_rank[i] + "1", -1, width);
        mix.up[i] = find.matrix(att + low_rank[i] + "2", width, mix.projections[i]->rows());
    }
    mix.projections[kReceptance] = find.matrix(att + "receptance.weight", width, width);
    mix.projections[kKey] = find.matrix(att + "key.weight", width, width);
    mix.projections[kValue] = find.matrix(att + "value.weight", width, width);
    mix.w0 = find.vector(att + "w0");
    mix.a0 = find.vector(att + "a0");
    if (!is_first) mix.v0 = find.vector(att + "v0");
    mix.k_k = find.vector(att + "k_k");
    mix.k_a = find.vector(att + "k_a");
    mix.r_k = find.vector(att + "r_k");
    mix.ln_x = find.norm(att + "ln_x");
    mix.output = find.matrix(att + "output.weight", width, width);

    // Those with the longest parts first: the short ones even out who is late.
    for (int i = 0; i < kNumProjections; ++i) {
        const Matrix* matrix = mix.projections[i];
        if (!matrix) continue;
        mix.lerps[kInputOf[i]].add(matrix);
        const int64_t step = i < kNumLowRank ? 4 : panels_per_part(*matrix);
        for (int64_t first = 0; first < matrix->panels(); first += step)
            mix.parts.push_back(
                {static_cast<Projection>(i), first, std::min(first + step, matrix->panels())});
    }
    return mix;
}

ChannelMix channel_mix(Finder& find, const std::string& block, int64_t width, int64_t hidden) {
    ChannelMix mix = {};
    mix.ln2 = find.norm(block + ".ln2");
    mix.lerp.weight = find.vector(block + ".ffn.x_k");
    mix.key = find.matrix(block + ".ffn.key.weight", hidden, width);
    mix.value = find.matrix(block + ".ffn.value.weight", width, hidden);
    mix.lerp.add(mix.key);
    return mix;
}

}  // namespace

void Lerp::add(const Matrix* reader) {
    (layout_of(reader->type()).is_quantized() ? wants_codes : wants_values) = true;
}

int64_t panels_per_part(const Matrix& matrix) {
    const int64_t panels = std::max(int64_t{1}, kPartBytes / matrix.panel_bytes());
    if (layout_of(matrix.type()).is_quantized()) return panels;
    return (panels + kPanelGroup - 1) / kPanelGroup * kPanelGroup;
}

Weights::Weights(const ModelSizes& sizes, const NamedWeights& named)
    : embedding_type(named.embedding_type) {
    if (!named.embedding) throw std::invalid_argument("emb.weight is missing");
    embedding = named.embedding->data();
    embedding_row_bytes = static_cast<int64_t>(named.embedding->size()) / sizes.vocab_size;
    Finder find(sizes, named);
    ln0 = find.norm("blocks.0.ln0");
    for (int64_t i = 0; i < sizes.n_layer; ++i) {
        const std::string block = "blocks." + std::to_string(i);
        layers.push_back({time_mix(find, block, sizes.n_embd, i == 0),
                          channel_mix(find, block, sizes.n_embd, sizes.n_ffn)});
        for (int low = 0; low < kNumLowRank; ++low)
            if (const Matrix* matrix = layers.back().att.projections[low])
                largest_rank = std::max(largest_rank, matrix->rows());
    }
    ln_out = find.norm("ln_out");
    head = find.matrix("head.weight", sizes.vocab_size, sizes.n_embd);
    find.check_all_found();
}

}  // namespace anser

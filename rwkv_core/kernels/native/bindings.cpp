// The Python module _rwkv_kernels: see interface.py for what it offers. Arrays are checked here, so
// that no call from Python reads or writes outside of one.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bandwidth.h"
#include "kernels.h"
#include "matmul.h"
#include "matrix.h"
#include "model.h"
#include "pool.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace anser {
namespace {

template <class Value, int dimensions>
using Array = nb::ndarray<Value, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

void require(bool is_right, const char* message) {
    if (!is_right) throw std::invalid_argument(message);
}

int64_t size(const auto& array, int dimension) {
    return static_cast<int64_t>(array.shape(dimension));
}

// ---- matrices -----------------------------------------------------------------------------------

void fill(Matrix& matrix, int64_t first_row, const Array<const uint8_t, 1>& raw) {
    const int64_t bytes = size(raw, 0);
    require(bytes % matrix.row_bytes() == 0, "the bytes are no whole rows");
    const uint8_t* data = raw.data();
    const nb::gil_scoped_release release;
    matrix.fill(first_row, data, bytes / matrix.row_bytes());
}

void multiply(const Matrix& matrix, const Array<const float, 2>& x, const Array<float, 2>& out) {
    require(size(x, 1) == matrix.cols(), "rows of x are not as long as those of the matrix");
    require(size(out, 0) == size(x, 0) && size(out, 1) == matrix.rows(),
            "the result does not fit its array");
    const int64_t num_rows = size(x, 0);
    const float* from = x.data();
    float* to = out.data();
    const nb::gil_scoped_release release;
    matmul(matrix, from, num_rows, to);
}

// ---- models -------------------------------------------------------------------------------------

// The logits of the wanted rows, or what the head would read of them.
template <bool is_hidden>
void run_pass(Model& model, const Array<const int32_t, 1>& tokens,
              const Array<const int32_t, 1>& starts, const Array<const int64_t, 2>& states,
              const Array<const int32_t, 1>& wanted_rows, const Array<float, 2>& out) {
    require(size(starts, 0) >= 2, "no segments");
    Batch batch;
    batch.num_segments = size(starts, 0) - 1;
    require(size(states, 0) == batch.num_segments && size(states, 1) == 6,
            "states are six numbers for every segment");
    const int64_t width = is_hidden ? model.sizes().n_embd : model.sizes().vocab_size;
    require(size(out, 0) == size(wanted_rows, 0) && size(out, 1) == width,
            "what is wanted does not fit its array");
    std::vector<SegmentState> each(batch.num_segments);
    for (int64_t s = 0; s < batch.num_segments; ++s) {
        const int64_t* numbers = states.data() + 6 * s;
        const auto address = [](int64_t number) {
            return reinterpret_cast<float*>(static_cast<intptr_t>(number));
        };
        each[s] = {address(numbers[0]), numbers[1], address(numbers[2]),
                   numbers[3],          address(numbers[4]), numbers[5]};
    }
    batch.tokens = tokens.data();
    batch.num_rows = size(tokens, 0);
    batch.starts = starts.data();
    batch.states = each.data();
    batch.wanted_rows = wanted_rows.data();
    batch.num_wanted = size(wanted_rows, 0);
    batch.logits = is_hidden ? nullptr : out.data();
    batch.hidden = is_hidden ? out.data() : nullptr;
    const nb::gil_scoped_release release;
    model.forward(batch);
}

// ---- single operations, for tests ---------------------------------------------------------------

void layer_norm(const Array<const float, 1>& x, const Array<const float, 1>& weight,
                const Array<const float, 1>& bias, float eps, const Array<float, 1>& out) {
    const int64_t n = size(x, 0);
    require(n % 16 == 0 && size(weight, 0) == n && size(bias, 0) == n && size(out, 0) == n,
            "vectors of one length, a multiple of 16");
    kernels().layer_norm(x.data(), weight.data(), bias.data(), n, eps, out.data());
}

void mix(const Array<const float, 1>& h, const Array<const float, 1>& previous,
         const Array<const float, 1>& lerp, const Array<float, 1>& out) {
    const int64_t n = size(h, 0);
    require(n % 16 == 0 && size(previous, 0) == n && size(lerp, 0) == n && size(out, 0) == n,
            "vectors of one length, a multiple of 16");
    kernels().mix(h.data(), previous.data(), lerp.data(), n, out.data());
}

// "tanh", "sigmoid" or "relu_squared", in place; returns how many values relu^2 made zero.
int64_t activate(const std::string& name, const Array<float, 1>& x) {
    const int64_t n = size(x, 0);
    require(n % 16 == 0, "a vector whose length is a multiple of 16");
    if (name == "relu_squared") return kernels().relu_squared(x.data(), n);
    require(name == "tanh" || name == "sigmoid", "no such activation");
    (name == "tanh" ? kernels().tanh : kernels().sigmoid)(x.data(), n);
    return 0;
}

// x [T, K] in the forms of `Rows`.
void quantize(const Array<const float, 2>& x, const Array<int8_t, 3>& codes,
              const Array<float, 2>& scales, const Array<int32_t, 3>& negated_sums,
              const Array<float, 2>& scaled_sums) {
    const int64_t T = size(x, 0), blocks = size(x, 1) / 32;
    require(size(x, 1) % 32 == 0, "rows of whole blocks of 32");
    require(size(codes, 0) == blocks && size(codes, 1) == T && size(codes, 2) == 32 &&
                size(scales, 0) == blocks && size(scales, 1) == T &&
                size(negated_sums, 0) == blocks && size(negated_sums, 1) == 3 &&
                size(negated_sums, 2) == T && size(scaled_sums, 0) == blocks &&
                size(scaled_sums, 1) == T,
            "the forms of x are [K/32, T, 32], [K/32, T], [K/32, 3, T], [K/32, T]");
    for (int64_t t = 0; t < T; ++t)
        kernels().quantize(x.data() + t * size(x, 1), 0, blocks, t, T, codes.data(), scales.data(),
                           negated_sums.data(), scaled_sums.data());
}

void pack_active(const Array<const int8_t, 3>& codes, bool split_halves,
                 const Array<uint32_t, 1>& active, const Array<int8_t, 3>& packed) {
    require(size(codes, 2) == 32 && size(active, 0) == size(codes, 0) &&
                size(packed, 0) == size(codes, 0) && size(packed, 1) == size(codes, 1) &&
                size(packed, 2) == 32,
            "codes and packed are [K/32, T, 32], active is [K/32]");
    for (int64_t b = 0; b < size(codes, 0); ++b)
        kernels().pack_active(codes.data(), b, size(codes, 1), split_halves, active.data(),
                              packed.data());
}

// The time mix of T tokens and all heads behind its projections: rows of H * N channels. `rows` are
// r, w, k, v, a, g and, in later layers, v_mix and v_first, each [T, H * N], where v changes;
// `vectors` [8, H * N] are w0, a0, v0, k_k, k_a, r_k, norm weight and bias; state [H, N, N].
void time_mix(const Array<float, 3>& rows, const Array<const float, 2>& vectors, float norm_eps,
              const Array<float, 3>& state, const Array<float, 2>& out) {
    const int64_t count = size(rows, 0), T = size(rows, 1), width = size(rows, 2);
    const int64_t heads = size(state, 0), N = size(state, 1);
    require(count == 6 || count == 8, "six kinds of rows, or eight");
    require(T >= 1 && (N == 16 || N == 32 || N == 64 || N == 128) && size(state, 2) == N &&
                width == heads * N,
            "one token at least, and heads of 16, 32, 64 or 128 channels");
    require(size(vectors, 0) == 8 && size(vectors, 1) == width && size(out, 0) == T &&
                size(out, 1) == width,
            "vectors and result fit the rows");
    for (int64_t head = 0; head < heads; ++head) {
        float* row[8] = {};
        for (int64_t i = 0; i < count; ++i) row[i] = rows.data() + i * T * width + head * N;
        const float* vector[8];
        for (int64_t i = 0; i < 8; ++i) vector[i] = vectors.data() + i * width + head * N;
        HeadTask task = {};
        task.size = N;
        task.length = T;
        task.stride = task.low_rank_stride = width;
        task.r = row[0];
        task.w = row[1];
        task.k = row[2];
        task.v = row[3];
        task.a = row[4];
        task.g = row[5];
        task.v_mix = row[6];
        task.v_first = row[7];
        task.w0 = vector[0];
        task.a0 = vector[1];
        task.v0 = vector[2];
        task.k_k = vector[3];
        task.k_a = vector[4];
        task.r_k = vector[5];
        task.norm_weight = vector[6];
        task.norm_bias = vector[7];
        task.norm_eps = norm_eps;
        task.state = state.data() + head * N * N;
        task.out = out.data() + head * N;
        kernels().wkv_head(task);
    }
}

// The values of rows [rows, bytes of a row] in a file's layout.
void decode_rows(int type_id, const Array<const uint8_t, 2>& raw, const Array<float, 2>& out) {
    const Layout& layout = layout_of(type_id);
    const int64_t cols = size(out, 1);
    require(cols % layout.values == 0 && size(raw, 0) == size(out, 0) &&
                size(raw, 1) == cols / layout.values * layout.bytes,
            "the values do not fit their array");
    for (int64_t row = 0; row < size(out, 0); ++row)
        decode_row(static_cast<Type>(type_id), raw.data() + row * size(raw, 1), cols,
                   out.data() + row * cols);
}

}  // namespace
}  // namespace anser

NB_MODULE(_rwkv_kernels, m) {
    using namespace anser;
    m.attr("SOURCE_HASH") = ANSER_SOURCE_HASH;

    m.def("isa", [] { return std::string(kernels().name); });
    m.def("supported_isas", [] {
        int count = 0;
        const Kernels* const* all = supported_kernels(&count);
        std::vector<std::string> names;
        for (int i = 0; i < count; ++i) names.emplace_back(all[i]->name);
        return names;
    });
    m.def("set_isa", [](const std::string& name) { use_kernels(name.c_str()); }, "name"_a);
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads, "count"_a);
    m.def("read_bandwidth", &read_bandwidth, "num_bytes"_a,
          nb::call_guard<nb::gil_scoped_release>());
    m.def("max_rows", [] { return kMaxRows; });

    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<int, int64_t, int64_t, bool, int64_t>(), "type_id"_a, "rows"_a, "cols"_a,
             "by_columns"_a, "slices"_a)
        .def_prop_ro("nbytes", &Matrix::nbytes)
        .def_prop_ro("rows", &Matrix::rows)
        .def_prop_ro("cols", &Matrix::cols)
        .def("fill", &fill, "first_row"_a, "raw"_a.noconvert());
    m.def("matmul", &multiply, "matrix"_a, "x"_a.noconvert(), "out"_a.noconvert());

    nb::class_<Model>(m, "Model")
        .def(
            "__init__",
            [](Model* self, int64_t n_layer, int64_t n_embd, int64_t head_size, int64_t n_ffn,
               int64_t vocab_size, float layer_norm_eps, float group_norm_eps) {
                new (self) Model({n_layer, n_embd, head_size, n_ffn, vocab_size, layer_norm_eps,
                                  group_norm_eps});
            },
            "n_layer"_a, "n_embd"_a, "head_size"_a, "n_ffn"_a, "vocab_size"_a, "layer_norm_eps"_a,
            "group_norm_eps"_a)
        .def(
            "set_vector",
            [](Model& model, const std::string& name, const Array<const float, 1>& values) {
                model.set_vector(name, values.data(), size(values, 0));
            },
            "name"_a, "values"_a.noconvert())
        .def("set_matrix",
             [](Model& model, const std::string& name, const std::shared_ptr<Matrix>& matrix) {
                 model.set_matrix(name, matrix);
             },
             "name"_a, "matrix"_a)
        .def(
            "set_embedding",
            [](Model& model, int type_id, const Array<const uint8_t, 1>& raw) {
                model.set_embedding(type_id, raw.data(), size(raw, 0));
            },
            "type_id"_a, "raw"_a.noconvert())
        .def("finish", &Model::finish)
        .def("replace_matrix",
             [](Model& model, const std::string& name, const std::shared_ptr<Matrix>& matrix) {
                 const nb::gil_scoped_release release;
                 model.replace_matrix(name, matrix);
             },
             "name"_a, "matrix"_a)
        .def("forward", &run_pass<false>, "tokens"_a.noconvert(), "starts"_a.noconvert(),
             "states"_a.noconvert(), "wanted_rows"_a.noconvert(), "out"_a.noconvert())
        .def("forward_hidden", &run_pass<true>, "tokens"_a.noconvert(), "starts"_a.noconvert(),
             "states"_a.noconvert(), "wanted_rows"_a.noconvert(), "out"_a.noconvert())
        .def("zero_channels",
             [](const Model& model) {
                 Model::ZeroChannels counts = model.zero_channels();
                 return std::pair(std::move(counts.zero), counts.total);
             })
        .def("reset_counters", &Model::reset_counters);

    m.def("layer_norm", &layer_norm, "x"_a.noconvert(), "weight"_a.noconvert(),
          "bias"_a.noconvert(), "eps"_a, "out"_a.noconvert());
    m.def("mix", &mix, "h"_a.noconvert(), "previous"_a.noconvert(), "lerp"_a.noconvert(),
          "out"_a.noconvert());
    m.def("activate", &activate, "name"_a, "x"_a.noconvert());
    m.def("quantize", &quantize, "x"_a.noconvert(), "codes"_a.noconvert(), "scales"_a.noconvert(),
          "negated_sums"_a.noconvert(), "scaled_sums"_a.noconvert());
    m.def("pack_active", &pack_active, "codes"_a.noconvert(), "split_halves"_a,
          "active"_a.noconvert(), "packed"_a.noconvert());
    m.def("time_mix", &time_mix, "rows"_a.noconvert(), "vectors"_a.noconvert(), "norm_eps"_a,
          "state"_a.noconvert(), "out"_a.noconvert());
    m.def("decode_rows", &decode_rows, "type_id"_a, "raw"_a.noconvert(), "out"_a.noconvert());
}

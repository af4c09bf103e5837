#include "matmul.h"

#include <algorithm>
#include <vector>

#include "forward.h"
#include "kernels.h"
#include "pool.h"
#include "rows.h"
#include "scratch.h"

namespace anser {
namespace {

// The forms of up to kMaxRows rows that a quantized matrix reads.
struct Quantized {
    Quantized(int64_t num_rows, int64_t cols)
        : codes(num_rows * cols),
          scales(num_rows * (cols / 32)),
          negated_sums(num_rows * (cols / 32) * 3),
          scaled_sums(scales.size()) {}

    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> negated_sums;
    std::vector<float> scaled_sums;
    std::vector<uint32_t> active;
    std::vector<int8_t> packed;
};

void multiply(const Matrix& matrix, const Rows& rows, float* out) {
    const Kernels& use = kernels();
    if (rows.active) {
        std::vector<float> partial(matrix.slices() * rows.count * matrix.rows());
        run_on_all([&](Team& team) {
            multiply_active_columns(team, matrix, rows, partial.data(), out, matrix.rows(),
                                    [](int64_t, int64_t) {});
        });
        return;
    }
    const bool by_columns = matrix.by_columns();
    const int64_t count = by_columns ? matrix.rows() / kColumnGroup : matrix.panels();
    const int64_t grain = by_columns ? 1 : panels_per_part(matrix);
    run_on_all([&](Team& team) {
        team.deal(count, grain, [&](int64_t first, int64_t last) {
            if (by_columns)
                use.multiply_columns(matrix, rows, first, last, 0, matrix.slices(), out,
                                     matrix.rows());
            else
                use.multiply_panels(matrix, rows, first, last, out, matrix.rows());
        });
    });
}

}  // namespace

void matmul(const Matrix& matrix, const float* x, int64_t num_rows, float* out) {
    const int64_t cols = matrix.cols();
    const bool is_quantized = layout_of(matrix.type()).is_quantized();
    for (int64_t start = 0; start < num_rows; start += kMaxRows) {
        Rows rows;
        rows.count = std::min(kMaxRows, num_rows - start);
        rows.cols = cols;
        rows.values = x + start * cols;
        rows.stride = cols;
        Quantized forms(is_quantized ? rows.count : 0, cols);
        if (is_quantized) {
            for (int64_t t = 0; t < rows.count; ++t)
                kernels().quantize(rows.values + t * cols, 0, cols / 32, t, rows.count,
                                   forms.codes.data(), forms.scales.data(),
                                   forms.negated_sums.data(), forms.scaled_sums.data());
            rows.codes = forms.codes.data();
            rows.scales = forms.scales.data();
            rows.negated_sums = forms.negated_sums.data();
            rows.scaled_sums = forms.scaled_sums.data();
        }
        if (is_quantized && matrix.by_columns() && rows.count <= kFewRows) {
            rows.split_halves = matrix.type() == Type::Q6_K;
            forms.active.resize(cols / 32);
            forms.packed.resize(forms.codes.size());
            for (int64_t b = 0; b < cols / 32; ++b)
                kernels().pack_active(rows.codes, b, rows.count, rows.split_halves,
                                      forms.active.data(), forms.packed.data());
            rows.active = forms.active.data();
            rows.packed = forms.packed.data();
        }
        multiply(matrix, rows, out + start * matrix.rows());
    }
}

}  // namespace anser

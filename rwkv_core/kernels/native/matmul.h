// A matrix product by itself, as a pass through a model does it.
#pragma once
#include <cstdint>

#include <cstring>

#include "kernels.h"
#include "pool.h"
#include "rows.h"

namespace anser {

// A product with a matrix by columns, of the columns that are active in `rows`: whole columns, one
// slice of them to each thread at a time, and then the sum of the slices. finish(first, last) is
// called for the channels that have become ready. `partial` is [slices][rows.count][matrix.rows()].
template <class Finish>
void multiply_active_columns(Team& team, const Matrix& matrix, const Rows& rows, float* partial,
                             float* out, int64_t out_stride, const Finish& finish) {
    const Kernels& use = kernels();
    const int64_t width = matrix.rows(), groups = width / kColumnGroup, size = rows.count * width;
    team.deal(matrix.slices(), 1, [&](int64_t slice, int64_t end) {
        use.multiply_columns(matrix, rows, 0, groups, slice, end, partial + slice * size, width);
    });
    const int64_t grain = (groups + team.size() - 1) / team.size();
    team.deal(groups, grain, [&](int64_t first, int64_t last) {
        const int64_t begin = kColumnGroup * first, count = kColumnGroup * (last - first);
        for (int64_t t = 0; t < rows.count; ++t) {
            float* sum = out + t * out_stride + begin;
            std::memset(sum, 0, count * sizeof(float));
            for (int64_t slice = 0; slice < matrix.slices(); ++slice)
                use.add(sum, partial + slice * size + t * width + begin, count);
        }
        finish(begin, begin + count);
    });
}

// out [num_rows, matrix.rows()] = x [num_rows, matrix.cols()] times the matrix transposed, on all
// threads of the pool. x is quantized first if the matrix is. Throws std::bad_alloc.
void matmul(const Matrix& matrix, const float* x, int64_t num_rows, float* out);

}  // namespace anser

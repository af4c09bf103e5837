// A matrix product by itself, as a pass through a model does it.
#pragma once
#include <cstdint>

#include "matrix.h"

namespace anser {

// out [num_rows, matrix.rows()] = x [num_rows, matrix.cols()] times the matrix transposed, on all
// threads of the pool. x is quantized first if the matrix is. Throws std::bad_alloc.
void matmul(const Matrix& matrix, const float* x, int64_t num_rows, float* out);

}  // namespace anser

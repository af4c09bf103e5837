// A weight matrix, packed for the kernels: the bits of the file in another order, of the same size.
//
// By rows ("panels"): 16 rows are interleaved, so that a vector register holds one column group of
// 16 rows and every output has a lane of its own. A panel is read from its first byte to its last, one
// stream that the processor's prefetcher follows from panel to panel at the memory's full speed (with
// all scales before all codes it was half of that). For every one or two blocks of columns, see
// `blocks_together`, the panel has
//
//     scales:  [blocks][scale_bytes * 16]      (see matrix.cpp for the record)
//     codes:   [blocks][columns / 32] sub-blocks of 16 rows x 32 columns:
//         high plane  1 bit: [16 rows][4 columns], bit g of a byte belongs to group g of 4 columns;
//                     2 bits: [2][16][4], bits 2 (g % 4) of byte [g / 4] belong to group g
//         low plane   8 bits: [8][16][4]; 4 bits: [4][16][4], the low half of a byte belongs to
//                     group g, the high half to group g + 4
//
// and for float types, kPanelGroup panels together (the last of a matrix: those that there are),
// [cols][panels][16 rows] (BF16: [cols / 2][panels][16 rows][2]).
//
// By columns: for every block of columns
//
//     scales:  [panels][scale_bytes * 16]
//     low plane:   [block columns][rows * low_bits / 8]
//     high plane:  [block columns][rows * high_bits / 8]
//
// where a column's codes are in groups of 64 rows, in the order of `column_place`; 4 bits: 32 bytes,
// places 0-31 in the low, 32-63 in the high halves; 1 bit: 8 bytes, bit p of a group is place p;
// 2 bits: 16 bytes, bits 2 (p / 16) of byte p % 16 are place p. Quantized types only.
#pragma once
#include <cstdint>
#include <memory>

#include "arena.h"
#include "formats.h"

namespace anser {

class Matrix {
  public:
    // Allocates. Throws std::invalid_argument for sizes that do not fit the type or the layout,
    // std::bad_alloc when there is not enough memory.
    Matrix(int type_id, int64_t rows, int64_t cols, bool by_columns, int64_t slices);

    // Packs `num_rows` rows of the file from `first_row` on, which is a multiple of 64, with all
    // threads of the pool. Not for use while the matrix is read.
    void fill(int64_t first_row, const uint8_t* raw, int64_t num_rows);

    Type type() const { return type_; }
    int64_t rows() const { return rows_; }
    int64_t cols() const { return cols_; }
    bool by_columns() const { return by_columns_; }
    // Every output is the sum of so many partial sums, over as many runs of blocks: so that threads can
    // take whole columns each, and the numbers are the same however many they are and in either layout.
    int64_t slices() const { return slices_; }
    int64_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
    int64_t panel_bytes() const { return panel_bytes_; }
    int64_t row_bytes() const { return row_bytes_; }  // in the file
    int64_t nbytes() const { return nbytes_; }
    const uint8_t* data() const { return data_.data(); }

  private:
    Type type_;
    int64_t rows_, cols_;
    bool by_columns_;
    int64_t slices_;
    int64_t row_bytes_, panel_bytes_, nbytes_;
    Arena data_;
};

// One row of `cols` values in the file's own layout, as float32.
void decode_row(Type type, const uint8_t* raw, int64_t cols, float* out);

// Where row r of a group of 64 rows lies in a column: the interleaving of four columns by the
// unpack instructions, which work in lanes of 16 bytes, then yields rows in order.
constexpr int column_place(int row) { return (row / 4 % 4) * 16 + row / 16 * 4 + row % 4; }

}  // namespace anser

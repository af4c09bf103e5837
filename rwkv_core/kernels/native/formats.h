// ggml's types as they lie in GGUF files: what a block holds and how many bytes it has.
#pragma once
#include <cstddef>
#include <cstdint>

namespace anser {

// ggml's numbers.
enum class Type : int {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
};

// Rows of one panel: the lanes of a float32 vector of 512 bits.
constexpr int64_t kPanelRows = 16;
// Panels of float types that lie together: for one row of activations they are four chains of additions
// over one stream of memory.
constexpr int64_t kPanelGroup = 4;
// Values that share one scale of the activations, and that a kernel decodes at once.
constexpr int64_t kSubBlock = 32;
// Rows whose codes of one column lie together in the layout by columns.
constexpr int64_t kColumnGroup = 64;
// A product over a long row may be made of so many partial sums, see `Matrix::slices`.
constexpr int64_t kMostSlices = 16;

struct Layout {
    int values;  // per block
    int bytes;   // per block
    int low_bits, high_bits;  // of a code: the plane of bytes or nibbles, and the plane above it
    int scale_bytes;          // of a block

    constexpr bool is_quantized() const { return values > 1; }
};

// Blocks of a panel whose scale records lie side by side, so that the codes behind them begin a line
// of the cache.
constexpr int blocks_together(int scale_bytes) { return 16 * scale_bytes % 64 ? 2 : 1; }

// Throws std::invalid_argument for a number that is none of `Type`.
const Layout& layout_of(int type_id);
inline const Layout& layout_of(Type type) { return layout_of(static_cast<int>(type)); }

}  // namespace anser

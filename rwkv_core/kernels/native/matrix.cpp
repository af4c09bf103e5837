#include "matrix.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "pool.h"

namespace anser {
namespace {

struct NamedLayout {
    Type type;
    Layout layout;
};

constexpr NamedLayout kLayouts[] = {
    {Type::F32, {1, 4, 0, 0, 0}},        {Type::F16, {1, 2, 0, 0, 0}},
    {Type::BF16, {1, 2, 0, 0, 0}},       {Type::Q8_0, {32, 34, 8, 0, 2}},
    {Type::Q4_0, {32, 18, 4, 0, 2}},     {Type::Q4_1, {32, 20, 4, 0, 4}},
    {Type::Q5_0, {32, 22, 4, 1, 2}},     {Type::Q5_1, {32, 24, 4, 1, 4}},
    {Type::Q4_K, {256, 144, 4, 0, 16}},  {Type::Q5_K, {256, 176, 4, 1, 16}},
    {Type::Q6_K, {256, 210, 4, 2, 18}},
};

uint16_t half_at(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, 2);
    return half;
}

float half_to_float(uint16_t half) {
    uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
    float scaled;
    std::memcpy(&scaled, &magnitude, 4);
    scaled *= 0x1p112f;  // puts the exponent right, exactly, for denormals too
    uint32_t bits;
    std::memcpy(&bits, &scaled, 4);
    if (magnitude >= 0x0F800000) bits = magnitude | 0x7F800000;  // infinity and NaN
    bits |= static_cast<uint32_t>(half & 0x8000) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The 6-bit scale and minimum of sub-block `s`, packed in the twelve bytes of a Q4_K or Q5_K block.
void six_bits(const uint8_t* twelve, int s, uint8_t* scale, uint8_t* minimum) {
    if (s < 4) {
        *scale = twelve[s] & 63;
        *minimum = twelve[s + 4] & 63;
    } else {
        *scale = static_cast<uint8_t>((twelve[s + 4] & 15) | (twelve[s - 4] >> 6) << 4);
        *minimum = static_cast<uint8_t>(twelve[s + 4] >> 4 | (twelve[s] >> 6) << 4);
    }
}

// The codes of sub-block `s` (32 values) of a block, as unsigned numbers: Q8_0 with 128 added.
void read_codes(Type type, const uint8_t* block, int s, uint8_t* out) {
    auto nibbles = [out](const uint8_t* packed) {
        for (int i = 0; i < 16; ++i) {
            out[i] = packed[i] & 15;
            out[i + 16] = packed[i] >> 4;
        }
    };
    auto fifth_bits = [out](const uint8_t* packed) {
        uint32_t bits;
        std::memcpy(&bits, packed, 4);
        for (int i = 0; i < 32; ++i) out[i] |= static_cast<uint8_t>((bits >> i & 1) << 4);
    };
    auto half_of_bytes = [out, s](const uint8_t* packed) {  // K types: 32 bytes hold two sub-blocks
        const uint8_t* bytes = packed + 32 * (s / 2);
        const int shift = s % 2 * 4;
        for (int i = 0; i < 32; ++i) out[i] = bytes[i] >> shift & 15;
    };
    switch (type) {
        case Type::Q8_0:
            for (int i = 0; i < 32; ++i) out[i] = block[2 + i] ^ 0x80;
            return;
        case Type::Q4_0:
            return nibbles(block + 2);
        case Type::Q4_1:
            return nibbles(block + 4);
        case Type::Q5_0:
            nibbles(block + 6);
            return fifth_bits(block + 2);
        case Type::Q5_1:
            nibbles(block + 8);
            return fifth_bits(block + 4);
        case Type::Q4_K:
            return half_of_bytes(block + 16);
        case Type::Q5_K:
            half_of_bytes(block + 48);
            for (int i = 0; i < 32; ++i)
                out[i] |= static_cast<uint8_t>((block[16 + i] >> s & 1) << 4);
            return;
        case Type::Q6_K: {
            // Half of 128 values: 64 bytes of nibbles (two quarters low, two high), 32 of pairs.
            const int half = s / 4, quarter = s % 4;
            const uint8_t* low = block + 64 * half + 32 * (quarter % 2);
            const uint8_t* high = block + 128 + 32 * half;
            const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
            for (int i = 0; i < 32; ++i)
                out[i] = static_cast<uint8_t>((low[i] >> low_shift & 15) |
                                              (high[i] >> high_shift & 3) << 4);
            return;
        }
        default:
            return;  // float types have no codes
    }
}

// One row's part in the scale record of a panel: the record of 16 rows is
//     Q8_0, Q4_0, Q5_0   d[16]
//     Q4_1, Q5_1         d[16], m[16]
//     Q4_K, Q5_K         d[16], dmin[16], then 6-bit numbers in columns of 16 rows, in the order
//                        scale j, scale j + 4, minimum j, minimum j + 4 for j = 0 to 3: their low
//                        four bits (64 bytes with j = 0 in the low halves and 1 in the high, 64 with
//                        2 and 3), their high two bits (64 bytes, j at bits 2j)
//     Q6_K               d[16], scales[16 sub-blocks][16]
void write_scales(Type type, const uint8_t* block, int row, uint8_t* record) {
    auto place_half = [&](int field, const uint8_t* from) {
        std::memcpy(record + 32 * field + 2 * row, from, 2);
    };
    if (type == Type::Q6_K) {
        place_half(0, block + 208);
        for (int s = 0; s < 16; ++s) record[32 + 16 * s + row] = block[192 + s];
        return;
    }
    place_half(0, block);
    if (type == Type::Q4_1 || type == Type::Q5_1) place_half(1, block + 2);
    if (type != Type::Q4_K && type != Type::Q5_K) return;
    place_half(1, block + 2);
    uint8_t* low = record + 64;
    uint8_t* high = record + 192;
    for (int s = 0; s < 8; ++s) {
        uint8_t numbers[2];
        six_bits(block + 4, s, &numbers[0], &numbers[1]);
        for (int kind = 0; kind < 2; ++kind) {
            const int j = s % 4, place = 32 * kind + 16 * (s / 4) + row;
            low[64 * (j / 2) + place] |= static_cast<uint8_t>((numbers[kind] & 15) << 4 * (j % 2));
            high[place] |= static_cast<uint8_t>((numbers[kind] >> 4) << 2 * j);
        }
    }
}

// Codes of 16 rows x 32 columns -> a sub-block of a panel.
void write_panel_codes(const Layout& layout, const uint8_t codes[16][32], uint8_t* out) {
    uint32_t groups[16][8];  // four columns each
    std::memcpy(groups, codes, sizeof groups);
    uint32_t words[8 * 16];
    if (layout.low_bits == 8) {
        for (int g = 0; g < 8; ++g)
            for (int r = 0; r < 16; ++r) words[16 * g + r] = groups[r][g];
        std::memcpy(out, words, 512);
        return;
    }
    for (int g = 0; g < 4; ++g)
        for (int r = 0; r < 16; ++r)
            words[16 * g + r] =
                (groups[r][g] & 0x0F0F0F0F) | (groups[r][g + 4] & 0x0F0F0F0F) << 4;
    std::memcpy(out + 64 * layout.high_bits, words, 256);
    const int bits = layout.high_bits, groups_per_word = bits ? 8 / bits : 8;
    const uint32_t mask = bits == 2 ? 0x03030303 : 0x01010101;
    for (int j = 0; j < bits; ++j) {
        for (int r = 0; r < 16; ++r) {
            uint32_t word = 0;
            for (int i = 0; i < groups_per_word; ++i)
                word |= (groups[r][j * groups_per_word + i] >> 4 & mask) << bits * i;
            words[r] = word;
        }
        std::memcpy(out + 64 * j, words, 64);
    }
}

// One column of 64 codes, in `column_place` order -> its two planes.
void write_column(const Layout& layout, const uint8_t places[64], uint8_t* low, uint8_t* high) {
    if (layout.low_bits == 8) {
        std::memcpy(low, places, 64);
        return;
    }
    for (int i = 0; i < 32; ++i)
        low[i] = static_cast<uint8_t>((places[i] & 15) | (places[32 + i] & 15) << 4);
    if (layout.high_bits == 1) {
        uint64_t bits = 0;
        for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(places[i] >> 4 & 1) << i;
        for (int i = 0; i < 8; ++i) high[i] = static_cast<uint8_t>(bits >> 8 * i);
    } else if (layout.high_bits == 2) {
        for (int i = 0; i < 16; ++i) {
            int pairs = 0;
            for (int j = 0; j < 4; ++j) pairs |= (places[16 * j + i] >> 4 & 3) << 2 * j;
            high[i] = static_cast<uint8_t>(pairs);
        }
    }
}

// Up to 16 rows of the file -> one panel. Rows that are missing stay zero.
void fill_panel(Type type, int64_t cols, const uint8_t* raw, int64_t row_bytes, int num_rows,
                uint8_t* panel) {
    const Layout& layout = layout_of(type);
    const int64_t blocks = cols / layout.values;
    const int subs = layout.values / static_cast<int>(kSubBlock);
    const int64_t record = 16 * layout.scale_bytes, together = blocks_together(layout.scale_bytes);
    const int64_t sub_bytes = 16 * kSubBlock * (layout.low_bits + layout.high_bits) / 8;
    uint8_t codes[16][32] = {};
    for (int64_t first = 0; first < blocks; first += together) {
        const int64_t count = std::min(together, blocks - first);
        uint8_t* codes_out = panel + count * record;
        for (int64_t b = first; b < first + count; ++b, panel += record) {
            for (int r = 0; r < num_rows; ++r)
                write_scales(type, raw + r * row_bytes + b * layout.bytes, r, panel);
            for (int s = 0; s < subs; ++s, codes_out += sub_bytes) {
                for (int r = 0; r < num_rows; ++r)
                    read_codes(type, raw + r * row_bytes + b * layout.bytes, s, codes[r]);
                write_panel_codes(layout, codes, codes_out);
            }
        }
        panel = codes_out;
    }
}

// Up to 16 rows of the file -> panel `index` of a group of `panels`, which begins at `group`.
template <class Word>
void fill_float_panel(int64_t cols, int64_t pair, const uint8_t* raw, int64_t row_bytes,
                      int num_rows, int64_t index, int64_t panels, uint8_t* group) {
    for (int r = 0; r < num_rows; ++r) {
        const uint8_t* row = raw + r * row_bytes;
        for (int64_t k = 0; k < cols; ++k) {
            const int64_t place = ((k / pair * panels + index) * 16 + r) * pair + k % pair;
            std::memcpy(group + place * static_cast<int64_t>(sizeof(Word)),
                        row + k * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
        }
    }
}

// 64 rows of the file -> group `group` of every column of block `b`.
void fill_column_block(Type type, int64_t rows, const uint8_t* raw, int64_t row_bytes,
                       int64_t group, int64_t b, uint8_t* data) {
    const Layout& layout = layout_of(type);
    const int64_t record = 16 * layout.scale_bytes;
    const int64_t low_bytes = rows * layout.low_bits / 8, high_bytes = rows * layout.high_bits / 8;
    uint8_t* block_out = data + b * rows * layout.bytes;
    uint8_t* low = block_out + rows / kPanelRows * record;
    uint8_t* high = low + layout.values * low_bytes;
    const uint8_t* blocks = raw + b * layout.bytes;
    for (int r = 0; r < kColumnGroup; ++r) {
        const int64_t panel = group * 4 + r / 16;
        write_scales(type, blocks + r * row_bytes, r % 16, block_out + panel * record);
    }
    for (int s = 0; s < layout.values / kSubBlock; ++s) {
        uint8_t codes[kColumnGroup][32], places[32][kColumnGroup];
        for (int r = 0; r < kColumnGroup; ++r) read_codes(type, blocks + r * row_bytes, s, codes[r]);
        for (int r = 0; r < kColumnGroup; ++r)
            for (int c = 0; c < 32; ++c) places[c][column_place(r)] = codes[r][c];
        for (int c = 0; c < 32; ++c) {
            const int64_t column = s * kSubBlock + c;
            write_column(layout, places[c], low + column * low_bytes + group * 64 * layout.low_bits / 8,
                         high + column * high_bytes + group * 64 * layout.high_bits / 8);
        }
    }
}

std::string sizes(int64_t rows, int64_t cols) {
    return std::to_string(rows) + " x " + std::to_string(cols);
}

}  // namespace

const Layout& layout_of(int type_id) {
    for (const NamedLayout& each : kLayouts)
        if (static_cast<int>(each.type) == type_id) return each.layout;
    throw std::invalid_argument("no kernel reads ggml type " + std::to_string(type_id));
}

namespace {

int64_t checked_size(int type_id, int64_t rows, int64_t cols, bool by_columns) {
    const Layout& layout = layout_of(type_id);
    constexpr int64_t kMost = int64_t{1} << 32;
    if (rows < 1 || cols < 1 || rows > kMost || cols > kMost || rows > (int64_t{1} << 46) / cols)
        throw std::invalid_argument("impossible matrix: " + sizes(rows, cols));
    if (cols % layout.values)
        throw std::invalid_argument("rows of " + std::to_string(cols) + " values do not fill blocks of " +
                                    std::to_string(layout.values));
    if (by_columns && (rows % kColumnGroup || layout.values == 1))
        throw std::invalid_argument("a matrix by columns is quantized and has a multiple of 64 rows, not " +
                                    std::to_string(rows));
    if (by_columns) return rows * (cols / layout.values) * layout.bytes;
    const bool has_pairs = type_id == static_cast<int>(Type::BF16);
    const int64_t padded_cols = has_pairs ? cols + cols % 2 : cols;
    const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
    return panels * kPanelRows * (padded_cols / layout.values) * layout.bytes;
}

}  // namespace

Matrix::Matrix(int type_id, int64_t rows, int64_t cols, bool by_columns, int64_t slices)
    : type_(static_cast<Type>(type_id)),
      rows_(rows),
      cols_(cols),
      by_columns_(by_columns),
      slices_(slices),
      nbytes_(checked_size(type_id, rows, cols, by_columns)),
      data_(static_cast<size_t>(nbytes_)) {
    const Layout& layout = layout_of(type_);
    const int64_t most_slices =
        layout.is_quantized() ? std::min(kMostSlices, cols / layout.values) : 1;
    if (slices < 1 || slices > most_slices)
        throw std::invalid_argument("a product over " + std::to_string(cols) +
                                    " columns of this type has 1 to " + std::to_string(most_slices) +
                                    " slices, not " + std::to_string(slices));
    row_bytes_ = cols / layout.values * layout.bytes;
    panel_bytes_ = nbytes_ / panels();
}

void Matrix::fill(int64_t first_row, const uint8_t* raw, int64_t num_rows) {
    if (first_row < 0 || first_row % kColumnGroup || num_rows < 0 || num_rows > rows_ - first_row)
        throw std::invalid_argument("rows " + std::to_string(first_row) + " to " +
                                    std::to_string(first_row + num_rows) + " cannot be filled");
    if (num_rows % kColumnGroup && first_row + num_rows != rows_)
        throw std::invalid_argument("only the last rows may be no multiple of 64");
    const Layout& layout = layout_of(type_);
    uint8_t* data = data_.data();
    if (by_columns_) {
        const int64_t groups = num_rows / kColumnGroup, blocks = cols_ / layout.values;
        run_on_all([&](Team& team) {
            team.deal(groups, 1, [&](int64_t first, int64_t last) {
                for (int64_t g = first; g < last; ++g) {
                    const uint8_t* rows_of_group = raw + g * kColumnGroup * row_bytes_;
                    const int64_t group = first_row / kColumnGroup + g;
                    for (int64_t b = 0; b < blocks; ++b)
                        fill_column_block(type_, rows_, rows_of_group, row_bytes_, group, b, data);
                }
            });
        });
        return;
    }
    const int64_t panels = (num_rows + kPanelRows - 1) / kPanelRows;
    run_on_all([&](Team& team) {
        team.deal(panels, 4, [&](int64_t first, int64_t last) {
            for (int64_t p = first; p < last; ++p) {
                const uint8_t* from = raw + p * kPanelRows * row_bytes_;
                const int64_t left = num_rows - p * kPanelRows;
                const int count = static_cast<int>(left < kPanelRows ? left : kPanelRows);
                const int64_t index = first_row / kPanelRows + p, in_group = index % kPanelGroup;
                uint8_t* panel = data + index * panel_bytes_;
                uint8_t* group = panel - in_group * panel_bytes_;
                const int64_t together = std::min(kPanelGroup, this->panels() - (index - in_group));
                if (layout.is_quantized())
                    fill_panel(type_, cols_, from, row_bytes_, count, panel);
                else if (type_ == Type::F32)
                    fill_float_panel<uint32_t>(cols_, 1, from, row_bytes_, count, in_group, together,
                                               group);
                else
                    fill_float_panel<uint16_t>(cols_, type_ == Type::BF16 ? 2 : 1, from, row_bytes_,
                                               count, in_group, together, group);
            }
        });
    });
}

void decode_row(Type type, const uint8_t* raw, int64_t cols, float* out) {
    const Layout& layout = layout_of(type);
    if (type == Type::F32) {
        std::memcpy(out, raw, static_cast<size_t>(cols) * 4);
        return;
    }
    if (!layout.is_quantized()) {
        for (int64_t k = 0; k < cols; ++k) {
            const uint16_t half = half_at(raw + 2 * k);
            const uint32_t bits = static_cast<uint32_t>(half) << 16;
            if (type == Type::F16)
                out[k] = half_to_float(half);
            else
                std::memcpy(out + k, &bits, 4);
        }
        return;
    }
    for (int64_t b = 0; b < cols / layout.values; ++b, raw += layout.bytes) {
        const float d = half_to_float(half_at(raw + (type == Type::Q6_K ? 208 : 0)));
        const float m = half_to_float(half_at(raw + 2));  // read by the types that have a minimum
        for (int s = 0; s < layout.values / kSubBlock; ++s, out += kSubBlock) {
            uint8_t codes[32], scale = 0, minimum = 0;
            read_codes(type, raw, s, codes);
            if (type == Type::Q4_K || type == Type::Q5_K) six_bits(raw + 4, s, &scale, &minimum);
            for (int i = 0; i < kSubBlock; ++i) {
                const float code = codes[i];
                switch (type) {
                    case Type::Q8_0: out[i] = d * (code - 128); break;
                    case Type::Q4_0: out[i] = d * (code - 8); break;
                    case Type::Q5_0: out[i] = d * (code - 16); break;
                    case Type::Q6_K:
                        out[i] = d * static_cast<float>(static_cast<int8_t>(raw[192 + 2 * s + i / 16])) *
                                 (code - 32);
                        break;
                    case Type::Q4_1:
                    case Type::Q5_1: out[i] = d * code + m; break;
                    default: out[i] = d * scale * code - m * minimum; break;  // Q4_K, Q5_K
                }
            }
        }
    }
}

}  // namespace anser

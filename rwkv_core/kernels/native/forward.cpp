#include "forward.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "matmul.h"
#include "pool.h"

namespace anser {
namespace {

// One pass. Every thread of the team calls `run`; each phase ends in a barrier, and what a phase
// computes is dealt out, so that its parts must not need each other.
class Pass {
  public:
    Pass(const ModelSizes& sizes, const Weights& weights, Scratch& scratch, const Batch& batch)
        : sizes_(sizes),
          weights_(weights),
          scratch_(scratch),
          batch_(batch),
          kernels_(kernels()),
          width_(sizes.n_embd),
          rows_(batch.num_rows) {
        for (int64_t s = 0; s < batch.num_segments; ++s)
            std::fill(segment_of_ + batch.starts[s], segment_of_ + batch.starts[s + 1], s);
    }

    void run(Team& team) {
        embed(team);
        for (int64_t i = 0; i < sizes_.n_layer; ++i) {
            const Layer& layer = weights_.layers[i];
            shift(team, layer.att.ln1, layer.att.lerps, kNumInputs, [&](int64_t segment) {
                return time_shift(segment, i);
            });
            project(team, layer.att, i == 0);
            heads(team, layer.att, i);
            add_output(team, layer.att);
            shift(team, layer.ffn.ln2, &layer.ffn.lerp, 1, [&](int64_t segment) {
                return channel_shift(segment, i);
            });
            expand(team, layer.ffn, i);
            add_contracted(team, layer.ffn, i);
        }
        if (batch_.num_wanted) finish(team);
    }

  private:
    float* time_shift(int64_t segment, int64_t layer) const {
        const SegmentState& state = batch_.states[segment];
        return state.time_shift + layer * state.time_shift_step;
    }
    float* channel_shift(int64_t segment, int64_t layer) const {
        const SegmentState& state = batch_.states[segment];
        return state.channel_shift + layer * state.channel_shift_step;
    }
    bool is_start(int64_t row) const { return batch_.starts[segment_of_[row]] == row; }
    bool is_end(int64_t row) const { return batch_.starts[segment_of_[row] + 1] == row + 1; }

    void normalize(const float* x, const Norm& norm, float* out) const {
        kernels_.layer_norm(x, norm.weight, norm.bias, width_, sizes_.layer_norm_eps, out);
    }

    // Parts of rows: of several, where there are many, so that fewer are done twice (see `shift`).
    int64_t rows_per_part(const Team& team) const {
        return std::max(int64_t{1}, rows_ / (4 * team.size()));
    }

    void embed(Team& team) {
        team.deal(rows_, rows_per_part(team), [&](int64_t first, int64_t last) {
            float* row = scratch_.threads[team.rank()].mixed;
            for (int64_t t = first; t < last; ++t) {
                const uint8_t* raw =
                    weights_.embedding + batch_.tokens[t] * weights_.embedding_row_bytes;
                decode_row(weights_.embedding_type, raw, width_, row);
                normalize(row, weights_.ln0, scratch_.x + t * width_);
            }
        });
    }

    // Rows of x after a layer norm, each mixed with the row before by every lerp, in the forms that
    // the matrices want: scratch.inputs. `previous(segment)` came before a segment's first row. The
    // last rows of the segments are left in scratch.last: others may still read what they replace.
    template <class Previous>
    void shift(Team& team, const Norm& norm, const Lerp* lerps, int64_t num_lerps,
               const Previous& previous) {
        const Scratch::Private& mine = scratch_.threads[team.rank()];
        int64_t held[2] = {-1, -1};  // the rows in mine.normed
        auto normed = [&](int64_t row) {
            float* h = mine.normed[row % 2];
            if (held[row % 2] != row) normalize(scratch_.x + row * width_, norm, h);
            held[row % 2] = row;
            return h;
        };
        // Few rows are cut across, by the blocks of all inputs; each thread takes the norm then.
        const int64_t blocks = num_lerps * (width_ / 32);
        const bool has_many = rows_ >= 4 * team.size();
        const int64_t cuts = has_many ? 1 : std::min<int64_t>(team.size(), blocks);
        team.deal(rows_ * cuts, has_many ? rows_per_part(team) : 1, [&](int64_t unit, int64_t end) {
            for (; unit < end; ++unit) {
                const int64_t row = unit / cuts, cut = unit % cuts, segment = segment_of_[row];
                const float* h = normed(row);
                const float* before = is_start(row) ? previous(segment) : normed(row - 1);
                if (cut == 0 && is_end(row))
                    std::memcpy(scratch_.last + segment * width_, h, width_ * sizeof(float));
                mix(h, before, row, lerps, cut * blocks / cuts, (cut + 1) * blocks / cuts, mine);
            }
        });
    }

    // Blocks [first, last) of a row's inputs, counted through all lerps.
    void mix(const float* h, const float* before, int64_t row, const Lerp* lerps, int64_t first,
             int64_t last, const Scratch::Private& mine) const {
        const int64_t blocks = width_ / 32;
        while (first < last) {
            const int64_t i = first / blocks, begin = first % blocks;
            const int64_t end = std::min(blocks, begin + last - first), channel = 32 * begin;
            const Activations& input = scratch_.inputs[i];
            float* mixed = lerps[i].wants_values ? input.values + row * width_ : mine.mixed;
            kernels_.mix(h + channel, before + channel, lerps[i].weight + channel,
                         32 * (end - begin), mixed + channel);
            if (lerps[i].wants_codes) input.quantize(mixed, begin, end, row, rows_);
            first += end - begin;
        }
    }

    // All that the inputs of the time mix are multiplied with.
    void project(Team& team, const TimeMix& att, bool is_first_layer) {
        float* const outs[] = {scratch_.r, scratch_.k,
                               is_first_layer ? scratch_.v_first : scratch_.v};
        team.deal(static_cast<int64_t>(att.parts.size()), 1, [&](int64_t index, int64_t) {
            const Part& part = att.parts[index];
            const Matrix& matrix = *att.projections[part.projection];
            const Rows inputs = scratch_.inputs[kInputOf[part.projection]].rows(rows_, width_);
            if (part.projection >= kNumLowRank) {
                float* out = outs[part.projection - kNumLowRank];
                kernels_.multiply_panels(matrix, inputs, part.first, part.last, out, width_);
                return;
            }
            const Activations& low = scratch_.low_rank[part.projection];
            kernels_.multiply_panels(matrix, inputs, part.first, part.last, low.values, low.stride);
            activate(att, part, low);
        });
    }

    // Brings a part of a low-rank product to what the second matrix of the pair reads.
    void activate(const TimeMix& att, const Part& part, const Activations& low) const {
        const bool wants_codes = layout_of(att.up[part.projection]->type()).is_quantized();
        for (int64_t t = 0; t < rows_; ++t) {
            float* row = low.values + t * low.stride;
            const int64_t count = 16 * (part.last - part.first);
            if (part.projection == kW) kernels_.tanh(row + 16 * part.first, count);
            if (part.projection == kG) kernels_.sigmoid(row + 16 * part.first, count);
            if (wants_codes) low.quantize(row, part.first / 2, part.last / 2, t, rows_);
        }
    }

    // The second products of the low-rank pairs, the recurrence, and all else that is done head by
    // head, up to what the output matrix reads.
    void heads(Team& team, const TimeMix& att, int64_t layer) {
        const int64_t unit = channels_of_unit(sizes_.head_size), units = width_ / unit;
        // With few rows the matrices' memory is what takes time: longer runs of it.
        const int64_t grain =
            rows_ > kFewRows ? 1 : std::max<int64_t>(1, (units + team.size() - 1) / team.size());
        team.deal(units, grain, [&](int64_t first, int64_t last) {
            heads_of(att, layer, unit * first, unit * last, scratch_.threads[team.rank()]);
        });
    }

    void heads_of(const TimeMix& att, int64_t layer, int64_t begin, int64_t end,
                  const Scratch::Private& mine) {
        const int64_t count = end - begin;
        for (int i = 0; i < kNumLowRank; ++i) {
            if (!att.up[i]) continue;
            const Rows low = scratch_.low_rank[i].rows(rows_, att.up[i]->cols());
            kernels_.multiply_panels(*att.up[i], low, begin / 16, end / 16,
                                     mine.low_rank[i] - begin, count);
        }
        for (int64_t channel = begin; channel < end; channel += sizes_.head_size)
            for (int64_t segment = 0; segment < batch_.num_segments; ++segment)
                kernels_.wkv_head(
                    head_task(att, layer, channel, channel - begin, count, segment, mine));
        const Activations& gated = scratch_.gated;
        if (layout_of(att.output->type()).is_quantized())
            for (int64_t t = 0; t < rows_; ++t)
                gated.quantize(gated.values + t * width_, begin / 32, end / 32, t, rows_);
        for (int64_t segment = 0; segment < batch_.num_segments; ++segment)
            std::memcpy(time_shift(segment, layer) + begin,
                        scratch_.last + segment * width_ + begin, count * sizeof(float));
    }

    // The low-rank sums have `stride` channels, of which the head's begin at `low_channel`.
    HeadTask head_task(const TimeMix& att, int64_t layer, int64_t channel, int64_t low_channel,
                       int64_t stride, int64_t segment, const Scratch::Private& mine) const {
        const int64_t start = batch_.starts[segment], at = start * width_ + channel;
        const int64_t low_at = start * stride + low_channel;
        const SegmentState& state = batch_.states[segment];
        const bool has_first = layer > 0;
        HeadTask task;
        task.size = sizes_.head_size;
        task.length = batch_.starts[segment + 1] - start;
        task.stride = width_;
        task.low_rank_stride = stride;
        task.r = scratch_.r + at;
        task.w = mine.low_rank[kW] + low_at;
        task.k = scratch_.k + at;
        task.v = (has_first ? scratch_.v : scratch_.v_first) + at;
        task.a = mine.low_rank[kA] + low_at;
        task.g = mine.low_rank[kG] + low_at;
        task.v_mix = has_first ? mine.low_rank[kV0] + low_at : nullptr;
        task.v_first = has_first ? scratch_.v_first + at : nullptr;
        task.w0 = att.w0 + channel;
        task.a0 = att.a0 + channel;
        task.v0 = has_first ? att.v0 + channel : nullptr;
        task.k_k = att.k_k + channel;
        task.k_a = att.k_a + channel;
        task.r_k = att.r_k + channel;
        task.norm_weight = att.ln_x.weight + channel;
        task.norm_bias = att.ln_x.bias + channel;
        task.norm_eps = sizes_.group_norm_eps;
        task.state = state.wkv + layer * state.wkv_step + channel * sizes_.head_size;
        task.out = scratch_.gated.values + at;
        return task;
    }

    // x += the product's channels [first, last)
    void add_product(int64_t first, int64_t last) const {
        for (int64_t t = 0; t < rows_; ++t)
            kernels_.add(scratch_.x + t * width_ + first, scratch_.product + t * width_ + first,
                         last - first);
    }

    void add_output(Team& team, const TimeMix& att) {
        const Rows gated = scratch_.gated.rows(rows_, width_);
        team.deal(att.output->panels(), panels_per_part(*att.output),
                  [&](int64_t first, int64_t last) {
                      kernels_.multiply_panels(*att.output, gated, first, last, scratch_.product,
                                               width_);
                      add_product(16 * first, 16 * last);
                  });
    }

    bool packs_hidden(const ChannelMix& ffn) const {
        return rows_ <= kFewRows && ffn.value->by_columns();
    }

    // The hidden channels of the channel mix, block by block.
    void expand(Team& team, const ChannelMix& ffn, int64_t layer) {
        const bool wants_codes = layout_of(ffn.value->type()).is_quantized();
        const bool is_packed = packs_hidden(ffn), is_split = ffn.value->type() == Type::Q6_K;
        const int64_t grain = std::clamp<int64_t>(panels_per_part(*ffn.key) / 2, 1,
                                                  Scratch::kHiddenBlocks);
        const Activations& hidden = scratch_.hidden;
        const Rows inputs = scratch_.inputs[0].rows(rows_, width_);
        team.deal(sizes_.n_ffn / 32, grain, [&](int64_t first, int64_t last) {
            Scratch::Private& mine = scratch_.threads[team.rank()];
            const int64_t count = 32 * (last - first);
            const int64_t stride = wants_codes ? count : hidden.stride;
            // Of the row's first hidden channel, though only those of the part may be there.
            float* values = wants_codes ? mine.hidden - 32 * first : hidden.values;
            kernels_.multiply_panels(*ffn.key, inputs, 2 * first, 2 * last, values, stride);
            for (int64_t t = 0; t < rows_; ++t) {
                float* row = values + t * stride;
                mine.zero_channels[layer] += kernels_.relu_squared(row + 32 * first, count);
                if (wants_codes) hidden.quantize(row, first, last, t, rows_);
            }
            for (int64_t b = first; is_packed && b < last; ++b)
                kernels_.pack_active(hidden.codes, b, rows_, is_split, scratch_.active,
                                     scratch_.packed);
        });
    }

    void add_contracted(Team& team, const ChannelMix& ffn, int64_t layer) {
        Rows hidden = scratch_.hidden.rows(rows_, sizes_.n_ffn);
        const Matrix& value = *ffn.value;
        const auto finish = [&](int64_t first, int64_t last) { finish_channels(layer, first, last); };
        if (packs_hidden(ffn)) {
            hidden.active = scratch_.active;
            hidden.packed = scratch_.packed;
            hidden.split_halves = value.type() == Type::Q6_K;
            multiply_active_columns(team, value, hidden, scratch_.partial, scratch_.product, width_,
                                    finish);
            return;
        }
        const int64_t unit = value.by_columns() ? kColumnGroup : kPanelRows;
        const int64_t grain = value.by_columns() ? 1 : panels_per_part(value);
        team.deal(width_ / unit, grain, [&](int64_t first, int64_t last) {
            if (value.by_columns())
                kernels_.multiply_columns(value, hidden, first, last, 0, value.slices(),
                                          scratch_.product, width_);
            else
                kernels_.multiply_panels(value, hidden, first, last, scratch_.product, width_);
            finish(unit * first, unit * last);
        });
    }

    // The product's channels [first, last) are there: what else the end of a layer does with them.
    void finish_channels(int64_t layer, int64_t first, int64_t last) const {
        add_product(first, last);
        for (int64_t segment = 0; segment < batch_.num_segments; ++segment)
            std::memcpy(channel_shift(segment, layer) + first,
                        scratch_.last + segment * width_ + first, (last - first) * sizeof(float));
    }

    // The wanted rows behind the last norm, and their logits.
    void finish(Team& team) {
        const int64_t count = batch_.num_wanted;
        const Activations& input = scratch_.inputs[0];
        const bool wants_codes = layout_of(weights_.head->type()).is_quantized();
        team.deal(count, 1, [&](int64_t i, int64_t) {
            float* row = input.values + i * width_;
            normalize(scratch_.x + batch_.wanted_rows[i] * width_, weights_.ln_out, row);
            if (wants_codes) input.quantize(row, 0, width_ / 32, i, count);
            if (batch_.hidden) std::memcpy(batch_.hidden + i * width_, row, width_ * sizeof(float));
        });
        if (!batch_.logits) return;
        const Matrix& head = *weights_.head;
        const Rows inputs = input.rows(count, width_);
        team.deal(head.panels(), panels_per_part(head), [&](int64_t first, int64_t last) {
            kernels_.multiply_panels(head, inputs, first, last, batch_.logits, sizes_.vocab_size);
        });
    }

    const ModelSizes& sizes_;
    const Weights& weights_;
    Scratch& scratch_;
    const Batch& batch_;
    const Kernels& kernels_;
    const int64_t width_, rows_;
    int64_t segment_of_[kMaxRows];
};

}  // namespace

void forward(const ModelSizes& sizes, const Weights& weights, Scratch& scratch, const Batch& batch,
             int64_t* zero_channels) {
    Pass pass(sizes, weights, scratch, batch);
    const int64_t num_rows = std::max(batch.num_rows, batch.num_wanted);
    for (bool is_done = false; !is_done;) {
        scratch.reserve(sizes, weights.largest_rank, num_rows, num_threads());
        for (Scratch::Private& each : scratch.threads)
            std::fill_n(each.zero_channels, sizes.n_layer, 0);
        run_on_all([&](Team& team) {
            // Somebody may have set more threads since: then all leave, and once again.
            if (team.size() > scratch.num_threads()) return;
            if (team.rank() == 0) is_done = true;
            pass.run(team);
        });
    }
    std::fill_n(zero_channels, sizes.n_layer, 0);
    for (const Scratch::Private& each : scratch.threads)
        for (int64_t i = 0; i < sizes.n_layer; ++i) zero_channels[i] += each.zero_channels[i];
}

}  // namespace anser

#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "arena.h"
#include "kernels.h"
#include "pool.h"

namespace anser {

double read_bandwidth(size_t num_bytes) {
    constexpr int kPasses = 7;
    constexpr size_t kPart = size_t{256} << 10;
    const int64_t parts = static_cast<int64_t>(std::max(num_bytes / kPart, size_t{1}));
    Arena arena(static_cast<size_t>(parts) * kPart);
    auto part = [&](int64_t index) { return arena.data() + static_cast<size_t>(index) * kPart; };
    run_on_all([&](Team& team) {  // memory that was never written is one shared page of zeros
        team.deal(parts, 1, [&](int64_t first, int64_t) { std::memset(part(first), 1, kPart); });
    });

    const auto sum = kernels().sum;
    std::atomic<float> kept{0};  // the sums are used, so that nothing is left out
    double best = 0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        run_on_all([&](Team& team) {
            float total = 0;
            team.deal(parts, 1, [&](int64_t first, int64_t) {
                total += sum(reinterpret_cast<const float*>(part(first)), kPart / sizeof(float));
            });
            kept.store(total, std::memory_order_relaxed);
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = std::max(best, static_cast<double>(arena.size()) / seconds.count());
    }
    return best;
}

}  // namespace anser

#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define ANSER_HAS_PTHREADS 1
#endif

namespace anser {
namespace {

constexpr int kMostThreads = 256;
// A phase takes microseconds. Where somebody waits for much longer there are more threads than cores,
// and the one that is waited for may need this core; where that is known, it is so from the start.
constexpr int kSpinsBeforeYield = 4000, kSpinsOfTooMany = 20;
// Between the passes of a decode lie some tenths of a millisecond of Python. Workers that sleep then wake
// late, and where no core is idle, on the core of the thread that waits for them. So they stay awake
// for a while, but let anybody else have the core who wants it, PyTorch's threads among them.
constexpr std::chrono::microseconds kSpinBetweenJobs{50};
constexpr std::chrono::microseconds kYieldBetweenJobs{2000};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

}  // namespace

// What the threads of a team share; every field that many write has a cache line of its own.
struct TeamState {
    int size = 1;
    int spins = 0;  // of who waits, before it yields
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> phase{0};  // how many barriers are behind the team
    // How many parts of a thread's run were taken: in the lower half from its front, by itself, in the
    // upper half from its end, by others. Attempts that came too late are counted with them.
    struct alignas(64) Taken {
        std::atomic<uint64_t> count{0};
    };
    // Of the deal that runs, and of the one before it or after it; by rank.
    Taken taken[2][kMostThreads];
};

int Team::size() const { return state_.size; }

void Team::barrier() {
    const uint32_t phase = state_.phase.load(std::memory_order_relaxed);
    if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == state_.size) {
        state_.arrived.store(0, std::memory_order_relaxed);
        state_.phase.store(phase + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; state_.phase.load(std::memory_order_acquire) == phase;) {
        if (spins < state_.spins) {
            ++spins;
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

int64_t Team::take(int64_t parts) {
    constexpr uint64_t kFromFront = 1, kFromEnd = uint64_t{1} << 32;
    const int64_t size = state_.size;
    for (; num_empty_ < size; ++num_empty_) {
        const int64_t owner = (rank_ + num_empty_) % size;
        const int64_t begin = parts * owner / size, end = parts * (owner + 1) / size;
        const bool is_own = num_empty_ == 0;
        const uint64_t before = state_.taken[deal_ % 2][owner].count.fetch_add(
            is_own ? kFromFront : kFromEnd, std::memory_order_relaxed);
        const int64_t from_front = before & 0xFFFFFFFF, from_end = before >> 32;
        if (from_front + from_end < end - begin)
            return is_own ? begin + from_front : end - 1 - from_end;
    }
    return -1;
}

void Team::finish_deal() {
    // The other counts are those of the deal before, which all have left, and of the one after, which
    // none enters before the barrier.
    ++deal_;
    num_empty_ = 0;
    state_.taken[deal_ % 2][rank_].count.store(0, std::memory_order_relaxed);
    barrier();
}

class Pool {
  public:
    void run(void (*job)(Team&, void*), void* argument) {
        const int count = num_threads();
        const std::lock_guard<std::mutex> guard(jobs_);
        if (count != requested_) resize(count);
        job_ = job;
        argument_ = argument;
        for (auto& each : state_.taken[0]) each.count.store(0, std::memory_order_relaxed);
        if (!workers_.empty()) start_workers();
        take_part(0);
    }

  private:
    void take_part(int rank) {
        Team team(rank, state_);
        job_(team, argument_);
        team.barrier();
    }

    // Sequentially consistent, like what sleepers do: either a worker that goes to sleep sees the new
    // epoch, or it is seen here as a sleeper.
    void start_workers() {
        epoch_.fetch_add(1);
        if (!sleepers_.load()) return;
        { const std::lock_guard<std::mutex> guard(sleep_); }
        wake_.notify_all();
    }

    void work(int rank, uint32_t epoch) {
        for (;;) {
            await_job(epoch);
            ++epoch;
            if (is_stopping_) return;
            take_part(rank);
        }
    }

    void await_job(uint32_t epoch) {
        const auto start = std::chrono::steady_clock::now();
        for (auto waited = start - start; waited < kYieldBetweenJobs;
             waited = std::chrono::steady_clock::now() - start) {
            for (int spins = 0; spins < 64; ++spins) {
                if (epoch_.load(std::memory_order_acquire) != epoch) return;
                pause();
            }
            if (waited > kSpinBetweenJobs) std::this_thread::yield();
        }
        std::unique_lock<std::mutex> guard(sleep_);
        sleepers_.fetch_add(1);
        wake_.wait(guard, [&] { return epoch_.load() != epoch; });
        sleepers_.fetch_sub(1);
    }

    void resize(int count) {
        if (!workers_.empty()) {
            is_stopping_ = true;
            start_workers();
            for (std::thread& worker : workers_) worker.join();
            workers_.clear();
            is_stopping_ = false;
        }
        requested_ = count;
#if defined(ANSER_HAS_PTHREADS)
        // Signals are for the program's own threads: Python's wait for them.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
        const uint32_t epoch = epoch_.load();
        try {
            for (int rank = 1; rank < count; ++rank)
                workers_.emplace_back([this, rank, epoch] { work(rank, epoch); });
        } catch (const std::system_error&) {  // a limit on threads: fewer do it too
        }
#if defined(ANSER_HAS_PTHREADS)
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
        state_.size = 1 + static_cast<int>(workers_.size());
        state_.spins = state_.size > usable_cores() ? kSpinsOfTooMany : kSpinsBeforeYield;
    }

    std::mutex jobs_;  // held by who runs a job
    int requested_ = 1;
    std::vector<std::thread> workers_;
    void (*job_)(Team&, void*) = nullptr;
    void* argument_ = nullptr;
    bool is_stopping_ = false;
    TeamState state_;

    alignas(64) std::atomic<uint32_t> epoch_{0};  // how many times the workers were started
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
};

namespace {

int default_threads() {
    const char* text = std::getenv("ANSER_THREADS");
    if (!text || !*text) return std::min(usable_cores(), kMostThreads);
    char* end;
    const long count = std::strtol(text, &end, 10);
    if (*end || count < 1 || count > kMostThreads)
        throw std::invalid_argument("ANSER_THREADS=" + std::string(text) +
                                    " is no number from 1 to " + std::to_string(kMostThreads));
    return static_cast<int>(count);
}

std::atomic<int> wanted_threads{0};  // 0: not known yet

// Never destroyed: workers may still wait in it while the process ends.
std::atomic<Pool*> the_pool{nullptr};

// The child of a fork has none of the threads, and whatever was locked stays so: it gets a new pool.
void forget_pool() { the_pool.store(nullptr); }

Pool& pool() {
    Pool* found = the_pool.load(std::memory_order_acquire);
    if (found) return *found;
    Pool* fresh = new Pool;
    if (!the_pool.compare_exchange_strong(found, fresh)) {
        delete fresh;
        return *found;
    }
#if defined(ANSER_HAS_PTHREADS)
    static std::atomic_flag is_registered = ATOMIC_FLAG_INIT;
    if (!is_registered.test_and_set()) pthread_atfork(nullptr, nullptr, forget_pool);
#endif
    return *fresh;
}

}  // namespace

void run_on_all(void (*job)(Team&, void*), void* argument) { pool().run(job, argument); }

int num_threads() {
    if (!wanted_threads) wanted_threads = default_threads();
    return wanted_threads;
}

void set_num_threads(int count) {
    if (count < 1 || count > kMostThreads)
        throw std::invalid_argument("the number of threads is from 1 to " +
                                    std::to_string(kMostThreads) + ", not " + std::to_string(count));
    wanted_threads = count;
}

}  // namespace anser

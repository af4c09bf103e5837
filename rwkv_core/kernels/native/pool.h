// The kernels' own threads. They sleep between passes and spin inside one, where phases are short.
#pragma once
#include <cstdint>
#include <type_traits>

namespace anser {

// The view that one thread of a running job has of the team.
class Team {
  public:
    int rank() const { return rank_; }  // the caller's thread is 0
    int size() const;

    // All threads wait here for each other; memory written before is visible after.
    void barrier();

    // Calls body(first, last) for parts of [0, count) of at most `grain`, and waits until all are
    // done (a barrier). Every thread has a run of consecutive parts, which it does in their order, so
    // that what it reads is one stream; who has finished takes parts from the ends of others' runs.
    // All threads must call it, in the same order.
    template <class Body>
    void deal(int64_t count, int64_t grain, Body&& body) {
        const int64_t parts = (count + grain - 1) / grain;
        for (int64_t part = take(parts); part >= 0; part = take(parts)) {
            const int64_t first = part * grain;
            body(first, first + grain < count ? first + grain : count);
        }
        finish_deal();
    }

  private:
    friend class Pool;
    Team(int rank, struct TeamState& state) : rank_(rank), state_(state) {}
    // The number of a part of the current deal that nobody does yet; -1 if there is none left.
    int64_t take(int64_t parts);
    void finish_deal();

    int rank_;
    struct TeamState& state_;
    uint32_t deal_ = 0;  // how many deals this thread has finished
    int64_t num_empty_ = 0;  // of the runs of the current deal, from its own on, known to be taken
};

// Runs job(team) on all threads at once, the caller's among them, and returns when all are done.
// One job at a time: callers wait for each other. The job must not throw.
void run_on_all(void (*job)(Team&, void*), void* argument);

template <class Job>
void run_on_all(Job&& job) {
    using Callable = std::remove_reference_t<Job>;
    run_on_all([](Team& team, void* argument) { (*static_cast<Callable*>(argument))(team); },
               const_cast<std::remove_const_t<Callable>*>(&job));
}

// As set, or by ANSER_THREADS, or else one for each usable core. Throws std::invalid_argument if the
// variable holds no number from 1 to 256.
int num_threads();
// Takes effect with the next job. Throws std::invalid_argument outside 1 to 256.
void set_num_threads(int count);

}  // namespace anser

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
    // done (a barrier). The first part of a thread is the one of its rank, so that what it needs for
    // it can be known before; all others are dealt out to whoever is free. All threads must call it,
    // in the same order.
    template <class Body>
    void deal(int64_t count, int64_t grain, Body&& body) {
        for (int64_t first = rank_ * grain; first < count; first = take() * grain)
            body(first, first + grain < count ? first + grain : count);
        finish_deal();
    }

  private:
    friend class Pool;
    Team(int rank, struct TeamState& state) : rank_(rank), state_(state) {}
    int64_t take();  // the number of the next part of the current deal
    void finish_deal();

    int rank_;
    struct TeamState& state_;
    uint32_t deal_ = 0;  // how many deals this thread has finished
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

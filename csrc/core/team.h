// The threads of one step, and the phases that all of them pass in the same order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/thread_pool.h"

namespace glimmer {

class Team {
 public:
  Team(ThreadPool& pool, int max_counted_phases)
      : pool_(pool), members_(pool.num_threads()), counters_(max_counted_phases) {}

  // Before the threads start.
  void reset() {
    for (std::atomic<int>& c : counters_) c.store(0, std::memory_order_relaxed);
    for (Member& m : members_) m.next_counter = 0;
  }

  int size() const { return static_cast<int>(members_.size()); }
  void barrier(int thread) { pool_.barrier(thread); }

  // The work already taken in a thread's next counted phase. Every thread asks once per phase.
  std::atomic<int>& counter(int thread) { return counters_[members_[thread].next_counter++]; }

  // The rows of `count` that fall to a thread when all take equal shares.
  std::pair<int, int> share(int thread, int count) const {
    const int64_t n = size(), rows = count;
    return {static_cast<int>(rows * thread / n), static_cast<int>(rows * (thread + 1) / n)};
  }

 private:
  struct alignas(64) Member {  // on cache lines of their own: each thread writes to its own
    int next_counter = 0;
  };

  ThreadPool& pool_;
  std::vector<Member> members_;
  std::vector<std::atomic<int>> counters_;
};

}  // namespace glimmer

// A fixed team of threads that run one task together; the caller is thread 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace glimmer {

class ThreadPool {
 public:
  // `cpus`, where given, are those on which the threads stay: the number i on cpus[i]. The caller,
  // number 0, goes where it likes: it belongs to the program.
  explicit ThreadPool(int num_threads, const std::vector<int>& cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs task(thread) on every thread and returns when all are done. The task must not throw.
  // Calls from several threads take turns.
  void run(const std::function<void(int)>& task);

  // Inside a task: waits until every thread of the team has come here.
  void barrier(int thread);

 private:
  void work(int thread);

  const int num_threads_;
  std::mutex running_;
  const std::function<void(int)>* task_ = nullptr;
  bool stopping_ = false;
  // Each on its own cache line: all threads hammer them. Threads arrive at a barrier in groups, and
  // the last of each group at that of the groups: a line that every core of a large machine adds to
  // would be handed around one by one.
  static constexpr int kGroupThreads = 8;
  struct alignas(64) Arrivals {
    std::atomic<int> count{0};
  };
  // Whether this was the last of `all`; then it starts anew.
  static bool arrive(Arrivals& arrivals, int all);

  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  Arrivals groups_arrived_;
  std::vector<Arrivals> arrived_;  // of each group
  std::vector<std::thread> threads_;
};

// Denormal products halve the speed of a matrix product; flushed to zero while one of these lives.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

}  // namespace glimmer

#include "core/thread_pool.h"

#include <algorithm>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace glimmer {
namespace {

// Long enough to bridge the serial part of a step, short enough not to burn an idle machine.
constexpr int kSpinsBeforeSleep = 20000;
// A team larger than the free cores would otherwise spin against the thread it waits for.
constexpr int kSpinsBeforeYield = 2000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A wish: where the system refuses, the thread runs anywhere.
void pin(std::thread& thread, int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
#else
  (void)thread, (void)cpu;
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, const std::vector<int>& cpus)
    : num_threads_(num_threads), arrived_((num_threads + kGroupThreads - 1) / kGroupThreads) {
  for (int i = 1; i < num_threads_; ++i) {
    threads_.emplace_back([this, i] { work(i); });
    if (i < static_cast<int>(cpus.size())) pin(threads_.back(), cpus[i]);
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::run(const std::function<void(int)>& task) {
  const std::lock_guard<std::mutex> turn(running_);
  const FlushDenormals flush;
  task_ = &task;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  task(0);
  barrier(0);
}

void ThreadPool::work(int thread) {
  const FlushDenormals flush;
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      if (spins < kSpinsBeforeSleep) {
        pause();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (stopping_) return;
    (*task_)(thread);
    barrier(thread);
  }
}

bool ThreadPool::arrive(Arrivals& arrivals, int all) {
  if (arrivals.count.fetch_add(1, std::memory_order_acq_rel) + 1 < all) return false;
  arrivals.count.store(0, std::memory_order_relaxed);
  return true;
}

void ThreadPool::barrier(int thread) {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  const int group = thread / kGroupThreads, num_groups = static_cast<int>(arrived_.size());
  const int members = std::min(kGroupThreads, num_threads_ - group * kGroupThreads);
  if (arrive(arrived_[group], members) &&
      (num_groups == 1 || arrive(groups_arrived_, num_groups))) {
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

FlushDenormals::FlushDenormals() : saved_(0) {
#if defined(__x86_64__)
  saved_ = _mm_getcsr();
  _mm_setcsr(saved_ | 0x8040);  // flush results and operands
#endif
}

FlushDenormals::~FlushDenormals() {
#if defined(__x86_64__)
  _mm_setcsr(saved_);
#endif
}

}  // namespace glimmer

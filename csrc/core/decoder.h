// Runs an Architecture: one call is one step of a whole batch, forward pass and sampling.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>

#include "core/architecture.h"
#include "core/kv_cache.h"
#include "core/step.h"
#include "core/thread_pool.h"
#include "core/weights.h"
#include "isa/isa.h"

namespace glimmer {

class Decoder {
 public:
  // Throws Error: a choice that is not built, an unknown instruction set.
  // `cpus` is as for ThreadPool.
  Decoder(const Architecture& architecture, int num_threads, std::string_view isa, Form int4_inputs,
          const std::vector<int>& cpus = {});
  ~Decoder();

  const Architecture& architecture() const { return architecture_; }
  const InstructionSet& isa() const { return isa_; }
  ThreadPool& pool() { return pool_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

  // Throws Error(kInvalidParameter) before anything is touched: ids, lengths or tables out of
  // range.
  void step(KVCache& cache, const StepInput& input, const StepOutput& output);

 private:
  struct Step;

  const Architecture architecture_;
  const InstructionSet& isa_;
  ThreadPool pool_;
  Weights weights_;
  std::mutex stepping_;
  std::unique_ptr<Step> step_;  // buffers, kept from step to step
};

}  // namespace glimmer

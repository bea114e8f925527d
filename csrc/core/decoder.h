// Runs an Architecture: one call is one step of a whole batch, forward pass and sampling.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/architecture.h"
#include "core/kv_cache.h"
#include "core/sampler.h"
#include "core/thread_pool.h"
#include "core/weights.h"
#include "isa/isa.h"

namespace glimmer {

// A flat batch: the new tokens of all sequences, one sequence after the other. Arrays are the
// caller's.
struct StepInput {
  int num_tokens = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]
  const int32_t* positions = nullptr;  // [num_tokens], for the rotary embedding
  int num_sequences = 0;
  const int32_t* query_lengths = nullptr;  // [num_sequences] new tokens of each
  const int32_t* kv_lengths = nullptr;     // [num_sequences] tokens in the cache after this step
  int max_blocks = 0;
  const int32_t* block_tables = nullptr;  // [num_sequences][max_blocks]
  int num_logit_rows = 0;
  const int32_t* logit_rows = nullptr;    // [num_logit_rows] indices of tokens
  const RowSampling* sampling = nullptr;  // [num_logit_rows], or null: no token is chosen
  int num_logprobs = -1;                  // of every row; -1 for none at all
};

struct StepOutput {
  float* logits = nullptr;        // [num_logit_rows][vocab_size], or null
  int32_t* token_ids = nullptr;   // [num_logit_rows]; -1 where the logits were not finite
  float* logprobs = nullptr;      // [num_logit_rows]
  int32_t* top_ids = nullptr;     // [num_logit_rows][num_logprobs]
  float* top_logprobs = nullptr;  // [num_logit_rows][num_logprobs]
};

class Decoder {
 public:
  // Throws Error: a choice that is not built, an unknown instruction set.
  Decoder(const Architecture& architecture, int num_threads, std::string_view isa,
          Form int4_inputs);
  ~Decoder();

  const Architecture& architecture() const { return architecture_; }
  const InstructionSet& isa() const { return isa_; }
  ThreadPool& pool() { return pool_; }
  Weights& weights() { return weights_; }

  // Throws Error(kInvalidParameter) before anything is touched: ids, lengths or tables out of
  // range.
  void step(KVCache& cache, const StepInput& input, const StepOutput& output);

 private:
  struct Step;

  const Architecture architecture_;
  const InstructionSet& isa_;
  ThreadPool pool_;
  Weights weights_;
  std::vector<float> inverse_frequencies_;  // [rope_dims / 2]
  std::mutex stepping_;
  std::unique_ptr<Step> step_;  // buffers, kept from step to step
};

}  // namespace glimmer

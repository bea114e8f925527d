// What goes into one step and what comes out of it.
#pragma once

#include <cstdint>

#include "core/architecture.h"
#include "core/kv_cache.h"
#include "core/lora.h"
#include "core/sampler.h"

namespace glimmer {

// A flat batch: the new tokens of all sequences, one sequence after the other. Arrays are the
// caller's.
struct StepInput {
  int num_tokens = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]
  const int32_t* positions = nullptr;  // [num_tokens], for the rotary embedding
  // [num_tokens] for 2d positions, otherwise null
  const int32_t* block_positions = nullptr;
  int num_sequences = 0;
  const int32_t* query_lengths = nullptr;  // [num_sequences] new tokens of each
  const int32_t* kv_lengths = nullptr;     // [num_sequences] tokens in the cache after this step
  // [num_sequences] leading tokens that all tokens of a sequence see; null where the mask is causal
  const int32_t* context_lengths = nullptr;
  int max_blocks = 0;
  const int32_t* block_tables = nullptr;  // [num_sequences][max_blocks]
  // [num_sequences] what an adapter adds to the weights for each; entries, or all, may be null
  const Lora* const* loras = nullptr;
  // [num_sequences] the trained prefix before each; likewise. Not for a network that has its own
  const KVPrefix* const* prefixes = nullptr;
  int num_logit_rows = 0;
  const int32_t* logit_rows = nullptr;    // [num_logit_rows] indices of tokens
  const RowSampling* sampling = nullptr;  // [num_logit_rows], or null: no token is chosen
  int num_logprobs = -1;                  // of every row; -1 for none at all
};

struct StepOutput {
  float* logits = nullptr;        // [num_logit_rows][vocab_size], or null
  float* hidden = nullptr;        // [num_layers + 1][num_logit_rows][hidden_size], or null: the
                                  // embedding and what leaves each layer, before the final norm
  int32_t* token_ids = nullptr;   // [num_logit_rows]; -1 where the logits were not finite
  float* logprobs = nullptr;      // [num_logit_rows]
  int32_t* top_ids = nullptr;     // [num_logit_rows][num_logprobs]
  float* top_logprobs = nullptr;  // [num_logit_rows][num_logprobs]
};

// Throws Error(kInvalidParameter), naming the entry: an id, length, position or block out of range,
// an array that the network needs or has no use for, a context that comes in pieces, or a cache
// or an adapter that was made for another network.
void check_step(const Architecture& architecture, const KVCache& cache, const StepInput& input);

}  // namespace glimmer

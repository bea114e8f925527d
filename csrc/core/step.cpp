#include "core/step.h"

#include <string>

#include "core/error.h"
#include "kernels/kernels.h"

namespace glimmer {
namespace {

Error invalid(const std::string& message) { return Error(ErrorKind::kInvalidParameter, message); }

std::string at(const char* array, int index) {
  return std::string(array) + "[" + std::to_string(index) + "]";
}

void check_id(const Architecture& a, int32_t id, const char* array, int index) {
  if (id >= 0 && id < a.vocab_size) return;
  throw invalid(at(array, index) + " is " + std::to_string(id) + ", but token ids run from 0 to " +
                std::to_string(a.vocab_size - 1) + ".");
}

void check_given(const char* array, const void* given, bool needed, const char* choice) {
  if ((given != nullptr) == needed) return;
  throw invalid(std::string(array) + (needed ? " must" : " cannot") + " be given: the network's " +
                choice + ".");
}

// All tokens of a context see each other, so that it must be computed in one go.
void check_context(const StepInput& in, int s) {
  const int context = in.context_lengths[s], keys = in.kv_lengths[s];
  if (context < 0) {
    throw invalid(at("context_lengths", s) + " is " + std::to_string(context) +
                  ", but lengths count from 0.");
  }
  const int first = keys - in.query_lengths[s];
  if (first < context && keys < context) {
    throw invalid(at("context_lengths", s) + " is " + std::to_string(context) +
                  ", but this step computes the sequence's tokens " + std::to_string(first) +
                  " to " + std::to_string(keys - 1) +
                  " only. Tokens of a context see all of it: it must be computed in one step.");
  }
}

// What adapters bring, for a sequence.
void check_adapters(const Architecture& a, const KVCache& cache, const StepInput& in, int s) {
  if (in.loras && in.loras[s] && !in.loras[s]->fits(a)) {
    throw invalid(at("loras", s) + " was made for a network of other sizes.");
  }
  const KVPrefix* const prefix = in.prefixes ? in.prefixes[s] : nullptr;
  if (!prefix) return;
  if (cache.prefix()) {
    throw invalid(at("prefixes", s) + " is given, but the network has a trained prefix already.");
  }
  if (!prefix->fits(a) || prefix->dtype() != cache.dtype()) {
    throw invalid(at("prefixes", s) +
                  " was made for a network of other sizes, or for a KV cache of another type.");
  }
}

void check_position(const char* array, const int32_t* positions, int index) {
  if (positions[index] >= 0) return;
  throw invalid(at(array, index) + " is " + std::to_string(positions[index]) +
                ", but positions count from 0.");
}

}  // namespace

void check_step(const Architecture& a, const KVCache& cache, const StepInput& in) {
  if (!cache.fits(a)) throw invalid("The KV cache was made for a network of other sizes.");
  const bool two_positions = a.rope_positions == RopePositions::k2d;
  check_given("block_positions", in.block_positions, two_positions,
              two_positions ? "positions are 2d" : "positions are 1d");
  const bool contexts = a.mask == Mask::kPrefix;
  check_given("context_lengths", in.context_lengths, contexts,
              contexts ? "mask shows the context of a sequence to all of it" : "mask is causal");
  int first_token = 0;
  for (int s = 0; s < in.num_sequences; ++s) {
    const int query = in.query_lengths[s], keys = in.kv_lengths[s];
    if (query < 1 || query > in.num_tokens - first_token) {
      throw invalid(at("query_lengths", s) + " is " + std::to_string(query) +
                    ", but it must be at least 1 and all of them must add up to the " +
                    std::to_string(in.num_tokens) + " tokens given.");
    }
    const int64_t room = static_cast<int64_t>(in.max_blocks) * kPageTokens;
    if (keys < query || keys > room) {
      throw invalid(at("kv_lengths", s) + " is " + std::to_string(keys) +
                    ", but it must lie between the sequence's " + std::to_string(query) +
                    " new tokens and the " + std::to_string(room) + " that its blocks hold.");
    }
    if (in.context_lengths) check_context(in, s);
    check_adapters(a, cache, in, s);
    for (int b = 0; b * kPageTokens < keys; ++b) {
      const int block = in.block_tables[static_cast<size_t>(s) * in.max_blocks + b];
      if (block < 0 || block >= cache.num_blocks()) {
        throw invalid("block_tables[" + std::to_string(s) + ", " + std::to_string(b) + "] is " +
                      std::to_string(block) + ", but the cache has blocks 0 to " +
                      std::to_string(cache.num_blocks() - 1) + ".");
      }
    }
    first_token += query;
  }
  if (first_token != in.num_tokens) {
    throw invalid("query_lengths add up to " + std::to_string(first_token) + ", but " +
                  std::to_string(in.num_tokens) + " tokens were given.");
  }
  for (int t = 0; t < in.num_tokens; ++t) {
    check_id(a, in.token_ids[t], "token_ids", t);
    check_position("positions", in.positions, t);
    if (in.block_positions) check_position("block_positions", in.block_positions, t);
  }
  for (int i = 0; i < in.num_logit_rows; ++i) {
    const int row = in.logit_rows[i], before = i ? in.logit_rows[i - 1] : -1;
    if (row <= before || row >= in.num_tokens) {
      throw invalid(at("logit_rows", i) + " is " + std::to_string(row) +
                    ", but rows must ascend and stay below the " + std::to_string(in.num_tokens) +
                    " tokens given.");
    }
    if (!in.sampling) continue;
    for (const int32_t id : in.sampling[i].history) check_id(a, id, "history", i);
    for (const int32_t id : in.sampling[i].bias_ids) check_id(a, id, "bias_ids", i);
  }
  if (in.num_logprobs > a.vocab_size) {
    throw invalid("num_logprobs is " + std::to_string(in.num_logprobs) +
                  ", but the vocabulary has " + std::to_string(a.vocab_size) + " tokens.");
  }
}

}  // namespace glimmer

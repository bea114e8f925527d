// Chooses a token from a row of logits. The order of operations is that of SamplingParams: the
// tokens that are allowed, logit bias, penalties, temperature, min_p, top_k, top_p, draw.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace glimmer {

struct Kernels;

struct RowSampling {
  float temperature = 0;  // 0 is greedy
  int top_k = 0;          // 0 keeps all
  float top_p = 1;
  float min_p = 0;
  uint64_t seed = 0;
  int64_t position = 0;  // of the token to be drawn, in its sequence
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  // Prompt and answer so far; read only where a penalty is set.
  std::span<const int32_t> history = {};
  int prompt_length = 0;
  std::span<const int32_t> bias_ids = {};
  std::span<const float> bias_values = {};
  // A bit per token, the lowest first: those that may be chosen. Null: all.
  const uint32_t* allowed = nullptr;
};

struct RowResult {
  int32_t token = -1;  // -1: the logits hold NaN or +infinity, or nothing is left to choose from
  float logprob = 0;   // natural logarithm, of the raw logits; 0 where not asked for
  int32_t* top_ids = nullptr;  // [num_logprobs], likeliest first
  float* top_logprobs = nullptr;
};

// Uniform in [0, 1) from Philox4x32-10 (Salmon et al., 2011): a function of seed and position
// alone.
double uniform(uint64_t seed, int64_t position);

class Sampler {
 public:
  Sampler(const Kernels& kernels, int vocab_size);

  // Whether `reserve` must come before this row: for all but the plain likeliest token. Rows that
  // want log probabilities need it too.
  static bool needs_room(const RowSampling& row);
  void reserve();

  // `logits` [vocab_size] is overwritten. With num_logprobs < 0 no log probability is computed.
  void sample(const RowSampling& row, float* logits, int num_logprobs, RowResult& result);

 private:
  void log_probabilities(const float* logits, int num_logprobs, RowResult& result);
  void rule_out(const uint32_t* allowed, float* logits) const;
  void penalise(const RowSampling& row, float* logits);
  int32_t draw(const RowSampling& row, const float* logits);

  const Kernels& kernels_;
  const int vocab_size_;
  std::vector<float> probabilities_;
  std::vector<float> logprobs_;
  std::vector<int32_t> counts_;  // all zero between calls
  std::vector<int32_t> ids_;
};

}  // namespace glimmer

// Rotary position embedding: the sines and cosines of a step's tokens, and their use.
#pragma once

#include <cstdint>
#include <vector>

#include "core/architecture.h"

namespace glimmer {

class Rotary {
 public:
  explicit Rotary(const Architecture& architecture);

  void reserve(int num_tokens);
  // Sets where a token stands; block_position matters to 2d positions alone. Threads may place
  // different tokens at once.
  void place(int token, int32_t position, int32_t block_position);
  // Turns a head [head_dim] of a token that was placed.
  void rotate(float* head, int token) const;

 private:
  void turn(float* channels, const float* cosine, const float* sine) const;
  size_t first_of(int token) const { return static_cast<size_t>(token) * parts_ * pairs_; }

  const bool interleaved_;
  const int parts_;  // halves of a head that turn by a position of their own, or 1
  const int part_channels_;
  const int pairs_;  // of channels that turn in each part
  const float linear_scale_;
  std::vector<float> inverse_frequencies_;  // [pairs]
  std::vector<float> cosines_, sines_;      // [tokens][parts][pairs]
};

}  // namespace glimmer

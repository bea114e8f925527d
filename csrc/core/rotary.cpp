#include "core/rotary.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"

namespace glimmer {

Rotary::Rotary(const Architecture& a)
    : interleaved_(a.rope_pairing == RopePairing::kInterleaved),
      parts_(a.rope_positions == RopePositions::k2d ? 2 : 1),
      part_channels_(a.head_dim / parts_),
      pairs_(a.rope_dims / 2),
      linear_scale_(static_cast<float>(a.rope_linear_scale)) {
  for (int i = 0; i < a.rope_dims; i += 2) {
    const auto exact =
        static_cast<float>(1.0 / std::pow(a.rope_base, static_cast<double>(i) / a.rope_dims));
    inverse_frequencies_.push_back(a.rope_half_frequencies ? half_to_float(float_to_half(exact))
                                                           : exact);
  }
}

void Rotary::reserve(int num_tokens) {
  const size_t n = std::max(cosines_.size(), first_of(num_tokens));
  cosines_.resize(n);
  sines_.resize(n);
}

void Rotary::place(int token, int32_t position, int32_t block_position) {
  const int32_t positions[] = {position, block_position};
  for (int part = 0; part < parts_; ++part) {
    // As the official code does: the angle in float32, its sine and cosine exact.
    const float scaled = static_cast<float>(positions[part]) / linear_scale_;
    const size_t first = first_of(token) + static_cast<size_t>(part) * pairs_;
    for (int j = 0; j < pairs_; ++j) {
      const double angle = scaled * inverse_frequencies_[j];
      cosines_[first + j] = static_cast<float>(std::cos(angle));
      sines_[first + j] = static_cast<float>(std::sin(angle));
    }
  }
}

void Rotary::rotate(float* head, int token) const {
  for (int part = 0; part < parts_; ++part) {
    const size_t first = first_of(token) + static_cast<size_t>(part) * pairs_;
    turn(head + part * part_channels_, cosines_.data() + first, sines_.data() + first);
  }
}

void Rotary::turn(float* v, const float* cosine, const float* sine) const {
  for (int j = 0; j < pairs_; ++j) {
    float& first = v[interleaved_ ? 2 * j : j];
    float& second = v[interleaved_ ? 2 * j + 1 : j + pairs_];
    const float rotated = first * cosine[j] - second * sine[j];
    second = second * cosine[j] + first * sine[j];
    first = rotated;
  }
}

}  // namespace glimmer

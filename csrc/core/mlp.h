// The two products of an MLP: into its inner channels, and out of what becomes of them.
#pragma once

#include <cstddef>
#include <span>

#include "core/products.h"

namespace glimmer {

// Columns of the first product of an MLP of so many inner channels: gate and up side by side, or up
// alone.
inline int inner_columns(Mlp kind, int width) { return kind == Mlp::kSwiGlu ? 2 * width : width; }

class MlpParts {
 public:
  MlpParts(Mlp kind, const MlpWeights& mlp, int width)
      : gated_(kind == Mlp::kSwiGlu),
        inner_{{&mlp.gate, 0}, {&mlp.up, gated_ ? width : 0}},
        down_{&mlp.down, 0} {}

  std::span<const Part> inner() const { return std::span(inner_).subspan(gated_ ? 0 : 1); }
  std::span<const Part> down() const { return {&down_, 1}; }

 private:
  bool gated_;
  Part inner_[2];
  Part down_;
};

// The inputs of the second product, [width], from a row of the first, [inner_columns].
inline void activate(const Kernels& kernels, Mlp kind, const float* inner, int width, float* out) {
  if (kind == Mlp::kSwiGlu) {
    kernels.swiglu(inner, inner + width, width, out);
  } else {
    kernels.gelu_tanh(inner, width, out);
  }
}

}  // namespace glimmer

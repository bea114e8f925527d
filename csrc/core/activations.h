// The inputs of a matrix product, packed in the forms that its weights are multiplied with.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "kernels/kernels.h"

namespace glimmer {

inline constexpr Form kForms[kNumForms] = {Form::kFloat, Form::kInt8, Form::kInt16};

class Activations {
 public:
  void reserve(unsigned forms, int num_tokens, int max_k) {
    for (const Form form : kForms) {
      if (!(forms & bit(form))) continue;
      std::vector<uint8_t>& buffer = buffers_.at(index(form));
      buffer.resize(std::max(buffer.size(), num_tokens * token_bytes(form, max_k)));
    }
  }

  // Packs inputs x [k] of one of `num_tokens` tokens. Threads may pack different tiles at once.
  void pack(const Kernels& kernels, unsigned forms, const float* x, int k, int token,
            int num_tokens) {
    const int tile = token / kMaxTile, width = tile_tokens(tile, num_tokens) - 1;
    for (const Form form : kForms) {
      if (!(forms & bit(form))) continue;
      kernels.pack[index(form)][width](x, k, token % kMaxTile, data(form) + offset(form, tile, k));
    }
  }

  const void* tile(Form form, int tile, int k) const {
    return buffers_.at(index(form)).data() + offset(form, tile, k);
  }

  static int tile_tokens(int index, int num_tokens) {
    const int left = num_tokens - index * kMaxTile;
    return left < kMaxTile ? left : kMaxTile;
  }

 private:
  static size_t token_bytes(Form form, int k) {
    switch (form) {
      case Form::kFloat:
        return static_cast<size_t>(k) * sizeof(float);
      case Form::kInt8:
        return static_cast<size_t>(k / kGroup) * sizeof(Int8Tile<1>);
      case Form::kInt16:
        return static_cast<size_t>(k / kGroup) * sizeof(Int16Tile<1>);
    }
    return 0;
  }
  static size_t offset(Form form, int tile, int k) {
    static_assert(sizeof(Int8Tile<4>) == 4 * sizeof(Int8Tile<1>));
    static_assert(sizeof(Int16Tile<4>) == 4 * sizeof(Int16Tile<1>));
    return static_cast<size_t>(tile) * kMaxTile * token_bytes(form, k);
  }
  uint8_t* data(Form form) { return buffers_.at(index(form)).data(); }

  std::array<std::vector<uint8_t>, kNumForms> buffers_;
};

}  // namespace glimmer

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

// Tiles of 1 to 4 rows. `width` is the number of inputs per row that a tile has room for: it says
// where the next one starts, and is the same for all calls between which tiles are kept.
class Activations {
 public:
  void reserve(unsigned forms, int num_tiles, int max_width) {
    for (const Form form : kForms) {
      if (!(forms & bit(form))) continue;
      std::vector<uint8_t>& buffer = buffers_.at(index(form));
      buffer.resize(std::max(buffer.size(), num_tiles * tile_bytes(form, max_width)));
    }
  }

  // Packs inputs x [k] of row `lane` of a tile of `rows` rows. Threads may pack different tiles at
  // once.
  void pack(const Kernels& kernels, unsigned forms, const float* x, int k, int tile, int lane,
            int rows, int width) {
    for (const Form form : kForms) {
      if (!(forms & bit(form))) continue;
      uint8_t* const to = buffers_.at(index(form)).data() + tile * tile_bytes(form, width);
      kernels.pack[index(form)][rows - 1](x, k, lane, to);
    }
  }

  const void* tile(Form form, int tile, int width) const {
    return buffers_.at(index(form)).data() + tile * tile_bytes(form, width);
  }

 private:
  static size_t tile_bytes(Form form, int width) {
    static_assert(sizeof(Int8Tile<4>) == 4 * sizeof(Int8Tile<1>));
    static_assert(sizeof(Int16Tile<4>) == 4 * sizeof(Int16Tile<1>));
    switch (form) {
      case Form::kFloat:
        return static_cast<size_t>(width) * kMaxTile * sizeof(float);
      case Form::kInt8:
        return static_cast<size_t>(width / kGroup) * sizeof(Int8Tile<kMaxTile>);
      case Form::kInt16:
        return static_cast<size_t>(width / kGroup) * sizeof(Int16Tile<kMaxTile>);
    }
    return 0;
  }

  std::array<std::vector<uint8_t>, kNumForms> buffers_;
};

inline int num_tiles(int rows) { return (rows + kMaxTile - 1) / kMaxTile; }
// Rows of a tile of `rows` rows in all.
inline int tile_rows(int tile, int rows) { return std::min(rows - tile * kMaxTile, kMaxTile); }

}  // namespace glimmer

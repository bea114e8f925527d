// What the integer products share: a block's exact sums become float32 and are added in order of k.
#pragma once

#include <type_traits>

#include "kernels/tiles.h"

namespace glimmer {

// The next block of each of S strips that are multiplied side by side, as vectors of rows: more
// sums that do not wait for each other, and each input is fetched once for all.
template <class V, class Block, int S>
struct Blocks {
  static constexpr int kOfStrip = kStripRows / V::kLanes;
  static constexpr int kVectors = S * kOfStrip;

  Blocks(const uint8_t* w, size_t strip_bytes) {
    for (int s = 0; s < S; ++s) strip[s] = reinterpret_cast<const Block*>(w + s * strip_bytes);
  }
  void next() {
    for (const Block*& block : strip) ++block;
  }
  void prefetch() const {
    for (const Block* block : strip) V::prefetch_stream(block, sizeof(Block));
  }
  // Of vector v: its block, its first row and where its part of a line starts.
  const Block& block(int v) const { return *strip[v / kOfStrip]; }
  static constexpr int row(int v) { return v % kOfStrip * V::kLanes; }
  const void* line(int v, int j) const { return block(v).q[j] + 4 * row(v); }

  const Block* strip[S];
};

template <class Block>
inline constexpr bool kIsInt8 =
    std::is_same_v<Block, Int8Block> || std::is_same_v<Block, Int8ScaledBlock>;
template <class Block>
inline constexpr bool kIsScaled =
    std::is_same_v<Block, Int4ScaledBlock> || std::is_same_v<Block, Int8ScaledBlock>;
// Whether nibbles stand for themselves, and not for eight less.
template <class Block>
inline constexpr bool kHasMinimum =
    std::is_same_v<Block, Int4MinBlock> || std::is_same_v<Block, Int4ScaledBlock>;

// The scales of a vector of rows, from row `row`, for part `part` of the block's inputs.
template <class V, class Block>
static inline typename V::F block_scale(const Block& w, int part, int row) {
  if constexpr (std::is_same_v<Block, Int8ScaledBlock>) {
    return V::mul(V::load_half(w.d + row), V::load_i8(w.scale[part] + row));
  } else if constexpr (std::is_same_v<Block, Int4ScaledBlock>) {
    return V::mul(V::load_half(w.d + row), V::load_i8(w.scale + row));
  } else {
    return V::load_half(w.scale + row);
  }
}

// acc += scales x sums: N vectors of rows x T tokens; kToFloat makes float32 of a vector of sums.
template <class V, auto kToFloat, int T, int N, class Blocks, class Tile, class Sum>
static inline void add_scaled(const Blocks& w, int part, const Tile* a, const Sum (&sum)[T][N],
                              typename V::F (&acc)[T][N]) {
  typename V::F d[N];
  GLIMMER_UNROLL
  for (int v = 0; v < N; ++v) d[v] = block_scale<V>(w.block(v), part, w.row(v));
  GLIMMER_UNROLL
  for (int t = 0; t < T; ++t) {
    const typename V::F scale = V::set(a->scale[t]);
    GLIMMER_UNROLL
    for (int v = 0; v < N; ++v) {
      acc[t][v] = V::fma(kToFloat(sum[t][v]), V::mul(d[v], scale), acc[t][v]);
    }
  }
}

// acc += minimum x sum of the inputs, for blocks with minimums.
template <class V, int T, int N, class Blocks, class Tile>
static inline void add_minimum(const Blocks& w, const Tile* a, typename V::F (&acc)[T][N]) {
  typename V::F m[N];
  GLIMMER_UNROLL
  for (int v = 0; v < N; ++v) {
    const auto& block = w.block(v);
    if constexpr (kIsScaled<std::remove_cvref_t<decltype(block)>>) {
      m[v] = V::mul(V::load_half(block.dm + w.row(v)), V::load_i8(block.minimum + w.row(v)));
    } else {
      m[v] = V::load_half(block.minimum + w.row(v));
    }
  }
  GLIMMER_UNROLL
  for (int t = 0; t < T; ++t) {
    const typename V::F s = V::set(a->scaled_sum[t]);
    GLIMMER_UNROLL
    for (int v = 0; v < N; ++v) acc[t][v] = V::fma(m[v], s, acc[t][v]);
  }
}

template <class V, int T, int N>
static inline void clear(typename V::F (&acc)[T][N]) {
  for (auto& row : acc) {
    for (auto& vector : row) vector = V::zero();
  }
}

template <class V, int T, int N>
static inline void store_rows(const typename V::F (&acc)[T][N], float* c, size_t ldc) {
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < N; ++v) V::store(c + t * ldc + v * V::kLanes, acc[t][v]);
  }
}

}  // namespace glimmer

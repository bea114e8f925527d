// What the integer products share: a block's exact sums become float32 and are added in order of k.
#pragma once

#include <type_traits>

#include "kernels/tiles.h"

namespace glimmer {

// The sums of 8 rows as float32: int32 as it is, or pairs of int16 that are added first.
template <class V, bool kPairs, class Sum>
static inline typename V::F widened(Sum sum) {
  if constexpr (kPairs) {
    return V::widen_pairs(sum);
  } else {
    return V::to_float(sum);
  }
}

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

// The scale of 8 rows, from row `row`, for part `part` of the block's inputs.
template <class V, class Block>
static inline typename V::F block_scale(const Block* w, int part, int row) {
  if constexpr (std::is_same_v<Block, Int8ScaledBlock>) {
    return V::mul(V::load_half(w->d + row), V::load_i8(w->scale[part] + row));
  } else if constexpr (std::is_same_v<Block, Int4ScaledBlock>) {
    return V::mul(V::load_half(w->d + row), V::load_i8(w->scale + row));
  } else {
    return V::load_half(w->scale + row);
  }
}

// acc += scales x sum: 16 rows x T tokens.
template <class V, bool kPairs, int T, class Block, class Tile, class Sum>
static inline void add_scaled(const Block* w, int part, const Tile* a, const Sum (&sum)[T][2],
                              typename V::F (&acc)[T][2]) {
  const typename V::F d0 = block_scale<V>(w, part, 0), d1 = block_scale<V>(w, part, 8);
  GLIMMER_UNROLL
  for (int t = 0; t < T; ++t) {
    const typename V::F d = V::set(a->scale[t]);
    acc[t][0] = V::fma(widened<V, kPairs>(sum[t][0]), V::mul(d0, d), acc[t][0]);
    acc[t][1] = V::fma(widened<V, kPairs>(sum[t][1]), V::mul(d1, d), acc[t][1]);
  }
}

// acc += minimum x sum of the inputs, where the block has minimums.
template <class V, int T, class Block, class Tile>
static inline void add_minimum(const Block* w, const Tile* a, typename V::F (&acc)[T][2]) {
  if constexpr (std::is_same_v<Block, Int4MinBlock> || kIsScaled<Block>) {
    typename V::F m0, m1;
    if constexpr (kIsScaled<Block>) {
      m0 = V::mul(V::load_half(w->dm), V::load_i8(w->minimum));
      m1 = V::mul(V::load_half(w->dm + 8), V::load_i8(w->minimum + 8));
    } else {
      m0 = V::load_half(w->minimum);
      m1 = V::load_half(w->minimum + 8);
    }
    GLIMMER_UNROLL
    for (int t = 0; t < T; ++t) {
      const typename V::F s = V::set(a->scaled_sum[t]);
      acc[t][0] = V::fma(m0, s, acc[t][0]);
      acc[t][1] = V::fma(m1, s, acc[t][1]);
    }
  }
}

template <class V, int T>
static inline void store_rows(const typename V::F (&acc)[T][2], float* c, size_t ldc) {
  for (int t = 0; t < T; ++t) {
    V::store(c + t * ldc, acc[t][0]);
    V::store(c + t * ldc + 8, acc[t][1]);
  }
}

}  // namespace glimmer

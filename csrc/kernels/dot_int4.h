// int4 weights x int8 activations: 16 rows x T tokens.
//
// Sums of a block are exact. Where there is no instruction that adds four products in int32, 32
// products are added in int16 (8 x 2 x 15 x 127 = 30480 < 2^15) and widened once. Blocks are then
// added in order of k in float32, by the same operations whatever T is: an output's bits depend
// neither on the batch nor on the tile it falls in, nor on the instruction set.
#pragma once

#include "kernels/dot_blocks.h"

namespace glimmer {

template <class V, class Block, int T, int S>
static void dot_int4(const uint8_t* strips, size_t strip_bytes, const Int8Tile<T>* a,
                     int num_blocks, float* c, size_t ldc) {
  constexpr int kVectors = Blocks<V, Block, S>::kVectors;
  using Sum = typename V::Int4Sum;
  Blocks<V, Block, S> w(strips, strip_bytes);
  typename V::F acc[T][kVectors];
  clear<V>(acc);
  for (int b = 0; b < num_blocks; ++b, w.next(), ++a) {
    w.prefetch();
    Sum sum[T][kVectors];
    for (int t = 0; t < T; ++t) {
      sum[t][0] = kHasMinimum<Block> ? V::zero_sum() : V::first_sum(a->zero_pair[t], a->zero[t]);
      for (int v = 1; v < kVectors; ++v) sum[t][v] = V::opaque(sum[t][0]);
    }
    GLIMMER_UNROLL
    for (int j = 0; j < 4; ++j) {
      typename V::U8 line[kVectors], nibbles[kVectors];
      const auto add = [&](int first) {
        GLIMMER_UNROLL
        for (int t = 0; t < T; ++t) {
          const typename V::U8 x = V::broadcast_i8x4(a->q[t] + first);
          GLIMMER_UNROLL
          for (int v = 0; v < kVectors; ++v) sum[t][v] = V::add_int4(sum[t][v], nibbles[v], x);
        }
      };
      for (int v = 0; v < kVectors; ++v) {
        line[v] = V::load_u8(w.line(v, j));
        nibbles[v] = V::low_nibbles(line[v]);
      }
      add(4 * j);
      for (int v = 0; v < kVectors; ++v) nibbles[v] = V::high_nibbles(line[v]);
      add(16 + 4 * j);
    }
    add_scaled<V, V::int4_to_float>(w, 0, a, sum, acc);
    if constexpr (kHasMinimum<Block>) add_minimum<V>(w, a, acc);
  }
  store_rows<V>(acc, c, ldc);
}

}  // namespace glimmer

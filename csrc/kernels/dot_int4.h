// int4 weights x int8 activations: 16 rows x T tokens.
//
// Sums of a block are exact: 8 x 2 x 15 x 127 = 30480 < 2^15, so that 32 products are added in
// int16 and widened once. Blocks are then added in order of k in float32, by the same operations
// whatever T is: an output's bits depend neither on the batch nor on the tile it falls in.
#pragma once

#include "kernels/dot_blocks.h"

namespace glimmer {

template <class V, int T, class Block>
static void dot_int4(const Block* w, const Int8Tile<T>* a, int num_blocks, float* c, size_t ldc) {
  typename V::F acc[T][2];
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = V::zero();
  for (int b = 0; b < num_blocks; ++b, ++w, ++a) {
    V::prefetch_stream(w, sizeof(Block));
    typename V::I16 sum[T][2];
    for (int t = 0; t < T; ++t) {
      sum[t][0] = kHasMinimum<Block> ? V::zero_i16() : V::broadcast_i32(a->zero[t]);
      sum[t][1] = V::opaque(sum[t][0]);
    }
    GLIMMER_UNROLL
    for (int j = 0; j < 4; ++j) {
      const typename V::U8 w0 = V::load_u8(w->q[j]), w1 = V::load_u8(w->q[j] + 32);
      const typename V::U8 low0 = V::low_nibbles(w0), low1 = V::low_nibbles(w1);
      GLIMMER_UNROLL
      for (int t = 0; t < T; ++t) {
        const typename V::U8 x = V::broadcast_i8x4(a->q[t] + 4 * j);
        sum[t][0] = V::add_i16(sum[t][0], V::multiply_pairs(low0, x));
        sum[t][1] = V::add_i16(sum[t][1], V::multiply_pairs(low1, x));
      }
      const typename V::U8 high0 = V::high_nibbles(w0), high1 = V::high_nibbles(w1);
      GLIMMER_UNROLL
      for (int t = 0; t < T; ++t) {
        const typename V::U8 x = V::broadcast_i8x4(a->q[t] + 16 + 4 * j);
        sum[t][0] = V::add_i16(sum[t][0], V::multiply_pairs(high0, x));
        sum[t][1] = V::add_i16(sum[t][1], V::multiply_pairs(high1, x));
      }
    }
    add_scaled<V, true>(w, 0, a, sum, acc);
    add_minimum<V>(w, a, acc);
  }
  store_rows<V>(acc, c, ldc);
}

}  // namespace glimmer

// int8 or int4 weights x int16 activations: 16 rows x T tokens, exact in int32 within a block.
//
// Shifts split a line into vectors of int16 in which each row has two inputs side by side; a
// multiply of pairs then needs no horizontal step. Block sums are added in order of k, as in
// dot_int4. The int16 values carry the activations to a 65000th of the largest of 32, so that the
// result is that of float32 activations for all that matters. It costs twice the multiplies of
// dot_int4 and no memory traffic.
#pragma once

#include "kernels/dot_blocks.h"

namespace glimmer {

template <class V>
static inline typename V::I32 add_products(typename V::I32 sum, typename V::I16 w,
                                           const int16_t* x) {
  return V::add_i32(sum, V::multiply_i16(w, V::broadcast_i32(x)));
}

template <class V, int T, class Block>
static void dot_wide(const Block* w, const Int16Tile<T>* a, int num_blocks, float* c, size_t ldc) {
  constexpr bool kInt8 = kIsInt8<Block>;
  constexpr bool kTwoScales = std::is_same_v<Block, Int8ScaledBlock>;
  typename V::F acc[T][2];
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = V::zero();
  for (int b = 0; b < num_blocks; ++b, ++w, ++a) {
    V::prefetch_stream(w, sizeof(Block));
    typename V::I32 sum[T][2];
    for (int t = 0; t < T; ++t) {
      sum[t][0] = kInt8 || kHasMinimum<Block> ? V::zero_i32() : V::set_i32(a->zero[t]);
      sum[t][1] = sum[t][0];
    }
    GLIMMER_UNROLL
    for (int j = 0; j < (kInt8 ? 8 : 4); ++j) {
      if (kTwoScales && j == 4) {  // the first 16 inputs are done: theirs is the first scale
        add_scaled<V, false>(w, 0, a, sum, acc);
        for (int t = 0; t < T; ++t) sum[t][0] = sum[t][1] = V::zero_i32();
      }
      GLIMMER_UNROLL
      for (int half = 0; half < 2; ++half) {
        const typename V::I16 line = V::load_i16(w->q[j] + 32 * half);
        if constexpr (kInt8) {
          const typename V::I16 even = V::even_i8(line), odd = V::odd_i8(line);
          GLIMMER_UNROLL
          for (int t = 0; t < T; ++t) {
            sum[t][half] = add_products<V>(sum[t][half], even, a->q[t] + 4 * j);
            sum[t][half] = add_products<V>(sum[t][half], odd, a->q[t] + 4 * j + 2);
          }
        } else {
          const typename V::I16 even = V::template nibble<0>(line),
                                odd = V::template nibble<2>(line);
          GLIMMER_UNROLL
          for (int t = 0; t < T; ++t) {
            sum[t][half] = add_products<V>(sum[t][half], even, a->q[t] + 4 * j);
            sum[t][half] = add_products<V>(sum[t][half], odd, a->q[t] + 4 * j + 2);
          }
          const typename V::I16 even16 = V::template nibble<1>(line),
                                odd16 = V::template nibble<3>(line);
          GLIMMER_UNROLL
          for (int t = 0; t < T; ++t) {
            sum[t][half] = add_products<V>(sum[t][half], even16, a->q[t] + 16 + 4 * j);
            sum[t][half] = add_products<V>(sum[t][half], odd16, a->q[t] + 16 + 4 * j + 2);
          }
        }
      }
    }
    add_scaled<V, false>(w, kTwoScales ? 1 : 0, a, sum, acc);
    add_minimum<V>(w, a, acc);
  }
  store_rows<V>(acc, c, ldc);
}

}  // namespace glimmer

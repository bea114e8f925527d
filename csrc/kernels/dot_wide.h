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

template <class V, class Block, int T, int S>
static void dot_wide(const uint8_t* strips, size_t strip_bytes, const Int16Tile<T>* a,
                     int num_blocks, float* c, size_t ldc) {
  constexpr bool kInt8 = kIsInt8<Block>;
  constexpr bool kTwoScales = std::is_same_v<Block, Int8ScaledBlock>;
  constexpr int kVectors = Blocks<V, Block, S>::kVectors;
  using Line = typename V::I16;
  using Sum = typename V::I32;
  Blocks<V, Block, S> w(strips, strip_bytes);
  typename V::F acc[T][kVectors];
  clear<V>(acc);
  for (int b = 0; b < num_blocks; ++b, w.next(), ++a) {
    w.prefetch();
    Sum sum[T][kVectors];
    for (int t = 0; t < T; ++t) {
      for (Sum& s : sum[t]) {
        s = kInt8 || kHasMinimum<Block> ? V::zero_i32() : V::set_i32(a->zero[t]);
      }
    }
    GLIMMER_UNROLL
    for (int j = 0; j < (kInt8 ? 8 : 4); ++j) {
      if (kTwoScales && j == 4) {  // the first 16 inputs are done: theirs is the first scale
        add_scaled<V, V::to_float>(w, 0, a, sum, acc);
        for (auto& row : sum) {
          for (Sum& s : row) s = V::zero_i32();
        }
      }
      GLIMMER_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const auto add = [&](Line even, Line odd, int first) {
          GLIMMER_UNROLL
          for (int t = 0; t < T; ++t) {
            const int16_t* const x = a->q[t] + first;
            sum[t][v] = V::add_products(sum[t][v], even, V::broadcast_i32(x));
            sum[t][v] = V::add_products(sum[t][v], odd, V::broadcast_i32(x + 2));
          }
        };
        const Line line = V::load_i16(w.line(v, j));
        if constexpr (kInt8) {
          add(V::even_i8(line), V::odd_i8(line), 4 * j);
        } else {
          add(V::template nibble<0>(line), V::template nibble<2>(line), 4 * j);
          add(V::template nibble<1>(line), V::template nibble<3>(line), 16 + 4 * j);
        }
      }
    }
    add_scaled<V, V::to_float>(w, kTwoScales ? 1 : 0, a, sum, acc);
    if constexpr (kHasMinimum<Block> || kTwoScales) add_minimum<V>(w, a, acc);
  }
  store_rows<V>(acc, c, ldc);
}

}  // namespace glimmer

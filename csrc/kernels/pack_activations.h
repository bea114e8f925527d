// One token's activations into its lane of a tile, in the forms that the weights want.
//
// Integers are symmetric with one float32 scale per 32 inputs: q = round_half_even(x * L / max|x|),
// L = 127 or 32767. A scale per token would be cheaper and far less exact where a few channels are
// large.
#pragma once

#include <cstring>

#include "kernels/tiles.h"

namespace glimmer {

// q[32] as int16, in order; returns the scale.
template <class V>
static inline float quantize_group(const float* x, float levels, int16_t* q) {
  const typename V::F v[4] = {V::load(x), V::load(x + 8), V::load(x + 16), V::load(x + 24)};
  const float largest =
      V::largest(V::max(V::max(V::abs(v[0]), V::abs(v[1])), V::max(V::abs(v[2]), V::abs(v[3]))));
  const typename V::F inverse = V::set(largest > 0 ? levels / largest : 0.0f);
  V::store_rounded_i16(q, V::mul(v[0], inverse), V::mul(v[1], inverse));
  V::store_rounded_i16(q + 16, V::mul(v[2], inverse), V::mul(v[3], inverse));
  return largest / levels;
}

// One scale for all: q[n] = round_half_even(x * 127 / max|x|); returns the scale.
template <class V>
static float quantize_row(const float* x, int n, int8_t* q) {
  typename V::F most = V::zero();
  for (int i = 0; i < n; i += 8) most = V::max(most, V::abs(V::load_part(x + i, n - i)));
  const float largest = V::largest(most);
  const typename V::F inverse = V::set(largest > 0 ? 127.0f / largest : 0.0f);
  alignas(32) int16_t part[16];
  for (int i = 0; i < n; i += 8) {
    V::store_rounded_i16(part, V::mul(V::load_part(x + i, n - i), inverse), V::zero());
    for (int j = 0; j < 8 && i + j < n; ++j) q[i + j] = static_cast<int8_t>(part[j]);
  }
  return largest / 127.0f;
}

template <class V, int T>
static void pack_int8(const float* x, int num_blocks, int lane, Int8Tile<T>* tile) {
  alignas(32) int16_t q[32];
  for (int b = 0; b < num_blocks; ++b, ++tile, x += 32) {
    const float scale = quantize_group<V>(x, 127.0f, q);
    int sum[2] = {0, 0};
    for (int i = 0; i < 32; ++i) {
      tile->q[lane][i] = static_cast<int8_t>(q[i]);
      sum[(i >> 1) & 1] += q[i];
    }
    tile->scale[lane] = scale;
    tile->scaled_sum[lane] = scale * static_cast<float>(sum[0] + sum[1]);
    tile->zero_pair[lane][0] = static_cast<int16_t>(-8 * sum[0]);
    tile->zero_pair[lane][1] = static_cast<int16_t>(-8 * sum[1]);
    tile->zero[lane] = -8 * (sum[0] + sum[1]);
  }
}

template <class V, int T>
static void pack_int16(const float* x, int num_blocks, int lane, Int16Tile<T>* tile) {
  alignas(32) int16_t q[32];
  for (int b = 0; b < num_blocks; ++b, ++tile, x += 32) {
    const float scale = quantize_group<V>(x, 32767.0f, q);
    int sum = 0;
    for (int i = 0; i < 32; ++i) sum += q[i];
    for (int i = 0; i < 32; i += 4) {
      const int16_t four[4] = {q[i], q[i + 2], q[i + 1], q[i + 3]};
      std::memcpy(tile->q[lane] + i, four, sizeof(four));
    }
    tile->scale[lane] = scale;
    tile->scaled_sum[lane] = scale * static_cast<float>(sum);
    tile->zero[lane] = -8 * sum;
  }
}

}  // namespace glimmer

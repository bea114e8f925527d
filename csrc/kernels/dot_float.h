// float32, float16 or bfloat16 weights x float32 activations: S strips of 16 rows x T tokens.
//
// One FMA per input in order of k, whatever S and T are. With one token, several strips at a time
// keep the FMA pipes full, since a single output is one chain of dependent sums.
#pragma once

#include "kernels/tiles.h"

namespace glimmer {

struct LoadFloat {
  static constexpr int kRowBytes = 64;
  template <class V>
  static typename V::F load(const uint8_t* p) {
    return V::load(reinterpret_cast<const float*>(p));
  }
};
struct LoadHalf {
  static constexpr int kRowBytes = 32;
  template <class V>
  static typename V::F load(const uint8_t* p) {
    return V::load_half(reinterpret_cast<const uint16_t*>(p));
  }
};
struct LoadBfloat {
  static constexpr int kRowBytes = 32;
  template <class V>
  static typename V::F load(const uint8_t* p) {
    return V::load_bfloat(reinterpret_cast<const uint16_t*>(p));
  }
};

template <class V, class Load, int T, int S>
static void dot_float(const uint8_t* w, size_t strip_bytes, const float* a, int k, float* c,
                      size_t ldc) {
  constexpr int kVectors = kStripRows / V::kLanes;
  typename V::F acc[S][T][kVectors];
  for (auto& strip : acc) {
    for (auto& row : strip) {
      for (auto& vector : row) vector = V::zero();
    }
  }
  for (int i = 0; i < k; ++i, w += Load::kRowBytes, a += T) {
    GLIMMER_UNROLL
    for (int s = 0; s < S; ++s) {
      typename V::F weights[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        weights[v] = Load::template load<V>(w + s * strip_bytes + v * (Load::kRowBytes / kVectors));
      }
      GLIMMER_UNROLL
      for (int t = 0; t < T; ++t) {
        const typename V::F x = V::set(a[t]);
        GLIMMER_UNROLL
        for (int v = 0; v < kVectors; ++v) acc[s][t][v] = V::fma(weights[v], x, acc[s][t][v]);
      }
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int t = 0; t < T; ++t) {
      for (int v = 0; v < kVectors; ++v) {
        V::store(c + t * ldc + s * kStripRows + v * V::kLanes, acc[s][t][v]);
      }
    }
  }
}

}  // namespace glimmer

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
  typename V::F acc[S][T][2];
  for (int s = 0; s < S; ++s) {
    for (int t = 0; t < T; ++t) acc[s][t][0] = acc[s][t][1] = V::zero();
  }
  for (int i = 0; i < k; ++i, w += Load::kRowBytes, a += T) {
    GLIMMER_UNROLL
    for (int s = 0; s < S; ++s) {
      const typename V::F w0 = Load::template load<V>(w + s * strip_bytes);
      const typename V::F w1 = Load::template load<V>(w + s * strip_bytes + Load::kRowBytes / 2);
      GLIMMER_UNROLL
      for (int t = 0; t < T; ++t) {
        const typename V::F x = V::set(a[t]);
        acc[s][t][0] = V::fma(w0, x, acc[s][t][0]);
        acc[s][t][1] = V::fma(w1, x, acc[s][t][1]);
      }
    }
  }
  for (int s = 0; s < S; ++s) {
    for (int t = 0; t < T; ++t) {
      V::store(c + t * ldc + s * kStripRows, acc[s][t][0]);
      V::store(c + t * ldc + s * kStripRows + 8, acc[s][t][1]);
    }
  }
}

}  // namespace glimmer

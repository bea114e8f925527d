// Attention of up to 16 query rows that share a KV head over one split of 512 keys.
//
// Keys lie transposed in pages of 32 tokens ([channel][token]), values as they are ([token]
// [channel]), in float16, float32 or int8, the last with a float32 scale per token behind them. A
// split starts at a multiple of 512 in the sequence, so the sums of a row depend on nothing but the
// row and its keys. Inside a split: all scores, the exact maximum, one pass of exp, then the
// weighted values, key by key. Splits are merged left to right.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/elementwise.h"
#include "kernels/kernels.h"

namespace glimmer {

// c[R][8N] (+)= sum over k of a[k * a_step + r * a_row] * b[k][8N], one FMA per k in order.
template <class V, int R, int N>
static inline void multiply_rows(const float* a, int a_row, int a_step, const float* b, int ldb,
                                 int k, bool accumulate, float* c, int ldc) {
  typename V::F acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) acc[r][n] = accumulate ? V::load(c + r * ldc + 8 * n) : V::zero();
  }
  for (int i = 0; i < k; ++i, a += a_step, b += ldb) {
    typename V::F v[N];
    GLIMMER_UNROLL
    for (int n = 0; n < N; ++n) v[n] = V::load(b + 8 * n);
    GLIMMER_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename V::F x = V::set(a[r * a_row]);
      GLIMMER_UNROLL
      for (int n = 0; n < N; ++n) acc[r][n] = V::fma(x, v[n], acc[r][n]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) V::store(c + r * ldc + 8 * n, acc[r][n]);
  }
}

template <class V, int N>
static inline void multiply_panel(int rows, const float* a, int a_row, int a_step, const float* b,
                                  int ldb, int k, bool accumulate, float* c, int ldc) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    multiply_rows<V, 4, N>(a + r * a_row, a_row, a_step, b, ldb, k, accumulate, c + r * ldc, ldc);
  }
  a += r * a_row;
  c += r * ldc;
  switch (rows - r) {
    case 1:
      return multiply_rows<V, 1, N>(a, a_row, a_step, b, ldb, k, accumulate, c, ldc);
    case 2:
      return multiply_rows<V, 2, N>(a, a_row, a_step, b, ldb, k, accumulate, c, ldc);
    case 3:
      return multiply_rows<V, 3, N>(a, a_row, a_step, b, ldb, k, accumulate, c, ldc);
  }
}

template <class V>
static inline typename V::F load_kv(const float* p) {
  return V::load(p);
}
template <class V>
static inline typename V::F load_kv(const uint16_t* p) {
  return V::load_half(p);
}

// A page as float32: keys [head_dim][32], the first `tokens` values [tokens][channels].
template <class V, class T>
static inline void unpack_keys(const T* keys, int head_dim, float* page) {
  for (int i = 0; i < head_dim * kPageTokens; i += 8) V::store(page + i, load_kv<V>(keys + i));
}
template <class V>
static inline void unpack_keys(const int8_t* keys, int head_dim, float* page) {
  const float* const scales = reinterpret_cast<const float*>(keys + head_dim * kPageTokens);
  for (int n = 0; n < kPageTokens; n += 8) {
    const typename V::F scale = V::load(scales + n);
    for (int i = n; i < head_dim * kPageTokens; i += kPageTokens) {
      V::store(page + i, V::mul(V::load_i8(keys + i), scale));
    }
  }
}
template <class V, class T>
static inline void unpack_values(const T* values, int channels, int tokens, float* page) {
  for (int i = 0; i < tokens * channels; i += 8) V::store(page + i, load_kv<V>(values + i));
}
template <class V>
static inline void unpack_values(const int8_t* values, int channels, int tokens, float* page) {
  const float* const scales = reinterpret_cast<const float*>(values + channels * kPageTokens);
  for (int t = 0; t < tokens; ++t, values += channels, page += channels) {
    const typename V::F scale = V::set(scales[t]);
    for (int i = 0; i < channels; i += 8) V::store(page + i, V::mul(V::load_i8(values + i), scale));
  }
}

template <class V, class T>
static void attend_split(const AttentionSplit& s) {
  float* const scores = s.scratch;
  float* const page = s.scratch + static_cast<size_t>(kAttentionRows) * kScoreStride;
  const int channels = padded_channels(s.head_dim);
  const int num_pages = (s.keys + kPageTokens - 1) / kPageTokens;

  for (int p = 0; p < num_pages; ++p) {
    unpack_keys<V>(static_cast<const T*>(s.key_pages[p]), s.head_dim, page);
    for (int n = 0; n < kPageTokens; n += 16) {
      multiply_panel<V, 2>(s.rows, s.queries, 1, kAttentionRows, page + n, kPageTokens, s.head_dim,
                           false, scores + p * kPageTokens + n, kScoreStride);
    }
  }
  for (int r = 0; r < s.rows; ++r) {
    float* const row = scores + static_cast<size_t>(r) * kScoreStride;
    const int n = s.visible[r];
    for (int i = n; i < num_pages * kPageTokens; ++i) row[i] = kNoMaximum;
    typename V::F largest = V::set(kNoMaximum);
    for (int i = 0; i < n; i += 8) largest = V::max(largest, V::load(row + i));
    s.maximum[r] = V::largest(largest);
    s.sum[r] = exp_shifted<V>(row, n, s.maximum[r]);
    for (int i = n; i < num_pages * kPageTokens; ++i) row[i] = 0;
  }
  for (int p = 0; p < num_pages; ++p) {
    const int tokens =
        s.keys - p * kPageTokens < kPageTokens ? s.keys - p * kPageTokens : kPageTokens;
    unpack_values<V>(static_cast<const T*>(s.value_pages[p]), channels, tokens, page);
    const float* weights = scores + p * kPageTokens;
    int d = 0;
    for (; d + 16 <= channels; d += 16) {
      multiply_panel<V, 2>(s.rows, weights, kScoreStride, 1, page + d, channels, tokens, p > 0,
                           s.out + d, channels);
    }
    if (d < channels) {
      multiply_panel<V, 1>(s.rows, weights, kScoreStride, 1, page + d, channels, tokens, p > 0,
                           s.out + d, channels);
    }
  }
}

// Adds the next split (maximum, sum, out) of one row to the running ones; out is [channels].
template <class V>
static void merge_split(float next_maximum, float next_sum, const float* next_out, int channels,
                        float* maximum, float* sum, float* out) {
  const float largest = *maximum > next_maximum ? *maximum : next_maximum;
  alignas(32) float scale[8] = {*maximum - largest, next_maximum - largest};
  V::store(scale, exp<V>(V::load(scale)));
  const typename V::F a = V::set(scale[0]), b = V::set(scale[1]);
  *sum = *sum * scale[0] + next_sum * scale[1];
  *maximum = largest;
  for (int i = 0; i < channels; i += 8) {
    V::store(out + i, V::fma(V::load(next_out + i), b, V::mul(V::load(out + i), a)));
  }
}

}  // namespace glimmer

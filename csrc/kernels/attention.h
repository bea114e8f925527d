// Attention of up to 16 query rows that share a KV head over one split of 512 keys.
//
// Keys lie transposed in pages of 32 tokens ([channel][token]), values as they are ([token]
// [channel]), in float16, float32 or int8, the last with a float32 scale per token behind them. A
// split starts at a multiple of 512 in the sequence, so the sums of a row depend on nothing but the
// row and its keys. Inside a split: all scores, the exact maximum, one pass of exp2 (queries come
// scaled by log2 e), then the weighted values, key by key. Splits are merged left to right.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/elementwise.h"
#include "kernels/kernels.h"

namespace glimmer {

// Keys of one channel, or channels of one value, as float32; int8 less its scale.
template <class V>
static inline typename V::F load_kv(const float* p) {
  return V::load(p);
}
template <class V>
static inline typename V::F load_kv(const uint16_t* p) {
  return V::load_half(p);
}
template <class V>
static inline typename V::F load_kv(const int8_t* p) {
  return V::load_i8(p);
}

// The scales of a page's 32 tokens, behind its `width` numbers per token.
static inline const float* page_scales(const int8_t* page, int width) {
  return reinterpret_cast<const float*>(page + width * kPageTokens);
}

// Memory that will be needed next: a page now, and one after it. A sequence's pages lie far apart,
// so no prefetcher of the processor sees the next one coming; and a burst of requests would stop
// the work until they are served, so each step of a product asks for a few bytes more. Two pages
// before its use a line goes to the second-level cache, one page before it to the first.
struct Ahead {
  const char* near;
  const char* far;
  size_t bytes;  // of each, in all steps of the product

  // The part [first, last) of `all`.
  Ahead part(int first, int last, int all) const {
    const size_t skipped = bytes * first / all;
    return {near + skipped, far + skipped, bytes * (last - first) / all};
  }
};

// While page `p` of the split's keys and values, one after the other, is worked on.
static inline Ahead ahead_of(const AttentionSplit& s, int num_pages, int p, size_t bytes) {
  const auto page = [&](int i) {
    const void* const at = i < num_pages       ? s.key_pages[i]
                           : i < 2 * num_pages ? s.value_pages[i - num_pages]
                                               : s.next_pages[i - 2 * num_pages];
    return static_cast<const char*>(at);
  };
  return {page(p + 1), page(p + 2), bytes};
}

// c[R][N vectors] = sum over k of a[k * kStep + r * kRow] * b[k * b_step][N vectors], one FMA per k
// in order, on top of what is there if `accumulate`.
template <class V, int R, int N, int kRow, int kStep, class T>
static inline void multiply_tile(const float* a, const T* b, int b_step, int k, bool accumulate,
                                 float* c, int c_row, Ahead ahead) {
  const size_t fetched = ahead.bytes / k;  // by each step
  typename V::F acc[R][N];
  GLIMMER_UNROLL
  for (int r = 0; r < R; ++r) {
    GLIMMER_UNROLL
    for (int n = 0; n < N; ++n) {
      acc[r][n] = accumulate ? V::load(c + r * c_row + n * V::kLanes) : V::zero();
    }
  }
  for (int i = 0; i < k; ++i, a += kStep, b += b_step) {
    V::prefetch(ahead.near);
    V::prefetch_far(ahead.far);
    ahead.near += fetched, ahead.far += fetched;
    typename V::F v[N];
    GLIMMER_UNROLL
    for (int n = 0; n < N; ++n) v[n] = load_kv<V>(b + n * V::kLanes);
    GLIMMER_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename V::F x = V::set(a[r * kRow]);
      GLIMMER_UNROLL
      for (int n = 0; n < N; ++n) acc[r][n] = V::fma(x, v[n], acc[r][n]);
    }
  }
  GLIMMER_UNROLL
  for (int r = 0; r < R; ++r) {
    GLIMMER_UNROLL
    for (int n = 0; n < N; ++n) V::store(c + r * c_row + n * V::kLanes, acc[r][n]);
  }
}

// The same for 1 to R rows.
template <class V, int R, int N, int kRow, int kStep, class T, class... Rest>
static inline void multiply_rows(int rows, const float* a, const T* b, Rest... rest) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_rows<V, R - 1, N, kRow, kStep>(rows, a, b, rest...);
  }
  multiply_tile<V, R, N, kRow, kStep>(a, b, rest...);
}

// The same for any number of rows, in tiles as even as can be: one of few rows would leave the
// pipes waiting for its sums.
template <class V, int N, int kRow, int kStep, class T>
static inline void multiply_panel(int rows, const float* a, const T* b, int b_step, int k,
                                  bool accumulate, float* c, int c_row, Ahead ahead) {
  const int tiles = (rows + V::kTileRows - 1) / V::kTileRows;
  for (int tile = 0; tile < tiles; ++tile) {
    const int first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
    multiply_rows<V, V::kTileRows, N, kRow, kStep>(last - first, a + first * kRow, b, b_step, k,
                                                   accumulate, c + first * c_row, c_row,
                                                   ahead.part(tile, tile + 1, tiles));
  }
}

// Scores of all rows and keys of the split, [16][kScoreStride].
template <class V, class T>
static inline void score_keys(const AttentionSplit& s, int num_pages, size_t page_bytes,
                              float* scores) {
  constexpr int kAtOnce = 2 * V::kLanes;
  for (int p = 0; p < num_pages; ++p) {
    const T* const keys = static_cast<const T*>(s.key_pages[p]);
    const Ahead ahead = ahead_of(s, num_pages, p, page_bytes);
    for (int n = 0; n < kPageTokens; n += kAtOnce) {
      float* const c = scores + p * kPageTokens + n;
      multiply_panel<V, 2, 1, kAttentionRows>(s.rows, s.queries, keys + n, kPageTokens, s.head_dim,
                                              false, c, kScoreStride,
                                              ahead.part(n, n + kAtOnce, kPageTokens));
      if constexpr (std::is_same_v<T, int8_t>) {
        for (int i = 0; i < kAtOnce; i += V::kLanes) {
          const typename V::F scale = V::load(page_scales(keys, s.head_dim) + n + i);
          for (int r = 0; r < s.rows; ++r) {
            float* const score = c + r * kScoreStride + i;
            V::store(score, V::mul(V::load(score), scale));
          }
        }
      }
    }
  }
}

// Scores become the weights of the values; those of int8 take in their scales. A sum runs in 32
// lanes: key i goes to lane i % 32.
template <class V, class T>
static inline void weigh_keys(const AttentionSplit& s, int num_pages, int channels, float* scores) {
  constexpr int kChains = kPageTokens / V::kLanes;
  const int end = num_pages * kPageTokens;
  for (int r = 0; r < s.rows; ++r) {
    float* const row = scores + static_cast<size_t>(r) * kScoreStride;
    const int visible = s.visible[r];
    for (int i = visible; i < end; ++i) row[i] = kNoMaximum;
    typename V::F largest[kChains], sum[kChains];
    for (int j = 0; j < kChains; ++j) largest[j] = V::set(kNoMaximum), sum[j] = V::zero();
    for (int i = 0; i < end; i += kPageTokens) {
      GLIMMER_UNROLL
      for (int j = 0; j < kChains; ++j) {
        largest[j] = V::max(largest[j], V::load(row + i + j * V::kLanes));
      }
    }
    s.maximum[r] = V::largest_of(largest);
    const typename V::F shift = V::set(s.maximum[r]);
    for (int i = 0; i < end; i += kPageTokens) {
      GLIMMER_UNROLL
      for (int j = 0; j < kChains; ++j) {
        float* const p = row + i + j * V::kLanes;
        const typename V::F weight = exp2<V>(V::sub(V::load(p), shift));
        V::store(p, weight);
        sum[j] = V::add(sum[j], weight);
      }
    }
    // A key that is not seen added 2^-126 at most, which is nothing beside the 1 of the largest.
    s.sum[r] = visible > 0 ? V::sum_of(sum) : 0;
    for (int i = visible; i < end; ++i) row[i] = 0;
    if constexpr (std::is_same_v<T, int8_t>) {
      for (int p = 0; p < num_pages; ++p) {
        const float* const scales =
            page_scales(static_cast<const int8_t*>(s.value_pages[p]), channels);
        float* const weights = row + p * kPageTokens;
        for (int i = 0; i < kPageTokens; i += V::kLanes) {
          V::store(weights + i, V::mul(V::load(weights + i), V::load(scales + i)));
        }
      }
    }
  }
}

// Channels [n, n + N vectors) of all rows' sums over one page.
template <class V, int N, class T>
static inline void sum_channels(const AttentionSplit& s, int page, int n, int channels,
                                const float* scores, Ahead ahead) {
  const int left = s.keys - page * kPageTokens;
  multiply_panel<V, N, kScoreStride, 1>(
      s.rows, scores + page * kPageTokens, static_cast<const T*>(s.value_pages[page]) + n, channels,
      left < kPageTokens ? left : kPageTokens, page > 0, s.out + n, channels,
      ahead.part(n, n + N * V::kLanes, channels));
}

template <class V, class T>
static inline void sum_values(const AttentionSplit& s, int num_pages, int channels,
                              size_t page_bytes, const float* scores) {
  for (int p = 0; p < num_pages; ++p) {
    const Ahead ahead = ahead_of(s, num_pages, num_pages + p, page_bytes);
    int n = 0;
    for (; n + 2 * V::kLanes <= channels; n += 2 * V::kLanes) {
      sum_channels<V, 2, T>(s, p, n, channels, scores, ahead);
    }
    if (n + V::kLanes <= channels) {
      sum_channels<V, 1, T>(s, p, n, channels, scores, ahead);
      n += V::kLanes;
    }
    if (n < channels) sum_channels<typename V::Eight, 1, T>(s, p, n, channels, scores, ahead);
  }
}

template <class V, class T>
static void attend_split(const AttentionSplit& s) {
  const int channels = padded_channels(s.head_dim);
  const int num_pages = (s.keys + kPageTokens - 1) / kPageTokens;
  const size_t page_bytes = static_cast<size_t>(channels) * kPageTokens * sizeof(T);
  score_keys<V, T>(s, num_pages, page_bytes, s.scratch);
  weigh_keys<V, T>(s, num_pages, channels, s.scratch);
  sum_values<V, T>(s, num_pages, channels, page_bytes, s.scratch);
}

// Adds the next split (maximum, sum, out) of one row to the running ones; out is [channels].
template <class V>
static void merge_split(float next_maximum, float next_sum, const float* next_out, int channels,
                        float* maximum, float* sum, float* out) {
  const float largest = *maximum > next_maximum ? *maximum : next_maximum;
  alignas(32) float scale[8] = {*maximum - largest, next_maximum - largest};
  V::store(scale, exp2<V>(V::load(scale)));
  const typename V::F a = V::set(scale[0]), b = V::set(scale[1]);
  *sum = *sum * scale[0] + next_sum * scale[1];
  *maximum = largest;
  for (int i = 0; i < channels; i += 8) {
    V::store(out + i, V::fma(V::load(next_out + i), b, V::mul(V::load(out + i), a)));
  }
}

}  // namespace glimmer

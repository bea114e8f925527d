// The vector type in AVX2, FMA and F16C, for the files of this folder: each compiles it for its own
// processor.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace glimmer {
namespace {

struct Avx2 {
  using Eight = Avx2;
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;  // twice as many sums, two inputs and a factor: 15 registers
  using F = __m256;
  using U8 = __m256i;
  using I16 = __m256i;
  using I32 = __m256i;
  using Int4Sum = __m256i;  // 16 sums in int16, two for each row

  static constexpr int strips_at_once(int tokens) { return tokens <= 2 ? 2 : 1; }

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  static F load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load_i8(const int8_t* p) {
    const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
  }
  static F load_bfloat(const uint16_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static void store_part(float* p, int n, F a) { _mm256_maskstore_ps(p, first(n), a); }
  static void store_half(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2_int(F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static F add_to_exponent(F p, F rounded) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(rounded), 23)));
  }
  static float sum(F a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
  }
  static float largest(F a) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
  }
  static float sum_of(const F (&a)[4]) { return sum(add(add(a[0], a[1]), add(a[2], a[3]))); }
  static float largest_of(const F (&a)[4]) {
    return largest(max(max(a[0], a[1]), max(a[2], a[3])));
  }
  static void store_rounded_i16(int16_t* p, F a, F b) {
    const __m256i q = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(q, 0xd8));
  }

  static U8 load_u8(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static U8 low_nibbles(U8 a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  static U8 high_nibbles(U8 a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
  static U8 broadcast_i8x4(const int8_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  static I16 load_i16(const void* p) { return load_u8(p); }
  static I16 broadcast_i32(const int16_t* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
  }
  static Int4Sum zero_sum() { return _mm256_setzero_si256(); }
  static Int4Sum first_sum(const int16_t (&pair)[2], int32_t) { return broadcast_i32(pair); }
  // The compiler would re-associate these exact sums into a tree and spill its many temporaries.
  static Int4Sum opaque(Int4Sum a) {
    asm("" : "+x"(a));
    return a;
  }
  static Int4Sum add_int4(Int4Sum sum, U8 w, U8 x) {
    asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(_mm256_maddubs_epi16(w, x)));
    return sum;
  }
  static F int4_to_float(Int4Sum a) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(a, _mm256_set1_epi16(1)));
  }
  static I16 even_i8(I16 a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
  static I16 odd_i8(I16 a) { return _mm256_srai_epi16(a, 8); }
  template <int N>
  static I16 nibble(I16 a) {
    if constexpr (N == 3) return _mm256_srli_epi16(a, 12);
    return _mm256_and_si256(N ? _mm256_srli_epi16(a, 4 * N) : a, _mm256_set1_epi16(15));
  }
  static I32 set_i32(int32_t x) { return _mm256_set1_epi32(x); }
  static I32 zero_i32() { return _mm256_setzero_si256(); }
  static I32 add_products(I32 sum, I16 w, I16 x) {
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(w, x)));
    return sum;
  }
  static F to_float(I32 a) { return _mm256_cvtepi32_ps(a); }

  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
  static void prefetch_far(const void* p) {
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
  }
  // Weights stream from memory once per step; the hardware prefetcher alone leaves a sixth of the
  // bandwidth unused.
  static void prefetch_stream(const void* p, size_t bytes) {
    constexpr size_t kAhead = 1152;
    const char* next = static_cast<const char*>(p) + kAhead;
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(next + i, _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace glimmer

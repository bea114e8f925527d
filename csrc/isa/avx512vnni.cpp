// Products and attention in AVX-512 with VNNI: a line of a strip is one register, and four products
// of bytes are added in one instruction. Elementwise work stays in AVX2: it is little, and its sums
// have their lanes.

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/kernels.h"

#if defined(__clang__)
#define GLIMMER_UNROLL _Pragma("unroll")
#pragma clang attribute push(                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
    apply_to = function)
#else
#define GLIMMER_UNROLL _Pragma("GCC unroll 16")
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

#include "isa/avx2_vector.h"
#include "kernels/make_kernels.h"

namespace glimmer {
namespace {

struct Avx512Vnni {
  using Eight = Avx2;
  using F = __m512;
  using U8 = __m512i;
  using I16 = __m512i;
  using I32 = __m512i;
  using Int4Sum = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 8;  // twice as many sums: as many as fill both pipes

  static constexpr int strips_at_once(int) { return 2; }

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_i8(const int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x));
  }
  static F load_bfloat(const uint16_t* p) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F add_to_exponent(F p, F rounded) {
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(rounded), 23)));
  }
  static __m256 low(F a) { return _mm512_castps512_ps256(a); }
  static __m256 high(F a) { return _mm512_extractf32x8_ps(a, 1); }
  static float sum_of(const F (&a)[2]) {
    return Avx2::sum_of({low(a[0]), high(a[0]), low(a[1]), high(a[1])});
  }
  static float largest_of(const F (&a)[2]) {
    return Avx2::largest_of({low(a[0]), high(a[0]), low(a[1]), high(a[1])});
  }

  static U8 load_u8(const void* p) { return _mm512_loadu_si512(p); }
  static U8 low_nibbles(U8 a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  static U8 high_nibbles(U8 a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
  static __m512i broadcast(const void* p) {
    int32_t x;
    std::memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
  }
  static U8 broadcast_i8x4(const int8_t* p) { return broadcast(p); }
  static Int4Sum zero_sum() { return _mm512_setzero_si512(); }
  static Int4Sum first_sum(const int16_t (&)[2], int32_t zero) { return _mm512_set1_epi32(zero); }
  static Int4Sum opaque(Int4Sum a) { return a; }
  static Int4Sum add_int4(Int4Sum sum, U8 w, U8 x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static F int4_to_float(Int4Sum a) { return to_float(a); }

  static I16 load_i16(const void* p) { return _mm512_loadu_si512(p); }
  static I16 broadcast_i32(const int16_t* p) { return broadcast(p); }
  static I16 even_i8(I16 a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); }
  static I16 odd_i8(I16 a) { return _mm512_srai_epi16(a, 8); }
  template <int N>
  static I16 nibble(I16 a) {
    if constexpr (N == 3) return _mm512_srli_epi16(a, 12);
    return _mm512_and_si512(N ? _mm512_srli_epi16(a, 4 * N) : a, _mm512_set1_epi16(15));
  }
  static I32 set_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static I32 zero_i32() { return _mm512_setzero_si512(); }
  static I32 add_products(I32 sum, I16 w, I16 x) { return _mm512_dpwssd_epi32(sum, w, x); }
  static F to_float(I32 a) { return _mm512_cvtepi32_ps(a); }

  static void prefetch(const void* p) { Avx2::prefetch(p); }
  static void prefetch_far(const void* p) { Avx2::prefetch_far(p); }
  static void prefetch_stream(const void* p, size_t bytes) { Avx2::prefetch_stream(p, bytes); }
};

}  // namespace

const Kernels& avx512vnni_kernels() {
  static constexpr Kernels kernels = make_kernels<Avx2, Avx512Vnni>();
  return kernels;
}

}  // namespace glimmer

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

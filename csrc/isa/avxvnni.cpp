// AVX2 with the products of VNNI in 256 bits, for processors without AVX-512.

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#define GLIMMER_UNROLL _Pragma("GCC unroll 8")
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#include "isa/avx2_vector.h"
#include "kernels/make_kernels.h"

namespace glimmer {
namespace {

struct AvxVnni : Avx2 {
  using Int4Sum = I32;
  static Int4Sum first_sum(const int16_t (&)[2], int32_t zero) { return set_i32(zero); }
  static Int4Sum opaque(Int4Sum a) { return a; }
  static Int4Sum add_int4(Int4Sum sum, U8 w, U8 x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
  static F int4_to_float(Int4Sum a) { return to_float(a); }
  static I32 add_products(I32 sum, I16 w, I16 x) { return _mm256_dpwssd_avx_epi32(sum, w, x); }
};

}  // namespace

const Kernels& avxvnni_kernels() {
  static constexpr Kernels kernels = make_kernels<Avx2, AvxVnni>();
  return kernels;
}

}  // namespace glimmer

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

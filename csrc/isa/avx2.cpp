// The kernels in AVX2, FMA and F16C. Everything that could be shared with code for lesser
// processors is included before the region below, so that no AVX instruction leaks out of it.

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#define GLIMMER_UNROLL _Pragma("GCC unroll 8")
#pragma GCC target("avx2,fma,f16c")
#endif

#include "isa/avx2_vector.h"
#include "kernels/make_kernels.h"

namespace glimmer {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels = make_kernels<Avx2>();
  return kernels;
}

}  // namespace glimmer

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif

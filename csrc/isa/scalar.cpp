// The vector type in plain C++: the definition of what every kernel computes.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/half.h"

#define GLIMMER_UNROLL
#include "kernels/make_kernels.h"

namespace glimmer {
namespace {

struct Scalar {
  using Eight = Scalar;
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;
  struct F {
    float v[8];
  };
  struct U8 {
    uint8_t v[32];
  };
  struct I16 {
    int16_t v[16];
  };
  struct I32 {
    int32_t v[8];
  };

  template <class Op>
  static F each(Op op) {
    F r;
    for (int i = 0; i < 8; ++i) r.v[i] = op(i);
    return r;
  }

  static constexpr int strips_at_once(int) { return 1; }

  static F zero() { return F{}; }
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F load(const float* p) {
    return each([&](int i) { return p[i]; });
  }
  static F load_part(const float* p, int n) {
    return each([&](int i) { return i < n ? p[i] : 0.0f; });
  }
  static F load_half(const uint16_t* p) {
    return each([&](int i) { return half_to_float(p[i]); });
  }
  static F load_i8(const int8_t* p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
  }
  static F load_bfloat(const uint16_t* p) {
    return each([&](int i) { return bfloat_to_float(p[i]); });
  }
  static void store(float* p, F a) { std::copy(a.v, a.v + 8, p); }
  static void store_part(float* p, int n, F a) { std::copy(a.v, a.v + std::min(n, 8), p); }
  static void store_half(uint16_t* p, F a) {
    for (int i = 0; i < 8; ++i) p[i] = float_to_half(a.v[i]);
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  // As the hardware has it: the second operand where they are unordered.
  static F max(F a, F b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(F a, F b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F abs(F a) {
    return each([&](int i) { return std::fabs(a.v[i]); });
  }
  static F round(F a) {  // half to even
    return each([&](int i) { return std::nearbyint(a.v[i]); });
  }
  static F exp2_int(F n) {  // 2^n for a whole n in [-126, 127]
    return each([&](int i) {
      return std::bit_cast<float>(static_cast<uint32_t>(to_int(n.v[i]) + 127) << 23);
    });
  }
  // p * 2^n, where n is in the lowest bits of `rounded`.
  static F add_to_exponent(F p, F rounded) {
    return each([&](int i) {
      return std::bit_cast<float>(std::bit_cast<uint32_t>(p.v[i]) +
                                  (std::bit_cast<uint32_t>(rounded.v[i]) << 23));
    });
  }
  static float sum(F a) {
    return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
  }
  static float largest(F a) {
    float m[4];
    for (int i = 0; i < 4; ++i) m[i] = a.v[i] > a.v[i + 4] ? a.v[i] : a.v[i + 4];
    for (int i = 0; i < 2; ++i) m[i] = m[i] > m[i + 2] ? m[i] : m[i + 2];
    return m[0] > m[1] ? m[0] : m[1];
  }
  static float sum_of(const F (&a)[4]) { return sum(add(add(a[0], a[1]), add(a[2], a[3]))); }
  static float largest_of(const F (&a)[4]) {
    return largest(max(max(a[0], a[1]), max(a[2], a[3])));
  }
  // Out of range and NaN give the smallest int32, as cvtps2dq does.
  static int32_t to_int(float x) {
    return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(x))
                                                    : INT32_MIN;
  }
  static void store_rounded_i16(int16_t* p, F a, F b) {
    for (int i = 0; i < 16; ++i) {
      const int32_t q = to_int(i < 8 ? a.v[i] : b.v[i - 8]);
      p[i] = static_cast<int16_t>(std::clamp(q, -32768, 32767));
    }
  }

  static U8 load_u8(const void* p) {
    U8 r;
    std::memcpy(r.v, p, 32);
    return r;
  }
  static U8 low_nibbles(U8 a) {
    for (uint8_t& x : a.v) x &= 15;
    return a;
  }
  static U8 high_nibbles(U8 a) {
    for (uint8_t& x : a.v) x >>= 4;
    return a;
  }
  static U8 broadcast_i8x4(const int8_t* p) {
    U8 r;
    for (int i = 0; i < 32; i += 4) std::memcpy(r.v + i, p, 4);
    return r;
  }
  static I16 load_i16(const void* p) {
    I16 r;
    std::memcpy(r.v, p, 32);
    return r;
  }
  static I16 broadcast_i32(const int16_t* p) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i & 1];
    return r;
  }
  using Int4Sum = I32;
  static Int4Sum zero_sum() { return zero_i32(); }
  static Int4Sum first_sum(const int16_t (&)[2], int32_t zero) { return set_i32(zero); }
  static Int4Sum opaque(Int4Sum a) { return a; }
  static Int4Sum add_int4(Int4Sum sum, U8 w, U8 x) {
    for (int i = 0; i < 32; ++i) sum.v[i / 4] += w.v[i] * static_cast<int8_t>(x.v[i]);
    return sum;
  }
  static F int4_to_float(Int4Sum a) { return to_float(a); }
  static I16 even_i8(I16 a) {
    for (int16_t& x : a.v) x = static_cast<int8_t>(x & 255);
    return a;
  }
  static I16 odd_i8(I16 a) {
    for (int16_t& x : a.v) x = static_cast<int16_t>(x >> 8);
    return a;
  }
  template <int N>
  static I16 nibble(I16 a) {
    for (int16_t& x : a.v) x = static_cast<int16_t>((static_cast<uint16_t>(x) >> (4 * N)) & 15);
    return a;
  }
  static I32 zero_i32() { return I32{}; }
  static I32 set_i32(int32_t x) {
    I32 r;
    for (int i = 0; i < 8; ++i) r.v[i] = x;
    return r;
  }
  static I32 add_products(I32 sum, I16 w, I16 x) {
    for (int i = 0; i < 16; ++i) sum.v[i / 2] += w.v[i] * x.v[i];
    return sum;
  }
  static F to_float(I32 a) {
    return each([&](int i) { return static_cast<float>(a.v[i]); });
  }
  static void prefetch(const void*) {}
  static void prefetch_far(const void*) {}
  static void prefetch_stream(const void*, size_t) {}
};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = make_kernels<Scalar>();
  return kernels;
}

}  // namespace glimmer

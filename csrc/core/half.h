// float16 and bfloat16 in plain integer arithmetic: bit-equal to F16C, whatever the machine has.
#pragma once

#include <bit>
#include <cstdint>

namespace glimmer {

// IEEE 754 binary16 to binary32; exact. A signalling NaN comes out quiet, as in hardware.
static inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ffu;
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13) | (fraction ? 0x400000u : 0));
  }
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float f = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(f));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// binary32 to binary16, round to nearest even; too large gives infinity.
static inline uint16_t float_to_half(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f), magnitude = x & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((x >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) {
    return sign | 0x7e00u | static_cast<uint16_t>((magnitude >> 13) & 0x3ffu);
  }
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;          // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                                // below 2^-14: a subnormal half
    if (magnitude < 0x33000000u) return sign;                   // below 2^-25: zero
    const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14 .. 24
    const uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1);
    const uint32_t tie = 1u << (shift - 1);
    return sign | static_cast<uint16_t>(kept + (rest > tie || (rest == tie && (kept & 1))));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>(rounded >> 13);
}

static inline float bfloat_to_float(uint16_t b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b) << 16);
}

static inline uint16_t float_to_bfloat(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f);
  if ((x & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((x >> 16) | 0x40u);
  return static_cast<uint16_t>((x + 0x7fffu + ((x >> 16) & 1)) >> 16);
}

}  // namespace glimmer

// The packed forms that the kernels read.
//
// Weights: a *strip* holds 16 output rows and is one forward stream. An integer strip is a row of
// blocks of 32 inputs; a 64-byte line of it holds 16 rows x 4 inputs, so that one line is one
// 512-bit (or two 256-bit) register, with each row's four inputs side by side for the dot product:
//
//        line j       row 0        row 1              row 15
//        int8     [k0 k1 k2 k3][k0 k1 k2 k3]  ...  [k0 k1 k2 k3]      k0 = 4j
//        int4     the same for inputs 4j.. in the low nibbles and 16+4j.. in the high ones
//
// A float strip holds 16 rows per input. Formats of 5 and 6 bits are held in the lines of 8; those
// with scales of scales keep both behind the lines.
//
// Activations: a *tile* holds 1 to 4 tokens, interleaved per block: one forward stream as well.
#pragma once

#include <cstdint>

namespace glimmer {

inline constexpr int kStripRows = 16;
inline constexpr int kMaxTile = 4;  // tokens per activation tile

struct Int8Block {  // 16 rows x 32 inputs
  int8_t q[8][64];
  uint16_t scale[16];
};
struct Int4Block {
  uint8_t q[4][64];
  uint16_t scale[16];
};
struct Int4MinBlock {
  uint8_t q[4][64];
  uint16_t scale[16];
  uint16_t minimum[16];
};
// Weights with scales of scales: d * scale * q + dm * minimum. Their products are exact in float32.
struct Int8ScaledBlock {
  int8_t q[8][64];
  uint16_t d[16];
  uint16_t dm[16];
  int8_t scale[2][16];  // of the first and the last 16 inputs
  int8_t minimum[16];
};
struct Int4ScaledBlock {
  uint8_t q[4][64];
  uint16_t d[16];
  uint16_t dm[16];
  int8_t scale[16];
  int8_t minimum[16];
};
static_assert(sizeof(Int8ScaledBlock) == 624 && sizeof(Int4ScaledBlock) == 352);
static_assert(sizeof(Int8Block) == 544 && sizeof(Int4Block) == 288 && sizeof(Int4MinBlock) == 320);

// 32 inputs of T tokens as int8 with one scale per token, for int4 weights.
template <int T>
struct Int8Tile {
  int8_t q[T][32];
  float scale[T];
  float scaled_sum[T];  // scale * sum of q: what a weight's minimum is multiplied with
  // Where the sums of weights that stand for eight less start: -8 * the sums of q at (0,1 mod 4)
  // and (2,3 mod 4), for sums in int16, and of all q, for those in int32.
  int16_t zero_pair[T][2];
  int32_t zero[T];
};

// 32 inputs of T tokens as int16: for int8 weights, and for int4 weights where accuracy comes
// before prefill speed. Each four inputs lie in the order 0, 2, 1, 3, the order in which shifts
// split a line of weights.
template <int T>
struct Int16Tile {
  int16_t q[T][32];
  float scale[T];
  float scaled_sum[T];
  int32_t zero[T];  // -8 * sum of q
};

}  // namespace glimmer

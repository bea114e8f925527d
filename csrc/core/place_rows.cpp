// Whole strips at once: 16 rows side by side, near the speed of memory. What each type becomes is
// told by place_row; here it is only done faster, for the types that most files hold.

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cstring>

#include "core/packing.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

// 16 rows, each `stride` bytes behind the one before.
struct Rows {
  const uint8_t* first;
  size_t stride;
  const uint8_t* operator[](int row) const { return first + row * stride; }
};

#if defined(__SSE2__)
__m128i load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

// Word i of each of four rows becomes the 16 bytes at to + i * stride.
void transpose(__m128i a, __m128i b, __m128i c, __m128i d, uint8_t* to, size_t stride) {
  const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
  const __m128i ab_high = _mm_unpackhi_epi32(a, b), cd_high = _mm_unpackhi_epi32(c, d);
  const auto store = [&](int i, __m128i words) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * stride), words);
  };
  store(0, _mm_unpacklo_epi64(ab, cd));
  store(1, _mm_unpackhi_epi64(ab, cd));
  store(2, _mm_unpacklo_epi64(ab_high, cd_high));
  store(3, _mm_unpackhi_epi64(ab_high, cd_high));
}
#endif

// Four bytes of each row make a line of 64: 16 bytes of each row become four lines.
void place_words(Rows from, uint8_t* lines) {
#if defined(__SSE2__)
  for (int row = 0; row < kStripRows; row += 4) {
    transpose(load(from[row]), load(from[row + 1]), load(from[row + 2]), load(from[row + 3]),
              lines + 4 * row, 64);
  }
#else
  for (int row = 0; row < kStripRows; ++row) {
    for (int line = 0; line < 4; ++line) {
      std::memcpy(lines + 64 * line + 4 * row, from[row] + 4 * line, 4);
    }
  }
#endif
}

// Two bytes of each row make a line of 32: 16 bytes of each row become eight lines.
void place_halves(Rows from, uint8_t* lines) {
#if defined(__SSE2__)
  for (int row = 0; row < kStripRows; row += 8) {
    __m128i low[4], high[4];  // two rows each, so that their halves are words
    for (int i = 0; i < 4; ++i) {
      const __m128i a = load(from[row + 2 * i]), b = load(from[row + 2 * i + 1]);
      low[i] = _mm_unpacklo_epi16(a, b);
      high[i] = _mm_unpackhi_epi16(a, b);
    }
    transpose(low[0], low[1], low[2], low[3], lines + 2 * row, 32);
    transpose(high[0], high[1], high[2], high[3], lines + 4 * 32 + 2 * row, 32);
  }
#else
  for (int row = 0; row < kStripRows; ++row) {
    for (int line = 0; line < 8; ++line) {
      std::memcpy(lines + 32 * line + 2 * row, from[row] + 2 * line, 2);
    }
  }
#endif
}

// The two bytes at the start of each row's block, such as its scale.
void gather(Rows from, uint16_t* to) {
  for (int row = 0; row < kStripRows; ++row) std::memcpy(&to[row], from[row], 2);
}

template <class Block>
uint8_t* lines_of(Block& block) {
  return reinterpret_cast<uint8_t*>(block.q);
}

void place_block(Rows from, Int8Block& block) {
  gather(from, block.scale);
  for (int half = 0; half < 2; ++half) {
    place_words({from.first + 2 + 16 * half, from.stride}, lines_of(block) + 4 * 64 * half);
  }
}

void place_block(Rows from, Int4Block& block) {
  gather(from, block.scale);
  place_words({from.first + 2, from.stride}, lines_of(block));
}

void place_block(Rows from, Int4MinBlock& block) {
  gather(from, block.scale);
  gather({from.first + 2, from.stride}, block.minimum);
  place_words({from.first + 4, from.stride}, lines_of(block));
}

// A stored block of q4_k is eight packed ones.
void place_block(Rows from, Int4ScaledBlock (&blocks)[8]) {
  for (Int4ScaledBlock& block : blocks) {
    gather(from, block.d);
    gather({from.first + 2, from.stride}, block.dm);
  }
  for (int row = 0; row < kStripRows; ++row) {
    const uint8_t* scales = from[row] + 4;
    for (int g = 0; g < 8; ++g) {
      int8_t scale, minimum;
      split_scale(scales, g, scale, minimum);
      blocks[g].scale[row] = scale;
      blocks[g].minimum[row] = static_cast<int8_t>(-minimum);
    }
  }
  for (int pair = 0; pair < 4; ++pair) {  // 32 bytes hold one group low and one high
    alignas(16) uint8_t nibbles[2][kStripRows][16];
    for (int row = 0; row < kStripRows; ++row) {
      const uint8_t* bytes = from[row] + 16 + 32 * pair;
      for (int i = 0; i < 16; ++i) {
        nibbles[0][row][i] = static_cast<uint8_t>((bytes[i] & 15) | bytes[i + 16] << 4);
        nibbles[1][row][i] = static_cast<uint8_t>(bytes[i] >> 4 | (bytes[i + 16] & 240));
      }
    }
    for (int i = 0; i < 2; ++i) {
      place_words({nibbles[i][0], 16}, lines_of(blocks[2 * pair + i]));
    }
  }
}

template <class Block>
void place_blocks(DType dtype, Rows from, int cols, uint8_t* strip) {
  const DTypeInfo& type = info(dtype);
  for (int i = 0; i < cols; i += type.block_size) {
    place_block(from, *reinterpret_cast<Block*>(strip));
    from.first += type.block_bytes;
    strip += type.strip_bytes;
  }
}

// Columns that do not fill 16 bytes of a row are left; returns how many are placed.
int place_floats(DType dtype, Rows from, int cols, uint8_t* strip) {
  const bool halves = dtype != DType::kF32;
  const int step = halves ? 8 : 4;
  int col = 0;
  for (; col + step <= cols; col += step) {
    if (halves) {
      place_halves(from, strip);
    } else {
      place_words(from, strip);
    }
    from.first += 16;
    strip += 16 * kStripRows;
  }
  return col;
}

}  // namespace

void place_rows(DType dtype, const uint8_t* rows, int num_rows, int cols, uint8_t* strip) {
  const size_t stride = row_bytes(dtype, cols);
  int placed = 0;  // leading columns
  if (num_rows == kStripRows) {
    const Rows from{rows, stride};
    switch (dtype) {
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        placed = place_floats(dtype, from, cols, strip);
        break;
      case DType::kQ8_0:
        return place_blocks<Int8Block>(dtype, from, cols, strip);
      case DType::kQ4_0:
        return place_blocks<Int4Block>(dtype, from, cols, strip);
      case DType::kQ4_1:
        return place_blocks<Int4MinBlock>(dtype, from, cols, strip);
      case DType::kQ4K:
        return place_blocks<Int4ScaledBlock[8]>(dtype, from, cols, strip);
      case DType::kQ5_0:
      case DType::kQ5_1:
      case DType::kQ5K:
      case DType::kQ6K:
        break;
    }
  }
  const size_t read = row_bytes(dtype, placed);
  uint8_t* rest = strip + strip_bytes(dtype, placed);
  for (int row = 0; row < num_rows; ++row) {
    place_row(dtype, rows + row * stride + read, cols - placed, row, rest);
  }
}

}  // namespace glimmer

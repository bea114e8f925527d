#include "core/packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/half.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

constexpr int kMaxGroups = 8;  // of 32 weights, in a block of a file

template <class T>
T read(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void write(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

// Integer blocks taken apart: each weight is d * scale * q + dm * minimum, with one scale for 16
// weights and one minimum for 32. All of it is exact but the last sum, as in GGML.
struct Parts {
  bool has_minimum = false;
  uint16_t d = 0, dm = 0;  // float16
  int8_t q[kMaxGroups][kGroup];
  int8_t scale[kMaxGroups][2];
  int8_t minimum[kMaxGroups];
};

void decode(const Parts& parts, int groups, float* out) {
  const float d = half_to_float(parts.d), dm = half_to_float(parts.dm);
  for (int g = 0; g < groups; ++g) {
    const float low = dm * static_cast<float>(parts.minimum[g]);
    for (int i = 0; i < kGroup; ++i) {
      const float scale = d * static_cast<float>(parts.scale[g][i / 16]);
      const float product = scale * static_cast<float>(parts.q[g][i]);
      *out++ = parts.has_minimum ? product + low : product;
    }
  }
}

void set_scales(Parts& parts, int8_t scale, int8_t minimum) {
  std::memset(parts.scale, scale, sizeof(parts.scale));
  std::memset(parts.minimum, minimum, sizeof(parts.minimum));
}

// The low nibbles of 16 bytes are the first 16 weights of a group, the high ones the rest.
void split_nibbles(const uint8_t* bytes, int8_t* q) {
  for (int i = 0; i < 16; ++i) {
    q[i] = static_cast<int8_t>(bytes[i] & 15);
    q[i + 16] = static_cast<int8_t>(bytes[i] >> 4);
  }
}

// The 6-bit scales and minimums of 8 groups.
void split_scales(const uint8_t* bytes, Parts& parts) {
  for (int g = 0; g < kMaxGroups; ++g) {
    int8_t scale, minimum;
    split_scale(bytes, g, scale, minimum);
    parts.scale[g][0] = parts.scale[g][1] = scale;
    parts.minimum[g] = static_cast<int8_t>(-minimum);
  }
}

// A stored block of an integer type. Layouts: ggml-common.h.
void take_apart(DType dtype, const uint8_t* block, Parts& parts) {
  parts.d = read<uint16_t>(block);
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;  // no integers
    case DType::kQ8_0:
      set_scales(parts, 1, 0);
      std::memcpy(parts.q[0], block + 2, kGroup);
      break;
    case DType::kQ4_0:
      set_scales(parts, 1, 0);
      split_nibbles(block + 2, parts.q[0]);
      for (int8_t& q : parts.q[0]) q = static_cast<int8_t>(q - 8);
      break;
    case DType::kQ4_1:
      set_scales(parts, 1, 1);
      parts.has_minimum = true;
      parts.dm = read<uint16_t>(block + 2);
      split_nibbles(block + 4, parts.q[0]);
      break;
    case DType::kQ5_0:
    case DType::kQ5_1: {
      parts.has_minimum = dtype == DType::kQ5_1;
      set_scales(parts, 1, parts.has_minimum);
      if (parts.has_minimum) parts.dm = read<uint16_t>(block + 2);
      const uint8_t* high = block + (parts.has_minimum ? 4 : 2);
      const auto bits = read<uint32_t>(high);
      split_nibbles(high + 4, parts.q[0]);
      const int zero = parts.has_minimum ? 0 : 16;
      for (int i = 0; i < kGroup; ++i) {
        parts.q[0][i] = static_cast<int8_t>((parts.q[0][i] | ((bits >> i & 1) << 4)) - zero);
      }
      break;
    }
    case DType::kQ4K:
    case DType::kQ5K: {
      const bool five = dtype == DType::kQ5K;
      parts.has_minimum = true;
      parts.dm = read<uint16_t>(block + 2);
      split_scales(block + 4, parts);
      const uint8_t* high = block + 16;  // of q5_k: bit g of byte i is the fifth of weight i
      const uint8_t* low = five ? high + 32 : high;
      for (int g = 0; g < kMaxGroups; ++g) {
        for (int i = 0; i < kGroup; ++i) {
          const int nibble = low[g / 2 * 32 + i] >> (g % 2 * 4) & 15;
          const int fifth = five ? (high[i] >> g & 1) << 4 : 0;
          parts.q[g][i] = static_cast<int8_t>(nibble | fifth);
        }
      }
      break;
    }
    case DType::kQ6K: {
      const uint8_t *low = block, *high = block + 128, *scales = block + 192;
      parts.d = read<uint16_t>(block + 208);
      for (int g = 0; g < kMaxGroups; ++g) {
        const int half = g / 4, quarter = g % 4;  // 128 weights share 64 + 32 bytes
        for (int i = 0; i < kGroup; ++i) {
          const int nibble = low[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
          const int rest = high[half * 32 + i] >> (quarter * 2) & 3;
          parts.q[g][i] = static_cast<int8_t>((nibble | rest << 4) - 32);
        }
        std::memcpy(parts.scale[g], scales + 2 * g, 2);
        parts.minimum[g] = 0;
      }
      break;
    }
  }
}

template <class Block>
int8_t nibble_at(const Block& block, int place, int i) {
  const uint8_t byte = block.q[i % 16 / 4][4 * place + i % 4];
  return static_cast<int8_t>(i < 16 ? byte & 15 : byte >> 4);
}

// One packed block of an integer type, at a place of its strip.
void take_apart_packed(DType dtype, const uint8_t* packed, int place, Parts& parts) {
  set_scales(parts, 1, 1);
  switch (dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
      break;  // no integers
    case DType::kQ8_0:
    case DType::kQ5_0: {
      const auto& block = *reinterpret_cast<const Int8Block*>(packed);
      parts.d = block.scale[place];
      for (int i = 0; i < kGroup; ++i) parts.q[0][i] = block.q[i / 4][4 * place + i % 4];
      break;
    }
    case DType::kQ4_0: {
      const auto& block = *reinterpret_cast<const Int4Block*>(packed);
      parts.d = block.scale[place];
      for (int i = 0; i < kGroup; ++i) {
        parts.q[0][i] = static_cast<int8_t>(nibble_at(block, place, i) - 8);
      }
      break;
    }
    case DType::kQ4_1: {
      const auto& block = *reinterpret_cast<const Int4MinBlock*>(packed);
      parts.has_minimum = true;
      parts.d = block.scale[place];
      parts.dm = block.minimum[place];
      for (int i = 0; i < kGroup; ++i) parts.q[0][i] = nibble_at(block, place, i);
      break;
    }
    case DType::kQ4K: {
      const auto& block = *reinterpret_cast<const Int4ScaledBlock*>(packed);
      parts.has_minimum = true;
      parts.d = block.d[place];
      parts.dm = block.dm[place];
      parts.scale[0][0] = parts.scale[0][1] = block.scale[place];
      parts.minimum[0] = block.minimum[place];
      for (int i = 0; i < kGroup; ++i) parts.q[0][i] = nibble_at(block, place, i);
      break;
    }
    case DType::kQ5_1:
    case DType::kQ5K:
    case DType::kQ6K: {
      const auto& block = *reinterpret_cast<const Int8ScaledBlock*>(packed);
      parts.has_minimum = dtype != DType::kQ6K;
      parts.d = block.d[place];
      parts.dm = block.dm[place];
      parts.scale[0][0] = block.scale[0][place];
      parts.scale[0][1] = block.scale[1][place];
      parts.minimum[0] = block.minimum[place];
      for (int i = 0; i < kGroup; ++i) parts.q[0][i] = block.q[i / 4][4 * place + i % 4];
      break;
    }
  }
}

// 32 integers of one row, as a file stores or as `Parts` holds them, into the lines of a block.
template <class Block>
void place_bytes(const void* bytes, int place, Block& block) {
  for (int line = 0; line < 8; ++line) {
    std::memcpy(&block.q[line][4 * place], static_cast<const int8_t*>(bytes) + 4 * line, 4);
  }
}

// 16 bytes, each of which pairs weights i and i + 16.
template <class Block>
void place_nibbles(const uint8_t* bytes, int place, Block& block) {
  for (int line = 0; line < 4; ++line) std::memcpy(&block.q[line][4 * place], bytes + 4 * line, 4);
}

void place_parts(const Parts& parts, int group, int place, Int8ScaledBlock& block) {
  place_bytes(parts.q[group], place, block);
  block.d[place] = parts.d;
  block.dm[place] = parts.dm;
  block.scale[0][place] = parts.scale[group][0];
  block.scale[1][place] = parts.scale[group][1];
  block.minimum[place] = parts.minimum[group];
}

void place_parts(const Parts& parts, int group, int place, Int4ScaledBlock& block) {
  uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) {
    bytes[i] = static_cast<uint8_t>(parts.q[group][i] | parts.q[group][i + 16] << 4);
  }
  place_nibbles(bytes, place, block);
  block.d[place] = parts.d;
  block.dm[place] = parts.dm;
  block.scale[place] = parts.scale[group][0];
  block.minimum[place] = parts.minimum[group];
}

// A stored block whose packed form differs from it: one packed block for each group.
template <class Block>
void repack(DType dtype, const uint8_t* stored, int place, uint8_t* strip) {
  Parts parts;
  take_apart(dtype, stored, parts);
  for (int g = 0; g < info(dtype).block_size / kGroup; ++g) {
    place_parts(parts, g, place, reinterpret_cast<Block*>(strip)[g]);
  }
}

// Calls work(thread, first row, number of rows) for every strip, on all threads.
template <class Work>
void each_strip(int rows, ThreadPool& pool, const Work& work) {
  std::atomic<int> next{0};
  pool.run([&](int thread) {
    for (int first; (first = kStripRows * next.fetch_add(1)) < rows;) {
      work(thread, first, std::min(rows - first, kStripRows));
    }
  });
}

// Packs rows that decode(row, out) gives as float32.
template <class Decode>
void convert_rows(DType kept, uint8_t* packed, int rows, int cols, ThreadPool& pool,
                  const Decode& decode) {
  const size_t kept_bytes = row_bytes(kept, cols);
  struct Scratch {
    std::vector<float> floats;
    std::vector<uint8_t> rows;
  };
  std::vector<Scratch> scratches(pool.num_threads());
  for (Scratch& s : scratches) {
    s.floats.resize(cols);
    s.rows.resize(kept_bytes * kStripRows);
  }
  each_strip(rows, pool, [&](int thread, int first, int count) {
    Scratch& s = scratches[thread];
    for (int row = 0; row < count; ++row) {
      decode(first + row, s.floats.data());
      encode_row(kept, s.floats.data(), cols, s.rows.data() + row * kept_bytes);
    }
    place_rows(kept, s.rows.data(), count, cols,
               packed + first / kStripRows * strip_bytes(kept, cols));
  });
}

float decode_float(DType dtype, const uint8_t* p) {
  if (dtype == DType::kF32) return read<float>(p);
  const auto bits = read<uint16_t>(p);
  return dtype == DType::kF16 ? half_to_float(bits) : bfloat_to_float(bits);
}

}  // namespace

void split_scale(const uint8_t* bytes, int g, int8_t& scale, int8_t& minimum) {
  if (g < 4) {
    scale = static_cast<int8_t>(bytes[g] & 63);
    minimum = static_cast<int8_t>(bytes[g + 4] & 63);
  } else {
    scale = static_cast<int8_t>((bytes[g + 4] & 15) | ((bytes[g - 4] >> 6) << 4));
    minimum = static_cast<int8_t>((bytes[g + 4] >> 4) | ((bytes[g] >> 6) << 4));
  }
}

size_t row_bytes(DType dtype, int cols) {
  return static_cast<size_t>(cols / info(dtype).block_size) * info(dtype).block_bytes;
}

size_t strip_bytes(DType dtype, int cols) {
  return static_cast<size_t>(cols / info(dtype).block_size) * info(dtype).strip_bytes;
}

size_t matrix_bytes(DType dtype, int rows, int cols) {
  return strip_bytes(dtype, cols) * ((rows + kStripRows - 1) / kStripRows);
}

void decode_row(DType dtype, const uint8_t* row, int cols, float* out) {
  const DTypeInfo& type = info(dtype);
  for (int i = 0; i < cols; i += type.block_size, row += type.block_bytes) {
    if (!type.integer) {
      out[i] = decode_float(dtype, row);
      continue;
    }
    Parts parts;
    take_apart(dtype, row, parts);
    decode(parts, type.block_size / kGroup, out + i);
  }
}

void unpack_row(DType dtype, const uint8_t* strip, int cols, int place, float* out) {
  const DTypeInfo& type = info(dtype);
  const int width = type.integer ? kGroup : 1;  // of a packed block
  const int packed_bytes = type.strip_bytes / (type.block_size / width);
  for (int i = 0; i < cols; i += width, strip += packed_bytes) {
    if (!type.integer) {
      out[i] = decode_float(dtype, strip + packed_bytes / kStripRows * place);
      continue;
    }
    Parts parts;
    take_apart_packed(dtype, strip, place, parts);
    decode(parts, 1, out + i);
  }
}

//
void encode_row(DType dtype, const float* x, int cols, uint8_t* row) {
  const DTypeInfo& type = info(dtype);
  for (int i = 0; i < cols; i += type.block_size, row += type.block_bytes, x += type.block_size) {
    switch (dtype) {
      case DType::kF32:
        write(row, *x);
        break;
      case DType::kF16:
        write(row, float_to_half(*x));
        break;
      case DType::kBF16:
        write(row, float_to_bfloat(*x));
        break;
      case DType::kQ8_0: {
        float largest = 0;
        for (int j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
        const float d = largest / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        write(row, float_to_half(d));
        for (int j = 0; j < 32; ++j)
          write(row + 2 + j, static_cast<int8_t>(std::round(x[j] * inverse)));
        break;
      }
      case DType::kQ4_0: {
        float largest = 0;  // keeps its sign: it becomes -8
        for (int j = 0; j < 32; ++j) {
          if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
        }
        const float d = largest / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        write(row, float_to_half(d));
        const auto nibble = [&](float v) {
          return static_cast<uint8_t>(std::min(15, static_cast<int>(v * inverse + 8.5f)));
        };
        for (int j = 0; j < 16; ++j) {
          row[2 + j] = static_cast<uint8_t>(nibble(x[j]) | (nibble(x[j + 16]) << 4));
        }
        break;
      }
      case DType::kQ4_1: {
        const auto [low, high] = std::minmax_element(x, x + 32);
        const float d = (*high - *low) / 15.0f, inverse = d != 0 ? 1.0f / d : 0.0f, m = *low;
        write(row, float_to_half(d));
        write(row + 2, float_to_half(m));
        const auto nibble = [&](float v) {
          return static_cast<uint8_t>(std::min(15, static_cast<int>((v - m) * inverse + 0.5f)));
        };
        for (int j = 0; j < 16; ++j) {
          row[4 + j] = static_cast<uint8_t>(nibble(x[j]) | (nibble(x[j + 16]) << 4));
        }
        break;
      }
      case DType::kQ5_0:
      case DType::kQ5_1:
      case DType::kQ4K:
      case DType::kQ5K:
      case DType::kQ6K:
        break;  // read, not written: info(dtype).writable
    }
  }
}

void place_row(DType dtype, const uint8_t* row, int cols, int place, uint8_t* strip) {
  const DTypeInfo& type = info(dtype);
  for (int i = 0; i < cols; i += type.block_size) {
    switch (dtype) {
      case DType::kF32:
        std::memcpy(strip + 4 * place, row, 4);
        break;
      case DType::kF16:
      case DType::kBF16:
        std::memcpy(strip + 2 * place, row, 2);
        break;
      case DType::kQ8_0: {
        auto& block = *reinterpret_cast<Int8Block*>(strip);
        std::memcpy(&block.scale[place], row, 2);
        place_bytes(row + 2, place, block);
        break;
      }
      case DType::kQ4_0: {
        auto& block = *reinterpret_cast<Int4Block*>(strip);
        std::memcpy(&block.scale[place], row, 2);
        place_nibbles(row + 2, place, block);
        break;
      }
      case DType::kQ4_1: {
        auto& block = *reinterpret_cast<Int4MinBlock*>(strip);
        std::memcpy(&block.scale[place], row, 2);
        std::memcpy(&block.minimum[place], row + 2, 2);
        place_nibbles(row + 4, place, block);
        break;
      }
      case DType::kQ5_0: {
        Parts parts;
        take_apart(dtype, row, parts);
        auto& block = *reinterpret_cast<Int8Block*>(strip);
        block.scale[place] = parts.d;
        place_bytes(parts.q[0], place, block);
        break;
      }
      case DType::kQ4K:
        repack<Int4ScaledBlock>(dtype, row, place, strip);
        break;
      case DType::kQ5_1:
      case DType::kQ5K:
      case DType::kQ6K:
        repack<Int8ScaledBlock>(dtype, row, place, strip);
        break;
    }
    row += type.block_bytes;
    strip += type.strip_bytes;
  }
}

void pack_matrix(DType dtype, const uint8_t* data, int rows, int cols, DType kept, uint8_t* packed,
                 ThreadPool& pool) {
  const size_t stored_bytes = row_bytes(dtype, cols);
  if (kept != dtype) {
    convert_rows(kept, packed, rows, cols, pool, [&](int row, float* out) {
      decode_row(dtype, data + row * stored_bytes, cols, out);
    });
    return;
  }
  each_strip(rows, pool, [&](int, int first, int count) {
    place_rows(dtype, data + first * stored_bytes, count, cols,
               packed + first / kStripRows * strip_bytes(dtype, cols));
  });
}

void convert_packed(DType dtype, const uint8_t* from, int rows, int cols, DType kept, uint8_t* to,
                    ThreadPool& pool) {
  convert_rows(kept, to, rows, cols, pool, [&](int row, float* out) {
    const uint8_t* strip = from + row / kStripRows * strip_bytes(dtype, cols);
    unpack_row(dtype, strip, cols, row % kStripRows, out);
  });
}

}  // namespace glimmer

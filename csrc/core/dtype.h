// How weights are stored. The block layouts are GGML's (ggml-common.h); 32 weights share a scale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glimmer {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4K,
  kQ5K,
  kQ6K
};
inline constexpr int kNumDTypes = 11;
inline constexpr int kGroup = 32;  // activations per scale, and weights per packed block

struct DTypeInfo {
  const char* name;
  int block_size;   // weights per block of the file
  int block_bytes;  // bytes per block of the file
  int strip_bytes;  // bytes of 16 rows x block_size, packed
  bool integer;     // multiplied with integer activations; otherwise with float32
  bool nibbles;     // packed in 4 bits: meets int8 or int16 activations, others int16
  bool writable;    // whether float32 weights can be quantised to it
};

inline constexpr DTypeInfo kDTypes[kNumDTypes] = {
    {"float32", 1, 4, 64, false, false, true},
    {"float16", 1, 2, 32, false, false, true},
    {"bfloat16", 1, 2, 32, false, false, true},
    {"q8_0", 32, 34, 544, true, false, true},         // f16 scale, 32 x int8
    {"q4_0", 32, 18, 288, true, true, true},          // f16 scale, 32 x 4 bits, less 8
    {"q4_1", 32, 20, 320, true, true, true},          // f16 scale, f16 minimum, 32 x 4 bits
    {"q5_0", 32, 22, 544, true, false, false},        // f16 scale, 32 x 5 bits, less 16
    {"q5_1", 32, 24, 624, true, false, false},        // f16 scale, f16 minimum, 32 x 5 bits
    {"q4_k", 256, 144, 8 * 352, true, true, false},   // 8 groups, each a q4_1 of 6-bit scales
    {"q5_k", 256, 176, 8 * 624, true, false, false},  // the same with 5 bits
    {"q6_k", 256, 210, 8 * 624, true, false, false},  // 6 bits less 32, int8 scales of 16
};

constexpr int index(DType t) { return static_cast<int>(t); }
constexpr const DTypeInfo& info(DType t) { return kDTypes[index(t)]; }

// How the inputs of a product are stored while it runs.
enum class Form : uint8_t { kFloat, kInt8, kInt16 };
inline constexpr int kNumForms = 3;
constexpr int index(Form f) { return static_cast<int>(f); }
constexpr unsigned bit(Form f) { return 1u << index(f); }

// How the KV cache stores keys and values.
enum class KVDType : uint8_t { kF32, kF16, kI8 };
inline constexpr int kNumKVDTypes = 3;
constexpr int index(KVDType t) { return static_cast<int>(t); }

// Throws Error(kUnsupportedTensorType) that lists the names that are allowed.
DType dtype_from_name(std::string_view name);

}  // namespace glimmer

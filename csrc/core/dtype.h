// How weights are stored. The block layouts are GGML's (ggml-common.h); 32 weights share a scale.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace glimmer {

enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };
inline constexpr int kNumDTypes = 6;
inline constexpr int kGroup = 32;  // weights per scale, and activations per scale

struct DTypeInfo {
  const char* name;
  int block_size;   // weights per block of the file
  int block_bytes;  // bytes per block of the file
  int strip_bytes;  // bytes of a packed block of 16 rows x block_size
  bool integer;     // multiplied with integer activations; otherwise with float32
};

inline constexpr DTypeInfo kDTypes[kNumDTypes] = {
    {"float32", 1, 4, 64, false},   //
    {"float16", 1, 2, 32, false},   //
    {"bfloat16", 1, 2, 32, false},  //
    {"q8_0", 32, 34, 544, true},    // f16 scale, 32 x int8
    {"q4_0", 32, 18, 288, true},    // f16 scale, 16 bytes: low nibbles 0..15, high 16..31; less 8
    {"q4_1", 32, 20, 320, true},    // f16 scale, f16 minimum, 16 bytes of nibbles
};

constexpr int index(DType t) { return static_cast<int>(t); }
constexpr const DTypeInfo& info(DType t) { return kDTypes[index(t)]; }

// How the inputs of a product are stored while it runs.
enum class Form : uint8_t { kFloat, kInt8, kInt16 };
inline constexpr int kNumForms = 3;
constexpr int index(Form f) { return static_cast<int>(f); }
constexpr unsigned bit(Form f) { return 1u << index(f); }

// How the KV cache stores keys and values.
enum class KVDType : uint8_t { kF32, kF16 };
inline constexpr int kNumKVDTypes = 2;
constexpr int index(KVDType t) { return static_cast<int>(t); }

// Throws Error(kUnsupportedTensorType) that lists the names that are allowed.
DType dtype_from_name(std::string_view name);

}  // namespace glimmer

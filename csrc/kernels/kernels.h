// The kernels of one instruction set as a table of functions, and the layouts they share with the
// core. The bodies are templates over a vector type in the other headers of this folder.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "kernels/tiles.h"

namespace glimmer {

inline constexpr int kPageTokens = 32;
inline constexpr int kSplitTokens = 512;
inline constexpr int kAttentionRows = 16;
inline constexpr int kSplitPages = kSplitTokens / kPageTokens;
inline constexpr int kPagesAhead = 2;        // so many pages before its use memory is asked for
inline constexpr float kNoMaximum = -1e30f;  // of a row that sees no key of the split

// Channels of a value page are padded to whole vectors.
constexpr int padded_channels(int head_dim) { return (head_dim + 7) / 8 * 8; }

struct AttentionSplit {
  const float* queries;  // [head_dim][16], scaled
  int rows;              // 1..16
  const int* visible;    // [rows] keys of this split that each row sees, 0..512
  int keys;              // largest of visible
  int head_dim;
  const void* const* key_pages;    // [ceil(keys / 32)] -> [head_dim][32]; int8: and float [32]
  const void* const* value_pages;  // -> [32][padded_channels]; int8: and float [32]
  const void* const* next_pages;   // [kPagesAhead] that are likely to be read after these
  float* scratch;                  // [kAttentionScratch]
  // Results: the softmax's running maximum and sum, and the unnormalised output.
  float* maximum;  // [16]
  float* sum;      // [16]
  float* out;      // [16][padded_channels]
};

// Score rows are padded so that the 16 of them do not fall on the same cache sets.
inline constexpr int kScoreStride = kSplitTokens + 16;

inline constexpr size_t kAttentionScratch = static_cast<size_t>(kAttentionRows) * kScoreStride;

struct Kernels {
  // c[t][16 s + r] = row r of strip s times token t of the tile, for `strips` strips that lie
  // `strip_bytes` apart; k inputs. Indexed by weight type, form of activations and tokens in the
  // tile less one; null where weights of a type are not multiplied in that form.
  using Dot = void (*)(const uint8_t* w, size_t strip_bytes, int strips, const void* tile, int k,
                       float* c, size_t ldc);
  // One token's k inputs into lane `lane` of a tile.
  using Pack = void (*)(const float* x, int k, int lane, void* tile);

  Dot dot[kNumDTypes][kNumForms][kMaxTile];
  Pack pack[kNumForms][kMaxTile];
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int n, float eps,
                     float* out);
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  void (*gelu_tanh)(const float* x, int n, float* out);
  float (*exp_shifted)(float* x, int n, float shift);
  void (*to_half)(const float* x, int n, uint16_t* out);
  float (*quantize_row)(const float* x, int n, int8_t* q);
  void (*attend_split[kNumKVDTypes])(const AttentionSplit& split);
  void (*merge_split)(float next_maximum, float next_sum, const float* next_out, int channels,
                      float* maximum, float* sum, float* out);
};

}  // namespace glimmer

// The weights of one low-rank adapter (LoRA, arXiv 2106.09685): to some of a network's linears it
// adds y += scale * B(A x).
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "core/architecture.h"
#include "core/memory.h"
#include "core/weights.h"

namespace glimmer {

// Products whose linears share their inputs.
enum class LoraSite { kQkv, kAttnOut, kMlpInner, kMlpDown, kSharedInner, kSharedDown, kHead };
inline constexpr int kNumLoraSites = 7;
inline constexpr int kMaxLoraParts = 3;  // of a site: q, k and v

// What is added to one linear; rank 0 for nothing.
struct LoraPart {
  // [rank, in] and [out, rank], in the smallest float type that holds their values
  Matrix a, b;
  float scale = 0;
  int rank = 0;
  // The part of its site, this one or one before it, whose A it shares.
  int shrunk_by = 0;
};

class Lora {
 public:
  explicit Lora(const Architecture& architecture);
  Lora(Lora&&) = default;

  // Adds to the linear of a canonical name without ".weight", such as "layers.3.attn_q". A is
  // [rank][in] and B [out][rank]. With `shared_a`, A is that of this other linear with the same
  // inputs, added before with the same scale, and `a` is not read.
  // Throws Error(kMalformedCheckpoint): no such linear, or sizes that do not fit;
  // Error(kUnsupportedArchitecture): a linear that takes no adapter here.
  void add(const std::string& name, int rank, float scale, std::span<const float> a,
           std::span<const float> b, const std::string& shared_a);

  // Whether it was made for a network of these sizes.
  bool fits(const Architecture& architecture) const;
  int max_rank() const { return max_rank_; }
  size_t size_bytes() const { return arena_.used(); }
  // Of the head, the layer is the number of layers.
  const LoraPart& part(int layer, LoraSite site, int index) const {
    return layers_[layer][static_cast<int>(site)][index];
  }

 private:
  struct Place {
    int layer;
    LoraSite site;
    int index;
    int rows, cols;
  };
  Place find(const std::string& name) const;
  LoraPart& at(const Place& place) {
    return layers_[place.layer][static_cast<int>(place.site)][place.index];
  }
  Matrix pack(std::span<const float> rows, int num_rows, int cols);

  Architecture architecture_;
  int max_rank_ = 0;
  std::vector<std::array<std::array<LoraPart, kMaxLoraParts>, kNumLoraSites>> layers_;
  Arena arena_;
};

}  // namespace glimmer

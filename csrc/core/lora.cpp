#include "core/lora.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/error.h"
#include "core/half.h"
#include "core/packing.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

Error malformed(const std::string& name, const std::string& what) {
  return Error(ErrorKind::kMalformedCheckpoint, "The adapter's part for \"" + name + "\" " + what);
}

// The smallest type that holds all of them as they are: what reads less gives the same products.
DType narrowest(std::span<const float> values) {
  bool fits_bf16 = true, fits_f16 = true;
  for (const float x : values) {
    fits_bf16 = fits_bf16 && (std::bit_cast<uint32_t>(x) & 0xffff) == 0;
    fits_f16 = fits_f16 && half_to_float(float_to_half(x)) == x;
    if (!fits_bf16 && !fits_f16) return DType::kF32;
  }
  return fits_bf16 ? DType::kBF16 : DType::kF16;
}

}  // namespace

Lora::Lora(const Architecture& architecture)
    : architecture_(architecture), layers_(architecture.num_layers + 1) {}

Lora::Place Lora::find(const std::string& name) const {
  const Architecture& a = architecture_;
  const int h = a.hidden_size, q = a.query_width(), kv = a.kv_width(), inner = a.intermediate_size;
  if (name == "head" && !a.tied_head) {
    return {a.num_layers, LoraSite::kHead, 0, a.vocab_size, h};
  }
  const bool gated = a.mlp == Mlp::kSwiGlu;
  for (int layer = 0; layer < a.num_layers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    if (!name.starts_with(prefix)) continue;
    const std::string linear = name.substr(prefix.size());
    if (linear == "attn_q") return {layer, LoraSite::kQkv, 0, q, h};
    if (linear == "attn_k") return {layer, LoraSite::kQkv, 1, kv, h};
    if (linear == "attn_v") return {layer, LoraSite::kQkv, 2, kv, h};
    if (linear == "attn_out") return {layer, LoraSite::kAttnOut, 0, h, q};
    if (a.has_experts(layer)) {
      const int shared = a.experts->shared_width();
      if (linear == "shared.mlp_gate" && gated && shared > 0) {
        return {layer, LoraSite::kSharedInner, 0, shared, h};
      }
      if (linear == "shared.mlp_up" && shared > 0) {
        return {layer, LoraSite::kSharedInner, gated ? 1 : 0, shared, h};
      }
      if (linear == "shared.mlp_down" && shared > 0) {
        return {layer, LoraSite::kSharedDown, 0, h, shared};
      }
      throw Error(ErrorKind::kUnsupportedArchitecture,
                  "The adapter has a part for \"" + name +
                      "\", but experts that are chosen by a router take no adapter while they "
                      "run. Merge it into the model (glimmer merge), or train one without them.");
    }
    if (linear == "mlp_gate" && gated) return {layer, LoraSite::kMlpInner, 0, inner, h};
    if (linear == "mlp_up") return {layer, LoraSite::kMlpInner, gated ? 1 : 0, inner, h};
    if (linear == "mlp_down") return {layer, LoraSite::kMlpDown, 0, h, inner};
  }
  throw malformed(name, "is for no linear of this network.");
}

void Lora::add(const std::string& name, int rank, float scale, std::span<const float> a,
               std::span<const float> b, const std::string& shared_a) {
  const Place place = find(name);
  LoraPart& part = at(place);
  if (part.rank != 0) throw malformed(name, "was given twice.");
  if (rank < 1 || b.size() != static_cast<size_t>(place.rows) * rank) {
    throw malformed(name, "has a B of " + std::to_string(b.size()) + " values, but it takes " +
                              std::to_string(place.rows) + " x its rank of " +
                              std::to_string(rank) + ".");
  }
  if (!shared_a.empty()) {
    const Place other = find(shared_a);
    const LoraPart& owner = at(other);
    if (other.layer != place.layer || other.site != place.site || other.index >= place.index ||
        owner.rank != rank || owner.scale != scale) {
      throw malformed(name, "cannot share the A of \"" + shared_a + "\".");
    }
    part.a = owner.a;
    part.shrunk_by = owner.shrunk_by;
  } else if (a.size() != static_cast<size_t>(place.cols) * rank) {
    throw malformed(name, "has an A of " + std::to_string(a.size()) + " values, but it takes " +
                              std::to_string(rank) + " x " + std::to_string(place.cols) + ".");
  } else {
    part.a = pack(a, rank, place.cols);
    part.shrunk_by = place.index;
  }
  part.b = pack(b, place.rows, rank);
  part.scale = scale;
  part.rank = rank;
  max_rank_ = std::max(max_rank_, rank);
}

// By the caller alone: it is little work, and the threads may be in the middle of a step.
Matrix Lora::pack(std::span<const float> rows, int num_rows, int cols) {
  const DType kept = narrowest(rows);
  const size_t strip_bytes = glimmer::strip_bytes(kept, cols), row = row_bytes(kept, cols);
  uint8_t* const packed = arena_.allocate(matrix_bytes(kept, num_rows, cols));
  std::vector<uint8_t> stored(kStripRows * row);
  for (int first = 0; first < num_rows; first += kStripRows) {
    const int count = std::min(kStripRows, num_rows - first);
    for (int i = 0; i < count; ++i) {
      encode_row(kept, &rows[static_cast<size_t>(first + i) * cols], cols, &stored[i * row]);
    }
    place_rows(kept, stored.data(), count, cols, packed + first / kStripRows * strip_bytes);
  }
  return {.dtype = kept,
          .form = Form::kFloat,
          .rows = num_rows,
          .cols = cols,
          .strip_bytes = strip_bytes,
          .data = packed};
}

bool Lora::fits(const Architecture& a) const {
  const Architecture& b = architecture_;
  return a.num_layers == b.num_layers && a.hidden_size == b.hidden_size &&
         a.query_width() == b.query_width() && a.kv_width() == b.kv_width() &&
         a.intermediate_size == b.intermediate_size && a.vocab_size == b.vocab_size &&
         a.mlp == b.mlp && a.tied_head == b.tied_head &&
         a.experts.has_value() == b.experts.has_value() &&
         (!a.experts || (a.experts->shared_width() == b.experts->shared_width() &&
                         a.experts->num_dense_layers == b.experts->num_dense_layers));
}

}  // namespace glimmer

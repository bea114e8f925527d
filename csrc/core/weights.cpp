#include "core/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/packing.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
}

Error malformed(const std::string& name, const std::string& what) {
  return Error(ErrorKind::kMalformedCheckpoint, "Weight \"" + name + "\" " + what);
}

void check_blocks(const std::string& name, DType dtype, int cols) {
  const DTypeInfo& type = info(dtype);
  if (cols % type.block_size == 0) return;
  throw malformed(name, "has rows of " + std::to_string(cols) + " values, which " + type.name +
                            " cannot hold: it stores blocks of " + std::to_string(type.block_size) +
                            ".");
}

void check_size(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                size_t size, size_t expected) {
  if (size == expected) return;
  throw malformed(name, "holds " + std::to_string(size) + " bytes, but " + shape_text(shape) +
                            " as " + info(dtype).name + " takes " + std::to_string(expected) + ".");
}

// By all threads: pages are zeroed as they are first touched, which one thread does slowly.
void copy(std::span<const uint8_t> from, uint8_t* to, ThreadPool& pool) {
  constexpr size_t kPiece = size_t{1} << 20;
  std::atomic<size_t> next{0};
  pool.run([&](int) {
    for (size_t at; (at = next.fetch_add(kPiece)) < from.size();) {
      std::memcpy(to + at, from.data() + at, std::min(kPiece, from.size() - at));
    }
  });
}

}  // namespace

DType dtype_from_name(std::string_view name) {
  std::string allowed;
  for (int i = 0; i < kNumDTypes; ++i) {
    if (name == kDTypes[i].name) return static_cast<DType>(i);
    allowed += (i ? ", " : "") + std::string(kDTypes[i].name);
  }
  throw Error(
      ErrorKind::kUnsupportedTensorType,
      "Weights stored as \"" + std::string(name) + "\" cannot be run; supported: " + allowed + ".");
}

void Matrix::unpack_row(int row, float* out) const {
  glimmer::unpack_row(dtype, data + row / kStripRows * strip_bytes, cols, row % kStripRows, out);
}

Weights::Weights(const Architecture& a, Form int4_inputs)
    : layers(a.num_layers), tied_head_(a.tied_head), int4_inputs_(int4_inputs) {
  expect("embedding.weight", embedding.matrix, a.vocab_size, a.hidden_size);
  for (int i = 0; i < a.num_layers; ++i) {
    if (a.has_experts(i)) layers[i].experts.emplace();
    expect_layer(a, "layers." + std::to_string(i) + ".", layers[i]);
  }
  expect("final_norm.weight", final_norm.weight, {a.hidden_size});
  if (a.norm == Norm::kLayer) expect("final_norm.bias", final_norm.bias, {a.hidden_size});
  if (!a.tied_head) expect("head.weight", head_.matrix, a.vocab_size, a.hidden_size);
}

void Weights::expect_layer(const Architecture& a, const std::string& prefix, Layer& layer) {
  const int h = a.hidden_size, kv = a.kv_width();
  const auto norm = [&](const std::string& name, NormWeights& to) {
    expect(prefix + name + ".weight", to.weight, {h});
    if (a.norm == Norm::kLayer) expect(prefix + name + ".bias", to.bias, {h});
  };
  const auto linear = [&](const std::string& name, Linear& to, int rows, int cols, bool bias) {
    expect(prefix + name + ".weight", to.matrix, rows, cols);
    if (bias) expect(prefix + name + ".bias", to.bias, {rows});
  };
  const auto mlp = [&](const std::string& name, MlpWeights& to, int width, bool bias) {
    if (a.mlp == Mlp::kSwiGlu) linear(name + "mlp_gate", to.gate, width, h, bias);
    linear(name + "mlp_up", to.up, width, h, bias);
    linear(name + "mlp_down", to.down, h, width, bias);
  };
  norm("attn_norm", layer.attn_norm);
  norm("mlp_norm", layer.mlp_norm);
  if (a.norm_place == NormPlace::kSandwich) {
    norm("attn_post_norm", layer.attn_post_norm);
    norm("mlp_post_norm", layer.mlp_post_norm);
  }
  linear("attn_q", layer.q, a.query_width(), h, a.qkv_bias);
  linear("attn_k", layer.k, kv, h, a.qkv_bias);
  linear("attn_v", layer.v, kv, h, a.qkv_bias);
  linear("attn_out", layer.attn_out, h, a.query_width(), a.attention_out_bias);
  if (a.qk_norm) {
    expect(prefix + "attn_q_norm.weight", layer.q_norm, {a.head_dim});
    expect(prefix + "attn_k_norm.weight", layer.k_norm, {a.head_dim});
  }
  if (a.prefix_length > 0) {
    expect(prefix + "prefix_keys.weight", layer.prefix_keys, {a.prefix_length, kv});
    expect(prefix + "prefix_values.weight", layer.prefix_values, {a.prefix_length, kv});
  }
  if (!layer.experts) {
    mlp("", layer.mlp, a.intermediate_size, a.mlp_bias);
    return;
  }
  const Experts& e = *a.experts;
  ExpertWeights& to = *layer.experts;
  // A rounded router would send tokens to other experts.
  expect(prefix + "router.weight", to.router.matrix, e.num_experts, h, DType::kF32);
  expect(prefix + "router.bias", to.choice_bias, {e.num_experts});
  to.experts.resize(e.num_experts);
  for (int i = 0; i < e.num_experts; ++i) {
    mlp("experts." + std::to_string(i) + ".", to.experts[i], e.intermediate_size, false);
  }
  if (e.num_shared_experts > 0) mlp("shared.", to.shared, e.shared_width(), false);
}

Form Weights::form_of(DType dtype) const {
  if (!info(dtype).integer) return Form::kFloat;
  return info(dtype).nibbles ? int4_inputs_ : Form::kInt16;
}

void Weights::expect(const std::string& name, Matrix& matrix, int rows, int cols,
                     std::optional<DType> fixed) {
  slots_[name] = Slot{.matrix = &matrix, .fixed = fixed, .shape = {rows, cols}};
}

void Weights::expect(const std::string& name, std::vector<float>& floats,
                     std::vector<int64_t> shape) {
  slots_[name] = Slot{.floats = &floats, .shape = std::move(shape)};
}

size_t Weights::Slot::packed_bytes(DType dtype) const {
  return floats ? row_bytes(dtype, cols()) * rows() : matrix_bytes(dtype, rows(), cols());
}

const Weights::Slot& Weights::find_slot(const std::string& name,
                                        const std::vector<int64_t>& shape) const {
  const auto found = slots_.find(name);
  if (found == slots_.end()) throw malformed(name, "is not part of this network.");
  if (shape != found->second.shape) {
    throw malformed(name, "has shape " + shape_text(shape) + ", but the network needs " +
                              shape_text(found->second.shape) + ".");
  }
  return found->second;
}

Weights::Kept Weights::kept(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                            std::optional<DType> target) const {
  const Slot& slot = find_slot(name, shape);
  const DType kept = slot.floats ? DType::kF32 : slot.fixed.value_or(target.value_or(dtype));
  check_blocks(name, dtype, slot.cols());
  check_blocks(name, kept, slot.cols());
  if (kept != dtype && !info(kept).writable) {
    throw Error(ErrorKind::kUnsupportedTensorType,
                std::string("Weights cannot be converted to \"") + info(kept).name +
                    "\" here: it can only be read.");
  }
  return {kept, slot.packed_bytes(kept)};
}

void Weights::pack(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                   std::span<const uint8_t> data, std::optional<DType> target,
                   std::span<uint8_t> out, ThreadPool& pool) const {
  const auto [kept, bytes] = this->kept(name, dtype, shape, target);
  const Slot& slot = find_slot(name, shape);
  const int rows = slot.rows(), cols = slot.cols();
  const size_t stored_bytes = row_bytes(dtype, cols);
  check_size(name, dtype, shape, data.size(), stored_bytes * rows);
  check_size(name, kept, shape, out.size(), bytes);
  if (!slot.floats) {
    pack_matrix(dtype, data.data(), rows, cols, kept, out.data(), pool);
    return;
  }
  std::vector<float> floats(cols);
  for (int r = 0; r < rows; ++r) {
    decode_row(dtype, data.data() + r * stored_bytes, cols, floats.data());
    std::memcpy(out.data() + r * cols * sizeof(float), floats.data(), cols * sizeof(float));
  }
}

std::span<uint8_t> Weights::place(const std::string& name, const Kept& kept) {
  Slot& slot = slots_.at(name);
  if (slot.loaded) throw malformed(name, "was given twice.");
  if (!slot.floats) return {arena_.allocate(kept.bytes), kept.bytes};
  slot.floats->resize(kept.bytes / sizeof(float));
  return {reinterpret_cast<uint8_t*>(slot.floats->data()), kept.bytes};
}

void Weights::load(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                   std::span<const uint8_t> data, std::optional<DType> target, ThreadPool& pool) {
  const Kept kept = this->kept(name, dtype, shape, target);
  Slot& slot = slots_.at(name);
  check_size(name, dtype, shape, data.size(), row_bytes(dtype, slot.cols()) * slot.rows());
  const std::span<uint8_t> out = place(name, kept);
  pack(name, dtype, shape, data, target, out, pool);
  if (slot.matrix) set_matrix(slot, kept.dtype, out.data());
  slot.loaded = true;
}

bool Weights::adopt(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                    std::span<const uint8_t> packed, std::optional<DType> target,
                    std::optional<bool> in_place, ThreadPool& pool) {
  const Kept kept = this->kept(name, dtype, shape, target);
  Slot& slot = slots_.at(name);
  if ((slot.floats || slot.fixed) && kept.dtype != dtype) {
    throw malformed(name, std::string("is packed as ") + info(dtype).name + ", but it runs as " +
                              info(kept.dtype).name + " alone.");
  }
  check_size(name, dtype, shape, packed.size(), slot.packed_bytes(dtype));
  if (reinterpret_cast<uintptr_t>(packed.data()) % kAlignment != 0) {
    throw malformed(name, "does not begin at a multiple of " + std::to_string(kAlignment) +
                              " bytes in memory.");
  }
  if (slot.loaded) throw malformed(name, "was given twice.");
  if (!populate(packed.data(), packed.size())) {
    throw malformed(name,
                    "cannot be read from its file, which has become shorter or lies on a disk "
                    "that fails.");
  }
  const bool may_stay = slot.matrix && kept.dtype == dtype;
  const bool stays =
      may_stay && (in_place ? *in_place : in_large_pages(packed.data(), packed.size()));
  if (stays) {
    set_matrix(slot, dtype, packed.data());
    adopted_bytes_ += packed.size();
  } else {
    const std::span<uint8_t> out = place(name, kept);
    if (kept.dtype == dtype) {
      copy(packed, out.data(), pool);
    } else {
      convert_packed(dtype, packed.data(), slot.rows(), slot.cols(), kept.dtype, out.data(), pool);
    }
    if (slot.matrix) set_matrix(slot, kept.dtype, out.data());
  }
  slot.loaded = true;
  return stays;
}

void Weights::set_matrix(const Slot& slot, DType dtype, const uint8_t* packed) {
  Matrix& m = *slot.matrix;
  m.dtype = dtype;
  m.form = form_of(dtype);
  forms_ |= bit(m.form);
  m.rows = slot.rows();
  m.cols = slot.cols();
  m.strip_bytes = strip_bytes(dtype, m.cols);
  m.data = packed;
}

void Weights::finish() const {
  std::string missing;
  int count = 0;
  for (const auto& [name, slot] : slots_) {
    if (slot.loaded) continue;
    if (++count <= 5) missing += (count > 1 ? ", " : "") + name;
  }
  if (count == 0) return;
  throw Error(ErrorKind::kMalformedCheckpoint,
              std::to_string(count) + " of " + std::to_string(slots_.size()) +
                  " weights are missing: " + missing + (count > 5 ? ", ..." : "") + ".");
}

}  // namespace glimmer

#include "core/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "core/packing.h"
#include "kernels/tiles.h"

namespace glimmer {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "[" + text + "]";
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

void Weights::load(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                   std::span<const uint8_t> data, std::optional<DType> target, ThreadPool& pool) {
  const auto malformed = [&](const std::string& what) {
    return Error(ErrorKind::kMalformedCheckpoint, "Weight \"" + name + "\" " + what);
  };
  const auto found = slots_.find(name);
  if (found == slots_.end()) throw malformed("is not part of this network.");
  Slot& slot = found->second;
  if (slot.loaded) throw malformed("was given twice.");
  if (shape != slot.shape) {
    throw malformed("has shape " + shape_text(shape) + ", but the network needs " +
                    shape_text(slot.shape) + ".");
  }
  const int cols = static_cast<int>(shape.back());
  const int rows = shape.size() == 2 ? static_cast<int>(shape.front()) : 1;
  const DType kept = slot.floats ? DType::kF32 : slot.fixed.value_or(target.value_or(dtype));
  for (const DType type : {dtype, kept}) {
    if (cols % info(type).block_size != 0) {
      throw malformed("has rows of " + std::to_string(cols) + " values, which " + info(type).name +
                      " cannot hold: it stores blocks of " + std::to_string(info(type).block_size) +
                      ".");
    }
  }
  if (kept != dtype && !info(kept).writable) {
    throw Error(ErrorKind::kUnsupportedTensorType,
                std::string("Weights cannot be converted to \"") + info(kept).name +
                    "\" here: it can only be read.");
  }
  const size_t stored_bytes = row_bytes(dtype, cols);
  if (data.size() != stored_bytes * rows) {
    throw malformed("holds " + std::to_string(data.size()) + " bytes, but " + shape_text(shape) +
                    " as " + info(dtype).name + " takes " + std::to_string(stored_bytes * rows) +
                    ".");
  }
  if (slot.floats) {
    slot.floats->resize(static_cast<size_t>(rows) * cols);
    for (int r = 0; r < rows; ++r) {
      decode_row(dtype, data.data() + r * stored_bytes, cols,
                 slot.floats->data() + static_cast<size_t>(r) * cols);
    }
  } else {
    pack(slot, dtype, data, kept, pool);
  }
  slot.loaded = true;
}

void Weights::pack(Slot& slot, DType dtype, std::span<const uint8_t> data, DType kept,
                   ThreadPool& pool) {
  const int rows = static_cast<int>(slot.shape[0]), cols = static_cast<int>(slot.shape[1]);
  const size_t stored_bytes = row_bytes(dtype, cols);
  Matrix& m = *slot.matrix;
  m.dtype = kept;
  m.form = form_of(kept);
  forms_ |= bit(m.form);
  m.rows = rows;
  m.cols = cols;
  m.strip_bytes = static_cast<size_t>(cols / info(kept).block_size) * info(kept).strip_bytes;
  uint8_t* packed = arena_.allocate(m.strip_bytes * m.num_strips());
  m.data = packed;
  struct Scratch {
    std::vector<float> floats;
    std::vector<uint8_t> stored;
  };
  std::vector<Scratch> scratches(pool.num_threads());
  if (kept != dtype) {
    for (Scratch& s : scratches) {
      s.floats.resize(cols);
      s.stored.resize(row_bytes(kept, cols));
    }
  }
  std::atomic<int> next{0};
  pool.run([&](int thread) {
    Scratch& scratch = scratches[thread];
    for (int strip; (strip = next.fetch_add(1)) < m.num_strips();) {
      for (int row = strip * 16; row < std::min(rows, strip * 16 + 16); ++row) {
        const uint8_t* stored = data.data() + row * stored_bytes;
        if (kept != dtype) {
          decode_row(dtype, stored, cols, scratch.floats.data());
          encode_row(kept, scratch.floats.data(), cols, scratch.stored.data());
          stored = scratch.stored.data();
        }
        place_row(kept, stored, cols, row % 16, packed + strip * m.strip_bytes);
      }
    }
  });
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

// The weights of one network, packed for the kernels. Names are those of
// glimmer.architecture.Architecture.weight_shapes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/architecture.h"
#include "core/dtype.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace glimmer {

// [rows, cols] as strips of 16 rows; the last strip is padded with zero rows.
struct Matrix {
  DType dtype = DType::kF32;
  Form form = Form::kFloat;  // of the inputs it is multiplied with
  int rows = 0;
  int cols = 0;
  size_t strip_bytes = 0;
  const uint8_t* data = nullptr;

  int num_strips() const { return (rows + 15) / 16; }
  // Dequantises one row into out [cols].
  void unpack_row(int row, float* out) const;
};

// What a network lacks stays empty.
struct NormWeights {
  std::vector<float> weight, bias;
};
struct Linear {
  Matrix matrix;
  std::vector<float> bias;
};
struct MlpWeights {
  Linear gate, up, down;
};
struct ExpertWeights {
  Linear router;                   // [num_experts, hidden_size], always float32
  std::vector<float> choice_bias;  // [num_experts], added where experts are chosen
  std::vector<MlpWeights> experts;
  MlpWeights shared;
};
struct Layer {
  NormWeights attn_norm, attn_post_norm, mlp_norm, mlp_post_norm;
  Linear q, k, v, attn_out;
  std::vector<float> q_norm, k_norm;              // [head_dim]
  std::vector<float> prefix_keys, prefix_values;  // [prefix_length][kv_width]
  MlpWeights mlp;                                 // either an MLP ...
  std::optional<ExpertWeights> experts;           // ... or experts
};

class Weights {
 public:
  // `int4_inputs` is the form in which int4 weights meet their inputs: kInt8 or kInt16.
  Weights(const Architecture& architecture, Form int4_inputs);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // How a weight is kept: a matrix packed as `target`, or as it is stored, but a router, a vector
  // and a trained prefix always as float32, the last two row by row.
  // Throws Error: unknown name, wrong shape, a type that cannot be packed.
  struct Kept {
    DType dtype;
    size_t bytes;
  };
  Kept kept(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
            std::optional<DType> target) const;
  // Makes `out`, zeroed, of one tensor that is stored row by row as `dtype`.
  // Throws Error as kept, and for a wrong size.
  void pack(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
            std::span<const uint8_t> data, std::optional<DType> target, std::span<uint8_t> out,
            ThreadPool& pool) const;
  // Packs one tensor into memory of its own. Throws Error as pack, and for a repeated name.
  void load(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
            std::span<const uint8_t> data, std::optional<DType> target, ThreadPool& pool);
  // Takes one tensor that `pack` made. A matrix stays where it lies if it needs no conversion and
  // `in_place` says so, or, where that is not given, if it lies in large pages: then true is
  // returned, and `packed` must stay as it is for as long as the weights live. Else it is copied.
  // Throws Error as load, and where the pages of a mapped file cannot be read.
  bool adopt(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
             std::span<const uint8_t> packed, std::optional<DType> target,
             std::optional<bool> in_place, ThreadPool& pool);
  // Throws Error(kMalformedCheckpoint) that names what is missing.
  void finish() const;

  const Linear& head() const { return tied_head_ ? embedding : head_; }
  // The forms in which any matrix wants its inputs, one bit each.
  unsigned forms() const { return forms_; }
  size_t packed_bytes() const { return arena_.used() + adopted_bytes_; }

  Linear embedding;
  std::vector<Layer> layers;
  NormWeights final_norm;

 private:
  struct Slot {
    Matrix* matrix = nullptr;              // either a matrix, packed as ...
    std::optional<DType> fixed = {};       // ... this whatever is asked for, ...
    std::vector<float>* floats = nullptr;  // ... or plain floats, row by row
    std::vector<int64_t> shape;
    bool loaded = false;

    int rows() const { return shape.size() == 2 ? static_cast<int>(shape.front()) : 1; }
    int cols() const { return static_cast<int>(shape.back()); }
    size_t packed_bytes(DType dtype) const;
  };
  void expect(const std::string& name, std::vector<float>& floats, std::vector<int64_t> shape);
  void expect(const std::string& name, Matrix& matrix, int rows, int cols,
              std::optional<DType> fixed = {});
  void expect_layer(const Architecture& architecture, const std::string& prefix, Layer& layer);

  const Slot& find_slot(const std::string& name, const std::vector<int64_t>& shape) const;
  // Where a tensor is to be made: in the slot itself, or in the arena. Throws for a repeated name.
  std::span<uint8_t> place(const std::string& name, const Kept& kept);
  void set_matrix(const Slot& slot, DType dtype, const uint8_t* packed);
  Form form_of(DType dtype) const;

  const bool tied_head_;
  const Form int4_inputs_;
  Linear head_;
  unsigned forms_ = 0;
  std::map<std::string, Slot> slots_;
  Arena arena_;
  size_t adopted_bytes_ = 0;
};

}  // namespace glimmer

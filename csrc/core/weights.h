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

struct Layer {
  std::vector<float> attn_norm, mlp_norm;
  Matrix q, k, v, attn_out, gate, up, down;
  std::vector<float> q_bias, k_bias, v_bias, attn_out_bias, gate_bias, up_bias, down_bias;
};

class Weights {
 public:
  // `int4_inputs` is the form in which int4 weights meet their inputs: kInt8 or kInt16.
  Weights(const Architecture& architecture, Form int4_inputs);
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

  // Packs one tensor, stored row by row as `dtype`; a matrix is kept as `target`, or as stored.
  // Throws Error: unknown or repeated name, wrong shape or size, a type that cannot be packed.
  void load(const std::string& name, DType dtype, const std::vector<int64_t>& shape,
            std::span<const uint8_t> data, std::optional<DType> target, ThreadPool& pool);
  // Throws Error(kMalformedCheckpoint) that names what is missing.
  void finish() const;

  const Matrix& head() const { return tied_head_ ? embedding : head_; }
  // The forms in which any matrix wants its inputs, one bit each.
  unsigned forms() const { return forms_; }
  size_t packed_bytes() const { return arena_.used(); }

  Matrix embedding;
  std::vector<Layer> layers;
  std::vector<float> final_norm;

 private:
  struct Slot {
    Matrix* matrix = nullptr;              // either a matrix ...
    std::vector<float>* vector = nullptr;  // ... or a vector of `rows`
    int rows = 0;
    int cols = 1;
    bool loaded = false;
  };
  void expect(const std::string& name, Matrix& matrix, int rows, int cols);
  void expect(const std::string& name, std::vector<float>& vector, int rows);

  Form form_of(DType dtype) const;

  const bool tied_head_;
  const Form int4_inputs_;
  Matrix head_;
  unsigned forms_ = 0;
  std::map<std::string, Slot> slots_;
  Arena arena_;
};

}  // namespace glimmer

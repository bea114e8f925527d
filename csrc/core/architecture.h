// The numbers and choices that make one network; the twin of glimmer.architecture.Architecture.
#pragma once

#include <cstdint>
#include <optional>

namespace glimmer {

enum class Norm { kRms, kLayer };
enum class NormPlace { kPre, kSandwich };
enum class Residual { kInput, kNormed };
enum class Mask { kCausal, kPrefix };
enum class Mlp { kSwiGlu, kGeluTanh };
enum class RopePairing { kInterleaved, kHalf };
enum class RopePositions { k1d, k2d };

// A mixture of experts instead of the MLP, in all but the first num_dense_layers layers.
struct Experts {
  int num_experts = 0;
  int num_experts_per_token = 0;
  int num_shared_experts = 0;  // together one MLP of so many times intermediate_size
  int intermediate_size = 0;   // of one expert
  int num_dense_layers = 0;
  int num_groups = 1;
  int num_groups_per_token = 1;
  bool normalize_weights = true;
  float routed_scale = 1;

  int shared_width() const { return num_shared_experts * intermediate_size; }
};

struct Architecture {
  int vocab_size = 0;
  int hidden_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  Norm norm = Norm::kRms;
  NormPlace norm_place = NormPlace::kPre;
  float norm_eps = 0;
  Residual residual = Residual::kInput;
  float residual_scale = 1;
  int rope_dims = 0;  // of each half head where positions are 2d
  double rope_base = 0;
  double rope_linear_scale = 1;
  RopePairing rope_pairing = RopePairing::kInterleaved;
  RopePositions rope_positions = RopePositions::k1d;
  bool rope_half_frequencies = false;  // inverse frequencies rounded to float16
  Mask mask = Mask::kCausal;
  Mlp mlp = Mlp::kSwiGlu;
  bool qkv_bias = false;
  bool attention_out_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;
  std::optional<Experts> experts;
  int prefix_length = 0;  // trained keys and values that stand before every sequence
  bool tied_head = false;

  int group_size() const { return num_heads / num_kv_heads; }
  int query_width() const { return num_heads * head_dim; }
  int kv_width() const { return num_kv_heads * head_dim; }
  bool has_experts(int layer) const { return experts && layer >= experts->num_dense_layers; }

  // Throws Error: an impossible number, or a choice that this core does not run, by name.
  void check() const;
};

}  // namespace glimmer

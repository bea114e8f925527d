#include "core/architecture.h"

#include <string>

#include "core/error.h"

namespace glimmer {
namespace {

Error not_built(const std::string& choice) {
  return Error(ErrorKind::kUnsupportedArchitecture,
               "The network needs " + choice + ", which this engine does not run yet.");
}

}  // namespace

void Architecture::check() const {
  const auto positive = [](const char* name, double value) {
    if (!(value > 0)) {
      throw Error(ErrorKind::kUnsupportedArchitecture, std::string("The network's ") + name +
                                                           " must be above 0, but it is " +
                                                           std::to_string(value) + ".");
    }
  };
  positive("vocab_size", vocab_size);
  positive("hidden_size", hidden_size);
  positive("num_layers", num_layers);
  positive("num_heads", num_heads);
  positive("num_kv_heads", num_kv_heads);
  positive("head_dim", head_dim);
  positive("intermediate_size", intermediate_size);
  positive("rope base", rope_base);
  positive("rope linear_scale", rope_linear_scale);
  if (num_heads % num_kv_heads != 0) {
    throw Error(ErrorKind::kUnsupportedArchitecture,
                "The network's " + std::to_string(num_heads) + " heads cannot share " +
                    std::to_string(num_kv_heads) + " KV heads evenly.");
  }
  if (rope_dims < 0 || rope_dims % 2 != 0 || rope_dims > head_dim) {
    throw Error(ErrorKind::kUnsupportedArchitecture,
                "The network rotates " + std::to_string(rope_dims) + " of " +
                    std::to_string(head_dim) +
                    " channels; it must be an even number, at most all of them.");
  }
  if (norm != Norm::kRms) throw not_built("norm \"layer\" (LayerNorm)");
  if (norm_place != NormPlace::kPre) throw not_built("norm_place \"sandwich\"");
  if (residual != Residual::kInput) throw not_built("residual \"normed\"");
  if (residual_scale != 1) throw not_built("a residual_scale other than 1");
  if (mask != Mask::kCausal) throw not_built("mask \"prefix\"");
  if (mlp != Mlp::kSwiGlu) throw not_built("mlp \"gelu_tanh\"");
  if (rope_positions != RopePositions::k1d) throw not_built("rope positions \"2d\"");
  if (rope_half_frequencies) throw not_built("rope frequency_dtype \"float16\"");
  if (qk_norm) throw not_built("qk_norm");
  if (num_experts != 0) throw not_built("experts");
  if (prefix_length != 0) throw not_built("prefix_length above 0");
}

}  // namespace glimmer

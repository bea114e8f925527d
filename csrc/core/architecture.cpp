#include "core/architecture.h"

#include <limits>
#include <string>

#include "core/error.h"

namespace glimmer {
namespace {

Error unsupported(const std::string& message) {
  return Error(ErrorKind::kUnsupportedArchitecture, message);
}

void positive(const char* name, double value) {
  if (value > 0) return;
  throw unsupported(std::string("The network's ") + name + " must be above 0, but it is " +
                    std::to_string(value) + ".");
}

// What `count` things of `size` channels are wide together.
void representable(const char* name, int64_t count, int64_t size) {
  if (count * size <= std::numeric_limits<int>::max()) return;
  throw unsupported(std::string("The network's ") + name + " are " + std::to_string(count) +
                    " of " + std::to_string(size) + " channels, more than this engine can count.");
}

void check_rope(const Architecture& a) {
  positive("rope base", a.rope_base);
  positive("rope linear_scale", a.rope_linear_scale);
  const bool halves = a.rope_positions == RopePositions::k2d;
  if (halves && a.head_dim % 2 != 0) {
    throw unsupported("The network has 2d positions, one for each half of a head, but heads of " +
                      std::to_string(a.head_dim) + " channels have no halves.");
  }
  const int channels = halves ? a.head_dim / 2 : a.head_dim;
  if (a.rope_dims < 0 || a.rope_dims % 2 != 0 || a.rope_dims > channels) {
    throw unsupported("The network rotates " + std::to_string(a.rope_dims) + " of " +
                      std::to_string(channels) + " channels of each " +
                      (halves ? "half head" : "head") +
                      "; it must be an even number, at most all of them.");
  }
}

void check_experts(const Experts& e) {
  positive("num_experts", e.num_experts);
  positive("num_experts_per_token", e.num_experts_per_token);
  positive("experts' intermediate_size", e.intermediate_size);
  positive("num_groups of experts", e.num_groups);
  positive("num_groups_per_token", e.num_groups_per_token);
  representable("shared experts", e.num_shared_experts, e.intermediate_size);
  if (e.num_experts % e.num_groups != 0) {
    throw unsupported("The network's " + std::to_string(e.num_experts) +
                      " experts cannot be divided into " + std::to_string(e.num_groups) +
                      " groups evenly.");
  }
  const int group_size = e.num_experts / e.num_groups;
  if (e.num_groups > 1 && group_size < 2) {
    throw unsupported("The network chooses groups of experts by the best two of each, but its " +
                      std::to_string(e.num_groups) + " groups have one expert each.");
  }
  if (e.num_groups_per_token > e.num_groups) {
    throw unsupported("The network's num_groups_per_token is " +
                      std::to_string(e.num_groups_per_token) + ", but there are only " +
                      std::to_string(e.num_groups) + " groups of experts.");
  }
  const int eligible = group_size * e.num_groups_per_token;
  if (e.num_experts_per_token > eligible) {
    throw unsupported("The network's num_experts_per_token is " +
                      std::to_string(e.num_experts_per_token) + ", but a token can choose from " +
                      std::to_string(eligible) + " experts only.");
  }
}

}  // namespace

void Architecture::check() const {
  positive("vocab_size", vocab_size);
  positive("hidden_size", hidden_size);
  positive("num_layers", num_layers);
  positive("num_heads", num_heads);
  positive("num_kv_heads", num_kv_heads);
  positive("head_dim", head_dim);
  positive("intermediate_size", intermediate_size);
  representable("heads", num_heads, head_dim);
  if (num_heads % num_kv_heads != 0) {
    throw unsupported("The network's " + std::to_string(num_heads) + " heads cannot share " +
                      std::to_string(num_kv_heads) + " KV heads evenly.");
  }
  check_rope(*this);
  if (residual == Residual::kInput && residual_scale != 1) {
    throw unsupported(
        "The network needs a residual_scale other than 1 with residual \"input\", which this "
        "engine does not run; it scales the residual \"normed\" alone.");
  }
  if (experts) check_experts(*experts);
}

}  // namespace glimmer

#include "core/kv_cache.h"

#include "kernels/kernels.h"

namespace glimmer {
namespace {

size_t value_bytes(KVDType dtype) {
  return dtype == KVDType::kF32 ? sizeof(float) : sizeof(uint16_t);
}

}  // namespace

size_t KVCache::block_bytes(const Architecture& a, KVDType dtype) {
  return static_cast<size_t>(a.num_layers) * a.num_kv_heads * kPageTokens *
         (a.head_dim + padded_channels(a.head_dim)) * value_bytes(dtype);
}

KVCache::KVCache(const Architecture& a, KVDType dtype, int num_blocks)
    : dtype_(dtype),
      num_blocks_(num_blocks),
      num_layers_(a.num_layers),
      num_heads_(a.num_kv_heads),
      head_dim_(a.head_dim),
      key_bytes_(static_cast<size_t>(a.head_dim) * kPageTokens * value_bytes(dtype)),
      page_bytes_(key_bytes_ + padded_channels(a.head_dim) * kPageTokens * value_bytes(dtype)),
      pages_(block_bytes(a, dtype) * num_blocks) {}

bool KVCache::fits(const Architecture& a) const {
  return a.num_layers == num_layers_ && a.num_kv_heads == num_heads_ && a.head_dim == head_dim_;
}

}  // namespace glimmer

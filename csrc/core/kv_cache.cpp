#include "core/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "core/decoder.h"
#include "kernels/kernels.h"

namespace glimmer {
namespace {

size_t value_bytes(KVDType dtype) {
  return dtype == KVDType::kF32 ? sizeof(float) : sizeof(uint16_t);
}

int prefix_blocks(const Architecture& a) {
  return a.prefix_length / kPageTokens + (a.prefix_length % kPageTokens != 0);
}

}  // namespace

size_t KVCache::block_bytes(const Architecture& a, KVDType dtype) {
  return static_cast<size_t>(a.num_layers) * a.num_kv_heads * kPageTokens *
         (a.head_dim + padded_channels(a.head_dim)) * value_bytes(dtype);
}

KVCache::KVCache(const Decoder& decoder, KVDType dtype, int num_blocks)
    : dtype_(dtype), num_blocks_(num_blocks) {
  const Architecture& a = decoder.architecture();
  num_layers_ = a.num_layers;
  num_heads_ = a.num_kv_heads;
  head_dim_ = a.head_dim;
  prefix_length_ = a.prefix_length;
  key_bytes_ = static_cast<size_t>(a.head_dim) * kPageTokens * value_bytes(dtype);
  page_bytes_ = key_bytes_ + padded_channels(a.head_dim) * kPageTokens * value_bytes(dtype);
  size_bytes_ = block_bytes(a, dtype) * (static_cast<size_t>(num_blocks) + prefix_blocks(a));
  pages_ = Pages(size_bytes_);
  if (prefix_length_ > 0) fill_prefix(decoder);
}

void KVCache::fill_prefix(const Decoder& decoder) {
  decoder.weights().finish();
  for (int n = 0; n < num_layers_; ++n) {
    const Layer& layer = decoder.weights().layers[n];
    for (int token = 0; token < prefix_length_; ++token) {
      for (int head = 0; head < num_heads_; ++head) {
        const size_t at = (static_cast<size_t>(token) * num_heads_ + head) * head_dim_;
        append(*decoder.isa().kernels, prefix_block(token / kPageTokens), token % kPageTokens, n,
               head, layer.prefix_keys.data() + at, layer.prefix_values.data() + at);
      }
    }
  }
}

bool KVCache::fits(const Architecture& a) const {
  return a.num_layers == num_layers_ && a.num_kv_heads == num_heads_ && a.head_dim == head_dim_ &&
         a.prefix_length == prefix_length_;
}

void KVCache::append(const Kernels& kernels, int block, int slot, int layer, int head,
                     const float* key, const float* value) {
  const auto put = [&](auto* keys, auto* values, const auto* k, const auto* v, int first, int n) {
    for (int c = 0; c < n; ++c) keys[(first + c) * kPageTokens + slot] = k[c];
    std::copy(v, v + n, values + slot * padded_channels(head_dim_) + first);
  };
  void* const keys = this->keys(block, layer, head);
  void* const values = this->values(block, layer, head);
  if (dtype_ == KVDType::kF32) {
    put(static_cast<float*>(keys), static_cast<float*>(values), key, value, 0, head_dim_);
    return;
  }
  for (int first = 0; first < head_dim_; first += 8) {
    const int n = std::min(8, head_dim_ - first);
    float padded[16] = {};
    uint16_t half[16];
    std::copy(key + first, key + first + n, padded);
    std::copy(value + first, value + first + n, padded + 8);
    kernels.to_half(padded, 16, half);
    put(static_cast<uint16_t*>(keys), static_cast<uint16_t*>(values), half, half + 8, first, n);
  }
}

}  // namespace glimmer

#include "core/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/decoder.h"
#include "core/error.h"
#include "kernels/kernels.h"

namespace glimmer {
namespace {

// Of 32 tokens' keys or values of one head.
size_t page_part_bytes(KVDType dtype, int channels) {
  const size_t numbers = static_cast<size_t>(channels) * kPageTokens;
  switch (dtype) {
    case KVDType::kF32:
      return numbers * sizeof(float);
    case KVDType::kF16:
      return numbers * sizeof(uint16_t);
    case KVDType::kI8:
      return numbers + kPageTokens * sizeof(float);
  }
  return 0;
}

size_t page_bytes(KVDType dtype, int head_dim) {
  return page_part_bytes(dtype, head_dim) + page_part_bytes(dtype, padded_channels(head_dim));
}

int prefix_blocks(const Architecture& a) {
  return a.prefix_length / kPageTokens + (a.prefix_length % kPageTokens != 0);
}

}  // namespace

size_t KVCache::block_bytes(const Architecture& a, KVDType dtype) {
  return static_cast<size_t>(a.num_layers) * a.num_kv_heads * page_bytes(dtype, a.head_dim);
}

KVCache::KVCache(const Decoder& decoder, KVDType dtype, int num_blocks)
    : dtype_(dtype), num_blocks_(num_blocks) {
  const Architecture& a = decoder.architecture();
  num_layers_ = a.num_layers;
  num_heads_ = a.num_kv_heads;
  head_dim_ = a.head_dim;
  prefix_length_ = a.prefix_length;
  key_bytes_ = page_part_bytes(dtype, a.head_dim);
  page_bytes_ = page_bytes(dtype, a.head_dim);
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

void KVCache::copy_block(int from, int to) {
  for (const int block : {from, to}) {
    if (block >= 0 && block < num_blocks_) continue;
    throw Error(ErrorKind::kInvalidParameter, "Block " + std::to_string(block) +
                                                  " cannot be copied: the cache has blocks 0 to " +
                                                  std::to_string(num_blocks_ - 1) + ".");
  }
  if (from == to) return;
  std::memcpy(pages_.data() + to * block_stride(), pages_.data() + from * block_stride(),
              block_stride());
}

void KVCache::append_int8(const Kernels& kernels, int slot, int8_t* keys, int8_t* values,
                          const float* key, const float* value) {
  const int channels = padded_channels(head_dim_);
  const auto put_scale = [&](int8_t* page, int width, float scale) {
    std::memcpy(page + width * kPageTokens + slot * sizeof(float), &scale, sizeof(float));
  };
  int8_t* const row = values + slot * channels;
  put_scale(keys, head_dim_, kernels.quantize_row(key, head_dim_, row));  // the value comes later
  for (int c = 0; c < head_dim_; ++c) keys[c * kPageTokens + slot] = row[c];
  put_scale(values, channels, kernels.quantize_row(value, head_dim_, row));
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
  if (dtype_ == KVDType::kI8) {
    append_int8(kernels, slot, static_cast<int8_t*>(keys), static_cast<int8_t*>(values), key,
                value);
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

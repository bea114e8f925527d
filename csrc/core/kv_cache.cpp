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

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

int blocks_of(int tokens) { return tokens / kPageTokens + (tokens % kPageTokens != 0); }

}  // namespace

size_t KVBlocks::block_bytes(const Architecture& a, KVDType dtype) {
  return static_cast<size_t>(a.num_layers) * a.num_kv_heads * page_bytes(dtype, a.head_dim);
}

KVBlocks::KVBlocks(const Architecture& a, KVDType dtype, int num_blocks)
    : dtype_(dtype),
      num_blocks_(num_blocks),
      num_layers_(a.num_layers),
      num_heads_(a.num_kv_heads),
      head_dim_(a.head_dim),
      key_bytes_(page_part_bytes(dtype, a.head_dim)),
      page_bytes_(page_bytes(dtype, a.head_dim)),
      pages_(block_bytes(a, dtype) * round_up(num_blocks, kGroupBlocks)) {}

bool KVBlocks::fits(const Architecture& a) const {
  return a.num_layers == num_layers_ && a.num_kv_heads == num_heads_ && a.head_dim == head_dim_;
}

KVPrefix::KVPrefix(const Decoder& decoder, KVDType dtype, const float* rows, int length)
    : KVBlocks(decoder.architecture(), dtype, blocks_of(length)), length_(length) {
  const Architecture& a = decoder.architecture();
  const size_t size = static_cast<size_t>(length) * a.kv_width();
  for (int n = 0; n < a.num_layers; ++n, rows += 2 * size) fill(decoder, n, rows, rows + size);
}

KVPrefix::KVPrefix(const Decoder& decoder, KVDType dtype)
    : KVBlocks(decoder.architecture(), dtype, blocks_of(decoder.architecture().prefix_length)),
      length_(decoder.architecture().prefix_length) {
  for (int n = 0; n < decoder.architecture().num_layers; ++n) {
    const Layer& layer = decoder.weights().layers[n];
    fill(decoder, n, layer.prefix_keys.data(), layer.prefix_values.data());
  }
}

void KVPrefix::fill(const Decoder& decoder, int layer, const float* keys, const float* values) {
  const Architecture& a = decoder.architecture();
  for (int token = 0; token < length_; ++token) {
    for (int head = 0; head < a.num_kv_heads; ++head) {
      const size_t at = (static_cast<size_t>(token) * a.num_kv_heads + head) * a.head_dim;
      append(*decoder.isa().kernels, token / kPageTokens, token % kPageTokens, layer, head,
             keys + at, values + at);
    }
  }
}

KVCache::KVCache(const Decoder& decoder, KVDType dtype, int num_blocks)
    : KVBlocks(decoder.architecture(), dtype, num_blocks) {
  if (decoder.architecture().prefix_length == 0) return;
  decoder.weights().finish();
  prefix_ = std::make_unique<const KVPrefix>(decoder, dtype);
}

size_t KVCache::size_bytes() const {
  return KVBlocks::size_bytes() + (prefix_ ? prefix_->size_bytes() : 0);
}

bool KVCache::fits(const Architecture& a) const {
  return KVBlocks::fits(a) && a.prefix_length == (prefix_ ? prefix_->length() : 0);
}

void KVCache::copy_block(int from, int to) {
  for (const int block : {from, to}) {
    if (block >= 0 && block < num_blocks()) continue;
    throw Error(ErrorKind::kInvalidParameter, "Block " + std::to_string(block) +
                                                  " cannot be copied: the cache has blocks 0 to " +
                                                  std::to_string(num_blocks() - 1) + ".");
  }
  if (from == to) return;
  copy(from, to);
}

void KVBlocks::copy(int from, int to) {
  for (int layer = 0; layer < num_layers_; ++layer) {
    for (int head = 0; head < num_heads_; ++head) {
      std::memcpy(keys(to, layer, head), keys(from, layer, head), page_bytes_);
    }
  }
}

void KVBlocks::append_int8(const Kernels& kernels, int slot, int8_t* keys, int8_t* values,
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

void KVBlocks::append(const Kernels& kernels, int block, int slot, int layer, int head,
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

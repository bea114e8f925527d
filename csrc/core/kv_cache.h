// Paged keys and values. A block holds 32 tokens of all layers; who owns it is not known here.
#pragma once

#include <cstdint>

#include "core/architecture.h"
#include "core/dtype.h"
#include "core/memory.h"

namespace glimmer {

class KVCache {
 public:
  KVCache(const Architecture& architecture, KVDType dtype, int num_blocks);

  // Bytes of one block; what a context costs is a whole number of these.
  static size_t block_bytes(const Architecture& architecture, KVDType dtype);

  // Whether it was made for a network of these sizes.
  bool fits(const Architecture& architecture) const;
  KVDType dtype() const { return dtype_; }
  int num_blocks() const { return num_blocks_; }
  // [head_dim][32] of float or float16
  void* keys(int block, int layer, int head) const {
    return pages_.data() +
           ((static_cast<size_t>(block) * num_layers_ + layer) * num_heads_ + head) * page_bytes_;
  }
  // [32][padded_channels(head_dim)]
  void* values(int block, int layer, int head) const {
    return static_cast<uint8_t*>(keys(block, layer, head)) + key_bytes_;
  }

 private:
  KVDType dtype_;
  int num_blocks_, num_layers_, num_heads_, head_dim_;
  size_t key_bytes_, page_bytes_;
  Pages pages_;
};

}  // namespace glimmer

// Paged keys and values. A block holds 32 tokens of all layers; who owns it is not known here.
//
// Behind the blocks that are given out lie those of the network's trained prefix, if it has one:
// filled once, and read by all sequences.
#pragma once

#include <cstdint>

#include "core/architecture.h"
#include "core/dtype.h"
#include "core/memory.h"

namespace glimmer {

class Decoder;
struct Kernels;

class KVCache {
 public:
  // Throws Error: the decoder has a prefix, but not all weights yet.
  KVCache(const Decoder& decoder, KVDType dtype, int num_blocks);

  // Bytes of one block; what a context costs is a whole number of these.
  static size_t block_bytes(const Architecture& architecture, KVDType dtype);

  // Whether it was made for a network of these sizes.
  bool fits(const Architecture& architecture) const;
  KVDType dtype() const { return dtype_; }
  int num_blocks() const { return num_blocks_; }
  size_t size_bytes() const { return size_bytes_; }  // of all blocks, the prefix's too
  // The block of the prefix that holds its tokens from 32 * index on.
  int prefix_block(int index) const { return num_blocks_ + index; }

  // Puts one token's key and value of a head, [head_dim], into its slot of a block. Threads may
  // fill different slots at once.
  void append(const Kernels& kernels, int block, int slot, int layer, int head, const float* key,
              const float* value);
  // Copies all layers of a block: for a sequence that goes its own way in a block it shared. Throws
  // Error(kInvalidParameter): no such block.
  void copy_block(int from, int to);
  // [head_dim][32] of float, float16 or int8; behind int8 a float scale per token, [32]
  void* keys(int block, int layer, int head) const {
    return pages_.data() +
           ((static_cast<size_t>(block) * num_layers_ + layer) * num_heads_ + head) * page_bytes_;
  }
  // [32][padded_channels(head_dim)]; likewise
  void* values(int block, int layer, int head) const {
    return static_cast<uint8_t*>(keys(block, layer, head)) + key_bytes_;
  }

 private:
  size_t block_stride() const { return page_bytes_ * num_heads_ * num_layers_; }
  void fill_prefix(const Decoder& decoder);
  void append_int8(const Kernels& kernels, int slot, int8_t* keys, int8_t* values, const float* key,
                   const float* value);

  KVDType dtype_;
  int num_blocks_, num_layers_, num_heads_, head_dim_, prefix_length_;
  size_t key_bytes_, page_bytes_, size_bytes_;
  Pages pages_;
};

}  // namespace glimmer

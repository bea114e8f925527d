// Paged keys and values. A block holds 32 tokens of all layers; who owns it is not known here.
//
// A trained prefix (P-Tuning v2) lies in blocks of its own: filled once, and read by all sequences
// that it stands before. Lengths and positions do not count it.
#pragma once

#include <cstdint>
#include <memory>

#include "core/architecture.h"
#include "core/dtype.h"
#include "core/memory.h"

namespace glimmer {

class Decoder;
struct Kernels;

// Memory for blocks of one network's keys and values.
class KVBlocks {
 public:
  KVBlocks(const Architecture& architecture, KVDType dtype, int num_blocks);

  // Bytes of one block; what a context costs is a whole number of these.
  static size_t block_bytes(const Architecture& architecture, KVDType dtype);

  // Whether they were made for a network whose keys and values have this form.
  bool fits(const Architecture& architecture) const;
  KVDType dtype() const { return dtype_; }
  int num_blocks() const { return num_blocks_; }
  size_t size_bytes() const { return page_bytes_ * num_heads_ * num_layers_ * num_blocks_; }

  // Puts one token's key and value of a head, [head_dim], into its slot of a block. Threads may
  // fill different slots at once.
  void append(const Kernels& kernels, int block, int slot, int layer, int head, const float* key,
              const float* value);
  // [head_dim][32] of float, float16 or int8; behind int8 a float scale per token, [32]
  void* keys(int block, int layer, int head) const {
    const int group = block / kGroupBlocks, slot = block % kGroupBlocks;
    const size_t run = (static_cast<size_t>(group) * num_layers_ + layer) * num_heads_ + head;
    return pages_.data() + (run * kGroupBlocks + slot) * page_bytes_;
  }
  // [32][padded_channels(head_dim)]; likewise
  void* values(int block, int layer, int head) const {
    return static_cast<uint8_t*>(keys(block, layer, head)) + key_bytes_;
  }

 protected:
  // All layers and heads.
  void copy(int from, int to);

 private:
  // The pages of so many neighbouring blocks that belong to one head of one layer lie side by side:
  // attention reads longer runs of memory, and a block in use takes no more large pages than
  // before.
  static constexpr int kGroupBlocks = 8;

  void append_int8(const Kernels& kernels, int slot, int8_t* keys, int8_t* values, const float* key,
                   const float* value);

  KVDType dtype_;
  int num_blocks_, num_layers_, num_heads_, head_dim_;
  size_t key_bytes_, page_bytes_;
  Pages pages_;
};

// The keys, unrotated, and values of a trained prefix.
class KVPrefix : public KVBlocks {
 public:
  // `rows` is [num_layers][2][length][kv_width], the keys of a layer before its values.
  KVPrefix(const Decoder& decoder, KVDType dtype, const float* rows, int length);
  // That of the network, whose weights must be there.
  KVPrefix(const Decoder& decoder, KVDType dtype);

  int length() const { return length_; }

 private:
  // Keys and values of a layer, [length][kv_width].
  void fill(const Decoder& decoder, int layer, const float* keys, const float* values);

  int length_;
};

class KVCache : public KVBlocks {
 public:
  // Throws Error: the decoder has a prefix, but not all weights yet.
  KVCache(const Decoder& decoder, KVDType dtype, int num_blocks);

  // Whether it was made for a network of these sizes.
  bool fits(const Architecture& architecture) const;
  size_t size_bytes() const;  // of all blocks, the prefix's too
  // That of the network, which stands before every sequence that has no other; null for none.
  const KVPrefix* prefix() const { return prefix_.get(); }

  // Copies all layers of a block: for a sequence that goes its own way in a block it shared. Throws
  // Error(kInvalidParameter): no such block.
  void copy_block(int from, int to);

 private:
  std::unique_ptr<const KVPrefix> prefix_;
};

}  // namespace glimmer

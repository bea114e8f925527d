// Attention of a whole batch over the paged cache, cut into pieces that threads take in any order.
//
// A row's keys are cut into splits of 512: first those of the trained prefix before its sequence,
// which starts with a split of its own and is seen by all rows, then those of the sequence.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/architecture.h"
#include "core/kv_cache.h"
#include "core/step.h"
#include "kernels/kernels.h"

namespace glimmer {

class Attention {
 public:
  Attention(const Architecture& architecture, const Kernels& kernels, int num_threads);

  // Cuts a batch into items; the same for every layer of a step.
  void plan(const KVCache& cache, const StepInput& input);

  int num_items() const { return static_cast<int>(items_.size()); }

  // queries and out are [num_tokens] rows, `query_stride` and [num_heads * head_dim] apart.
  void run(int thread, int item, const KVCache& cache, int layer, const float* queries,
           size_t query_stride, float* out);

 private:
  // Up to 16 query rows of one sequence that share a KV head: (token, head in group), token first.
  struct Unit {
    int head;         // KV head
    int first_token;  // of the sequence in the batch
    int first_row, rows;
    int first_position;  // cache position of the sequence's first new token
    int context_length;  // leading keys of the sequence that every row sees
    int keys;            // of the sequence that the last row sees
    const int32_t* block_table;
    const KVPrefix* prefix;  // null for none
    int prefix_splits;
    int first_item, num_items;
  };
  struct Item {
    int unit;
    int first_split, last_split;
  };
  // Of 16 rows: the softmax's running maximum and sum, and the unnormalised output.
  struct State {
    float* maximum;
    float* sum;
    float* out;
  };
  struct Scratch {
    std::vector<float> queries, kernel, state, split;
  };

  size_t state_floats() const;
  State state_at(float* p) const;
  void pack_queries(const Unit& unit, const float* queries, size_t stride, float* packed) const;
  // Finds a split's pages, `max_pages` at most; returns how many keys the split has.
  int find_pages(const Unit& unit, int split, const KVCache& cache, int layer, int max_pages,
                 const void** keys, const void** values) const;
  void attend(int item, const KVCache& cache, int layer, Scratch& scratch, State state) const;
  void merge(const Unit& unit, int split, State from, State into) const;
  void finish(const Unit& unit, State state, float* out) const;
  int visible(const Unit& unit, int row) const {  // keys of the sequence that a row sees
    const int token = (unit.first_row + row) / architecture_.group_size();
    return std::max(unit.first_position + token + 1, unit.context_length);
  }
  // Index of a split among those of the sequence; negative for the prefix.
  static int own_split(const Unit& unit, int split) { return split - unit.prefix_splits; }

  const Architecture& architecture_;
  const Kernels& kernels_;
  const int num_threads_;
  const int channels_;
  std::vector<Unit> units_;
  std::vector<Item> items_;
  std::vector<Scratch> scratch_;              // one per thread
  std::vector<float> partial_;                // a state per item, where a unit has several
  std::vector<std::atomic<int>> unfinished_;  // items of each unit
};

}  // namespace glimmer

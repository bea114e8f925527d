#include "core/attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace glimmer {
namespace {

int num_splits(int keys) { return keys / kSplitTokens + (keys % kSplitTokens != 0); }

}  // namespace

Attention::Attention(const Architecture& architecture, const Kernels& kernels, int num_threads)
    : architecture_(architecture),
      kernels_(kernels),
      num_threads_(num_threads),
      channels_(padded_channels(architecture.head_dim)),
      scratch_(num_threads) {
  for (Scratch& s : scratch_) {
    s.queries.resize(static_cast<size_t>(architecture.head_dim) * kAttentionRows);
    s.kernel.resize(kAttentionScratch);
    s.state.resize(state_floats());
    s.split.resize(state_floats());
  }
}

size_t Attention::state_floats() const {
  return static_cast<size_t>(kAttentionRows) * (2 + channels_);
}

Attention::State Attention::state_at(float* p) const {
  return {p, p + kAttentionRows, p + 2 * kAttentionRows};
}

void Attention::plan(const KVCache& cache, const StepInput& in) {
  units_.clear();
  items_.clear();
  int first_token = 0;
  for (int s = 0; s < in.num_sequences; ++s) {
    const int rows = in.query_lengths[s] * architecture_.group_size();
    const KVPrefix* const prefix = in.prefixes && in.prefixes[s] ? in.prefixes[s] : cache.prefix();
    for (int head = 0; head < architecture_.num_kv_heads; ++head) {
      for (int row = 0; row < rows; row += kAttentionRows) {
        Unit unit{.head = head,
                  .first_token = first_token,
                  .first_row = row,
                  .rows = std::min(kAttentionRows, rows - row),
                  .first_position = in.kv_lengths[s] - in.query_lengths[s],
                  .context_length = in.context_lengths ? in.context_lengths[s] : 0,
                  .keys = 0,
                  .block_table = in.block_tables + static_cast<size_t>(s) * in.max_blocks,
                  .prefix = prefix,
                  .prefix_splits = prefix ? num_splits(prefix->length()) : 0,
                  .first_item = 0,
                  .num_items = 0};
        unit.keys = visible(unit, unit.rows - 1);
        units_.push_back(unit);
      }
    }
    first_token += in.query_lengths[s];
  }
  // Few units leave threads idle over a long context: then every split is an item of its own. The
  // result is the same either way, since splits are merged in the same order.
  const bool by_split = static_cast<int>(units_.size()) < 4 * num_threads_;
  bool partial = false;
  for (size_t u = 0; u < units_.size(); ++u) {
    Unit& unit = units_[u];
    const int splits = unit.prefix_splits + num_splits(unit.keys);
    const int step = by_split ? 1 : splits;
    unit.first_item = num_items();
    for (int i = 0; i < splits; i += step) items_.push_back({static_cast<int>(u), i, i + step});
    unit.num_items = num_items() - unit.first_item;
    partial |= unit.num_items > 1;
  }
  if (unfinished_.size() < units_.size()) {
    unfinished_ = std::vector<std::atomic<int>>(units_.size());
  }
  for (size_t u = 0; u < units_.size(); ++u) unfinished_[u] = units_[u].num_items;
  if (partial) partial_.resize(std::max(partial_.size(), items_.size() * state_floats()));
}

void Attention::run(int thread, int index, const KVCache& cache, int layer, const float* queries,
                    size_t query_stride, float* out) {
  const Item& item = items_[index];
  const Unit& unit = units_[item.unit];
  Scratch& scratch = scratch_[thread];
  pack_queries(unit, queries, query_stride, scratch.queries.data());
  if (unit.num_items == 1) {
    const State state = state_at(scratch.state.data());
    attend(index, cache, layer, scratch, state);
    finish(unit, state, out);
    return;
  }
  attend(index, cache, layer, scratch, state_at(&partial_[index * state_floats()]));
  if (unfinished_[item.unit].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  // The last to finish merges, left to right.
  unfinished_[item.unit].store(unit.num_items, std::memory_order_relaxed);
  const State state = state_at(&partial_[unit.first_item * state_floats()]);
  for (int i = 1; i < unit.num_items; ++i) {
    const int next = unit.first_item + i;
    merge(unit, items_[next].first_split, state_at(&partial_[next * state_floats()]), state);
  }
  finish(unit, state, out);
}

void Attention::pack_queries(const Unit& unit, const float* queries, size_t stride,
                             float* packed) const {
  const int head_dim = architecture_.head_dim, group = architecture_.group_size();
  const float scale = std::numbers::log2e_v<float> / std::sqrt(static_cast<float>(head_dim));
  for (int r = 0; r < unit.rows; ++r) {
    const int row = unit.first_row + r;
    const float* q = queries + (unit.first_token + row / group) * stride +
                     (static_cast<size_t>(unit.head) * group + row % group) * head_dim;
    for (int d = 0; d < head_dim; ++d) packed[d * kAttentionRows + r] = q[d] * scale;
  }
}

int Attention::find_pages(const Unit& unit, int split, const KVCache& cache, int layer,
                          int max_pages, const void** keys, const void** values) const {
  const bool in_prefix = own_split(unit, split) < 0;
  const int page_split = in_prefix ? split : own_split(unit, split);
  const int all_keys = in_prefix ? unit.prefix->length() : unit.keys;
  const int num_keys = std::min(kSplitTokens, all_keys - page_split * kSplitTokens);
  const KVBlocks& blocks = in_prefix ? static_cast<const KVBlocks&>(*unit.prefix) : cache;
  for (int page = 0; page < max_pages && page * kPageTokens < num_keys; ++page) {
    const int number = page_split * kSplitPages + page;
    const int block = in_prefix ? number : unit.block_table[number];
    keys[page] = blocks.keys(block, layer, unit.head);
    values[page] = blocks.values(block, layer, unit.head);
  }
  return num_keys;
}

void Attention::attend(int index, const KVCache& cache, int layer, Scratch& scratch,
                       State state) const {
  const Item& item = items_[index];
  const Unit& unit = units_[item.unit];
  const void* key_pages[kSplitPages];
  const void* value_pages[kSplitPages];
  int visible_keys[kAttentionRows];
  for (int split = item.first_split; split < item.last_split; ++split) {
    const int keys = find_pages(unit, split, cache, layer, kSplitPages, key_pages, value_pages);
    // What this thread is likely to read next; a wrong guess costs little.
    const void* next_pages[kPagesAhead] = {key_pages[0], key_pages[0]};
    const void* next_values[kPagesAhead];
    if (split + 1 < item.last_split) {
      find_pages(unit, split + 1, cache, layer, kPagesAhead, next_pages, next_values);
    } else if (index + num_threads_ < num_items()) {
      const Item& next = items_[index + num_threads_];
      find_pages(units_[next.unit], next.first_split, cache, layer, kPagesAhead, next_pages,
                 next_values);
    }
    const bool in_prefix = own_split(unit, split) < 0;
    const int first_key = own_split(unit, split) * kSplitTokens;
    for (int r = 0; r < unit.rows; ++r) {
      visible_keys[r] = in_prefix ? keys : std::clamp(visible(unit, r) - first_key, 0, keys);
    }
    const bool first = split == item.first_split;
    const State result = first ? state : state_at(scratch.split.data());
    kernels_.attend_split[glimmer::index(cache.dtype())]({.queries = scratch.queries.data(),
                                                          .rows = unit.rows,
                                                          .visible = visible_keys,
                                                          .keys = keys,
                                                          .head_dim = architecture_.head_dim,
                                                          .key_pages = key_pages,
                                                          .value_pages = value_pages,
                                                          .next_pages = next_pages,
                                                          .scratch = scratch.kernel.data(),
                                                          .maximum = result.maximum,
                                                          .sum = result.sum,
                                                          .out = result.out});
    if (!first) merge(unit, split, result, state);
  }
}

void Attention::merge(const Unit& unit, int split, State from, State into) const {
  for (int r = 0; r < unit.rows; ++r) {
    const int own = own_split(unit, split);
    // The row ends before this split.
    if (own > 0 && visible(unit, r) <= own * kSplitTokens) continue;
    kernels_.merge_split(from.maximum[r], from.sum[r], from.out + r * channels_, channels_,
                         &into.maximum[r], &into.sum[r], into.out + r * channels_);
  }
}

void Attention::finish(const Unit& unit, State state, float* out) const {
  const int head_dim = architecture_.head_dim, group = architecture_.group_size();
  for (int r = 0; r < unit.rows; ++r) {
    const int row = unit.first_row + r;
    float* o = out +
               static_cast<size_t>(unit.first_token + row / group) * architecture_.query_width() +
               (static_cast<size_t>(unit.head) * group + row % group) * head_dim;
    const float scale = 1.0f / state.sum[r];
    for (int d = 0; d < head_dim; ++d) o[d] = state.out[r * channels_ + d] * scale;
  }
}

}  // namespace glimmer

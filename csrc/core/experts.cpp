#include "core/experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/memory.h"

namespace glimmer {
namespace {

// A broken number is chosen last, and shows in the logits by its weight.
float ordered(float choice) {
  return std::isnan(choice) ? -std::numeric_limits<float>::infinity() : choice;
}

// The first `count` of `order` become the indices of the largest values, the lower of two equal
// ones first. No value may be NaN.
void largest_first(const std::vector<float>& values, int count, std::vector<int>& order) {
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int i, int j) {
    return values[i] != values[j] ? values[i] > values[j] : i < j;
  });
}

}  // namespace

ExpertMlp::ExpertMlp(const Architecture& architecture, const Kernels& kernels, Team& team,
                     Products& products)
    : a_(architecture),
      e_(*architecture.experts),
      kernels_(kernels),
      team_(team),
      products_(products),
      tile_width_(
          (std::max({a_.hidden_size, e_.intermediate_size, e_.shared_width()}) + kGroup - 1) /
          kGroup * kGroup),
      inner_width_(inner_columns(a_.mlp, std::max(e_.intermediate_size, e_.shared_width()))),
      threads_(team.size()),
      next_pair_(e_.num_experts + 1) {
  for (Thread& t : threads_) {
    t.scores.resize(e_.num_experts);
    t.choices.resize(e_.num_experts);
    t.order.resize(e_.num_experts);
    t.group_choices.resize(e_.num_groups);
    t.group_order.resize(e_.num_groups);
    t.row.resize(tile_width_);
  }
}

void ExpertMlp::reserve(unsigned forms, int num_rows) {
  const size_t rows = num_rows, chosen = rows * e_.num_experts_per_token;
  const size_t pairs = chosen + (e_.num_shared_experts > 0 ? rows : 0);
  grow(router_logits_, rows * e_.num_experts);
  grow(chosen_, chosen);
  grow(chosen_weights_, chosen);
  grow(pair_of_, chosen);
  grow(row_of_, pairs);
  grow(inner_, pairs * inner_width_);
  grow(results_, pairs * a_.hidden_size);
  const size_t groups = std::min<size_t>(chosen, e_.num_experts) + 1;
  const size_t tiles = pairs / kMaxTile + groups;  // a group fills all of its tiles but one
  groups_.reserve(groups);
  tiles_.reserve(tiles);
  inner_product_.items.reserve(groups * (inner_width_ / kStripRows + 2));
  down_product_.items.reserve(groups * (a_.hidden_size / kStripRows + 1));
  packed_.reserve(forms, static_cast<int>(tiles), tile_width_);
}

void ExpertMlp::run(int thread, const ExpertWeights& weights, const float* inputs, int rows,
                    float* out, const Adapted* adapted) {
  const int h = a_.hidden_size, width = e_.shared_width();
  const int first_shared = rows * e_.num_experts_per_token;  // of the pairs
  const MlpParts shared(a_.mlp, weights.shared, width);
  if (width == 0) adapted = nullptr;
  const auto take = [&](int pair, const float* x, int k) {
    if (!adapted || pair < first_shared) return;
    adapted->lora.take(thread, adapted->rows, pair - first_shared, x, k, false);
  };
  const Part router[] = {{&weights.router, 0}};
  const PackedRows packed = products_.pack(
      thread, router, rows, h, [&](int i, float*) { return inputs + static_cast<size_t>(i) * h; });
  products_.multiply(thread, router, packed,
                     {router_logits_.data(), static_cast<size_t>(e_.num_experts)});
  team_.barrier(thread);
  const auto [first, last] = team_.share(thread, rows);
  for (int row = first; row < last; ++row) route(threads_[thread], weights, row);
  team_.barrier(thread);
  if (thread == 0) make_groups(weights, rows);
  team_.barrier(thread);
  pack(thread, inner_product_, [&](const Group&, int pair, float*) {
    const float* const x = inputs + static_cast<size_t>(row_of_[pair]) * h;
    take(pair, x, h);
    return x;
  });
  team_.barrier(thread);
  multiply(thread, inner_product_, inner_.data(), inner_width_, LoraSite::kSharedInner, shared, h,
           first_shared, adapted);
  pack(thread, down_product_, [&](const Group& group, int pair, float* row) {
    activate(kernels_, a_.mlp, &inner_[pair * inner_width_], group.width, row);
    take(pair, row, group.width);
    return row;
  });
  team_.barrier(thread);
  multiply(thread, down_product_, results_.data(), h, LoraSite::kSharedDown, shared, width,
           first_shared, adapted);
  for (int row = first; row < last; ++row) {
    combine(row, rows, out + static_cast<size_t>(row) * h);
  }
}

void ExpertMlp::route(Thread& t, const ExpertWeights& weights, int row) {
  const int k = e_.num_experts_per_token;
  const float* logits = &router_logits_[static_cast<size_t>(row) * e_.num_experts];
  for (int i = 0; i < e_.num_experts; ++i) {
    t.scores[i] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(logits[i]))));
    t.choices[i] = ordered(t.scores[i] + weights.choice_bias[i]);
  }
  if (e_.num_groups_per_token < e_.num_groups) leave_best_groups(t);
  largest_first(t.choices, k, t.order);
  std::sort(t.order.begin(), t.order.begin() + k);
  float sum = 0;
  for (int j = 0; j < k; ++j) sum += t.scores[t.order[j]];
  const float divisor = e_.normalize_weights ? sum + 1e-20f : 1.0f;
  for (int j = 0; j < k; ++j) {
    const size_t at = static_cast<size_t>(row) * k + j;
    chosen_[at] = t.order[j];
    chosen_weights_[at] = t.scores[t.order[j]] / divisor * e_.routed_scale;
  }
}

// Takes the experts of all but the best groups out of the choice. A group is as good as its two
// best experts together.
void ExpertMlp::leave_best_groups(Thread& t) const {
  const int size = e_.num_experts / e_.num_groups;
  for (int g = 0; g < e_.num_groups; ++g) {
    const float* group = t.choices.data() + g * size;
    float best = std::max(group[0], group[1]), second = std::min(group[0], group[1]);
    for (int i = 2; i < size; ++i) {
      second = std::max(second, std::min(best, group[i]));
      best = std::max(best, group[i]);
    }
    t.group_choices[g] = ordered(best + second);
  }
  largest_first(t.group_choices, e_.num_groups_per_token, t.group_order);
  for (int i = e_.num_groups_per_token; i < e_.num_groups; ++i) {
    std::fill_n(t.choices.begin() + t.group_order[i] * size, size,
                -std::numeric_limits<float>::infinity());
  }
}

void ExpertMlp::make_groups(const ExpertWeights& weights, int rows) {
  groups_.clear();
  tiles_.clear();
  const int k = e_.num_experts_per_token;
  // First each expert's number of pairs, one place on, then the sum of those before it.
  std::fill(next_pair_.begin(), next_pair_.end(), 0);
  for (int i = 0; i < rows * k; ++i) ++next_pair_[chosen_[i] + 1];
  for (int i = 0; i < e_.num_experts; ++i) {
    const int first = next_pair_[i], count = next_pair_[i + 1];
    if (count > 0) add_group(weights.experts[i], e_.intermediate_size, first, count);
    next_pair_[i + 1] += first;
  }
  for (int i = 0; i < rows * k; ++i) {
    pair_of_[i] = next_pair_[chosen_[i]]++;
    row_of_[pair_of_[i]] = i / k;
  }
  if (e_.num_shared_experts > 0 && rows > 0) {
    add_group(weights.shared, e_.shared_width(), rows * k, rows);
    std::iota(row_of_.begin() + rows * k, row_of_.begin() + rows * (k + 1), 0);
  }
  cut(inner_product_);
  cut(down_product_);
}

void ExpertMlp::add_group(const MlpWeights& mlp, int width, int first_pair, int num_pairs) {
  const int first_tile = static_cast<int>(tiles_.size());
  for (int i = 0; i < num_tiles(num_pairs); ++i) {
    tiles_.push_back({static_cast<int>(groups_.size()), i});
  }
  groups_.push_back({MlpParts(a_.mlp, mlp, width), width, first_pair, num_pairs, first_tile});
}

void ExpertMlp::cut(Product& product) const {
  product.items.clear();
  int all_strips = 0;
  for (const Group& g : groups_) all_strips += Products::num_strips((g.parts.*product.parts)());
  for (size_t i = 0; i < groups_.size(); ++i) {
    const std::span<const Part> parts = (groups_[i].parts.*product.parts)();
    const int strips = Products::num_strips(parts);
    const int chunk = products_.chunk_strips(all_strips, Products::strip_bytes(parts));
    for (int first = 0; first < strips; first += chunk) {
      product.items.push_back({static_cast<int>(i), first, std::min(first + chunk, strips)});
    }
  }
}

template <class MakeRow>
void ExpertMlp::pack(int thread, const Product& product, MakeRow make_row) {
  const auto [first, last] = team_.share(thread, static_cast<int>(tiles_.size()));
  for (int i = first; i < last; ++i) {
    const Group& g = groups_[tiles_[i].group];
    const std::span<const Part> parts = (g.parts.*product.parts)();
    const unsigned forms = Products::forms_of(parts);
    const int rows = tile_rows(tiles_[i].index, g.num_pairs);
    for (int lane = 0; lane < rows; ++lane) {
      const int pair = g.first_pair + tiles_[i].index * kMaxTile + lane;
      packed_.pack(kernels_, forms, make_row(g, pair, threads_[thread].row.data()),
                   parts[0].linear->matrix.cols, i, lane, rows, tile_width_);
    }
  }
}

void ExpertMlp::multiply(int thread, const Product& product, float* out, size_t stride,
                         LoraSite site, const MlpParts& shared, int width, int first_shared,
                         const Adapted* adapted) {
  const std::span<const Part> parts = (shared.*product.parts)();
  if (adapted) {
    adapted->lora.shrink(thread, adapted->rows, adapted->layer, site,
                         static_cast<int>(parts.size()), width, false);
  }
  std::atomic<int>& next = team_.counter(thread);
  const int num_items = static_cast<int>(product.items.size());
  for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
    const Item& item = product.items[i];
    const Group& g = groups_[item.group];
    products_.multiply_strips(thread, (g.parts.*product.parts)(), item.first_strip, item.last_strip,
                              {&packed_, g.first_tile, tile_width_, g.num_pairs},
                              {out + g.first_pair * stride, stride});
  }
  team_.barrier(thread);
  if (!adapted) return;
  adapted->lora.expand(thread, adapted->rows, adapted->layer, site, parts,
                       {out + first_shared * stride, stride});
  team_.barrier(thread);
}

void ExpertMlp::combine(int row, int rows, float* out) const {
  const int h = a_.hidden_size, k = e_.num_experts_per_token;
  std::fill_n(out, h, 0.0f);
  const auto add = [&](int pair, float weight) {
    const float* result = &results_[static_cast<size_t>(pair) * h];
    for (int i = 0; i < h; ++i) out[i] += weight * result[i];
  };
  for (int i = row * k; i < (row + 1) * k; ++i) add(pair_of_[i], chosen_weights_[i]);
  if (e_.num_shared_experts > 0) add(rows * k + row, 1.0f);
}

}  // namespace glimmer
